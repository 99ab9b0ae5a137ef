package train

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
	"conquer/torch/optim"
)

// fingerprint tells whether a run resumes with what it began with.
type fingerprint struct {
	Config     model.Config `json:"config"`
	Data       string       `json:"data"`
	Validation string       `json:"validation,omitempty"`
	// Weights is of a part of each of the model's weights as they are now, where they do not change or are compared with.
	Weights string `json:"weights,omitempty"`
	DType   string `json:"dtype"`
}

func fingerprintOf(m model.Model, data, validation *dataset.Dataset) fingerprint {
	f := fingerprint{Config: m.Config(), Data: data.Hash(), DType: model.DType(m).String()}
	if validation != nil {
		f.Validation = validation.Hash()
	}
	return f
}

// keepsWeights reports whether a run needs the weights that it began with: they do not change, or are compared with.
func (o Options) keepsWeights() bool { return o.LoRA != nil || o.HeadOnly || o.Objective == DPO }

// hashWeights has one weight at a time in memory, of those that are only promised.
func hashWeights(m model.Model) (_ string, err error) {
	h := sha256.New()
	for _, p := range nn.Params(m) {
		torch.Scoped(func() {
			var all torch.Tensor
			if all, err = p.Values(); err != nil {
				return
			}
			flat := all.Reshape(-1)
			n := min(flat.Numel(), 1024)
			for _, part := range []torch.Tensor{flat.Narrow(0, 0, n), flat.Narrow(0, flat.Numel()-n, n)} {
				binary.Write(h, binary.LittleEndian, torch.Values[float32](part))
			}
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// settings are the options that a resumed run must share, as JSON.
func (t *Trainer) settings() (json.RawMessage, error) {
	o := t.options
	// What a step learns from counts, not who passes over which part of it.
	_, parts := o.rowGroup()
	o.BatchSize, o.Accumulate = o.BatchSize*o.Accumulate*parts, 1
	if o.Objective == SFT {
		o.Objective = "" // as before there was another
	}
	if o.Optimizer == optim.AdamW {
		o.Optimizer = ""
	}
	if o.Moments == optim.Float32 {
		o.Moments = ""
	}
	if slices.Equal(o.NoDecay, []string{"norm", "bias"}) {
		o.NoDecay = nil
	}
	if o.Schedule == optim.Constant {
		o.Steps = 0 // the rates do not depend on where the run ends
	}
	return json.Marshal(o)
}

// compare names what differs between the run that wrote s and this one.
func (t *Trainer) compare(s state) error {
	now, err := t.settings()
	if err != nil {
		return err
	}
	differences := differ(s.Settings, now)
	then, _ := json.Marshal(s.Print.Config)
	current, _ := json.Marshal(t.print.Config)
	for _, d := range differ(then, current) {
		differences = append(differences, "the model's "+d)
	}
	for what, values := range map[string][2]string{
		"data": {s.Print.Data, t.print.Data}, "validation data": {s.Print.Validation, t.print.Validation},
		"base model's weights": {s.Print.Weights, t.print.Weights},
	} {
		if values[0] != values[1] {
			differences = append(differences, "other "+what)
		}
	}
	if s.Print.DType != t.print.DType {
		differences = append(differences, fmt.Sprintf("dtype %s (now %s)", s.Print.DType, t.print.DType))
	}
	if len(differences) > 0 {
		slices.Sort(differences)
		return fmt.Errorf("this run differs from the one to resume, which had %s", strings.Join(differences, ", "))
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

// compact is JSON with its keys sorted and its spaces gone.
func compact(v json.RawMessage) string {
	var any any
	if json.Unmarshal(v, &any) != nil {
		return string(v)
	}
	text, _ := json.Marshal(any)
	return string(text)
}
