package state

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
)

// Fingerprint identifies what a run started with.
type Fingerprint struct {
	Config     model.Config `json:"config"`
	Data       string       `json:"data"`
	Validation string       `json:"validation,omitempty"`
	// Weights is a hash of a part of each weight, see [HashWeights]; empty if a resumed run does
	// not need the same weights.
	Weights string `json:"weights,omitempty"`
	DType   string `json:"dtype"`
}

// NewFingerprint returns the fingerprint of a run on data, without its weights. validation may be
// nil.
func NewFingerprint(m model.Model, data, validation *dataset.Dataset) Fingerprint {
	f := Fingerprint{Config: m.Config(), Data: data.Hash(), DType: model.DType(m).String()}
	if validation != nil {
		f.Validation = validation.Hash()
	}
	return f
}

// hashed is the number of elements at each end of a parameter that HashWeights hashes.
const hashed = 1024

// blockEnds returns the first and the last rows of a weight in blocks.
func blockEnds(p *nn.Param) torch.Tensor {
	rows := min(p.Size(0), (hashed+p.Size(1)-1)/p.Size(1))
	return torch.Cat(0, p.RowsOf(0, rows), p.RowsOf(p.Size(0)-rows, rows))
}

// HashWeights hashes the first and the last 1,024 elements of each of m's parameters. Deferred
// parameters are read one at a time.
func HashWeights(m model.Model) (_ string, err error) {
	h := sha256.New()
	for _, p := range nn.Params(m) {
		torch.Scoped(func() {
			var all torch.Tensor
			if p.Tensor.InBlocks() {
				all = blockEnds(p)
			} else if all, err = p.Values(); err != nil {
				return
			}
			flat := all.Reshape(-1)
			n := min(flat.Numel(), hashed)
			for _, start := range []int{0, flat.Numel() - n} {
				part := torch.Values[float32](flat.Narrow(0, start, n))
				binary.Write(h, binary.LittleEndian, part)
			}
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Identity says what two runs must have in common to be the same run: their settings, as a JSON
// object, and what they started with.
type Identity struct {
	Settings json.RawMessage `json:"settings"`
	Print    Fingerprint     `json:"made_from"`
}

// Compare returns an error that names the differences between an earlier run and this one.
func Compare(then, now Identity) error {
	differences := differ(then.Settings, now.Settings)
	before, _ := json.Marshal(then.Print.Config)
	after, _ := json.Marshal(now.Print.Config)
	for _, d := range differ(before, after) {
		differences = append(differences, "the model's "+d)
	}
	for what, values := range map[string][2]string{
		"data":                 {then.Print.Data, now.Print.Data},
		"validation data":      {then.Print.Validation, now.Print.Validation},
		"base model's weights": {then.Print.Weights, now.Print.Weights},
	} {
		if values[0] != values[1] {
			differences = append(differences, "other "+what)
		}
	}
	if then.Print.DType != now.Print.DType {
		differences = append(differences,
			fmt.Sprintf("dtype %s (now %s)", then.Print.DType, now.Print.DType))
	}
	if len(differences) > 0 {
		slices.Sort(differences)
		return fmt.Errorf("this run differs from the one to resume, which had %s",
			strings.Join(differences, ", "))
	}
	return nil
}

// differ lists the keys in which two JSON objects differ, with both values.
func differ(then, now json.RawMessage) []string {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(then, &a) != nil || json.Unmarshal(now, &b) != nil {
		return []string{"unreadable settings"}
	}
	show := func(v json.RawMessage) string {
		if v == nil {
			return "none"
		}
		return string(v)
	}
	var list []string
	for key := range a {
		if b[key] == nil {
			b[key] = nil
		}
	}
	for key, value := range b {
		if compact(a[key]) != compact(value) {
			list = append(list, fmt.Sprintf("%s %s (now %s)", key, show(a[key]), show(value)))
		}
	}
	return list
}

// compact returns v with sorted keys and without spaces.
func compact(v json.RawMessage) string {
	var any any
	if json.Unmarshal(v, &any) != nil {
		return string(v)
	}
	text, _ := json.Marshal(any)
	return string(text)
}
