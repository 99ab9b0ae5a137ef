package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"reflect"

	"conquer/internal/atomicfile"
	"conquer/internal/wrongfile"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/train/internal/network"
	"conquer/train/internal/state"
)

// referenceFile holds, beside the checkpoints, the reference's log-probabilities.
const referenceFile = "reference.json"

// references is the content of referenceFile.
type references struct {
	Print      state.Fingerprint `json:"made_from"`
	Data       network.Reference `json:"data"`
	Validation network.Reference `json:"validation,omitempty"`
	// Length is that at which mismatched texts are cut, which follow from it and from the data.
	Length int `json:"mismatched_length,omitempty"`
	// CRC is the CRC-32C of the JSON text of both lists.
	CRC uint32 `json:"crc32c"`
}

// checksum is the CRC of r.
func (r references) checksum() uint32 {
	// It fails only for numbers that are not finite, which no file holds.
	text, _ := json.Marshal([]network.Reference{r.Data, r.Validation})
	return crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli))
}

// complete reports whether r has all pairs of the data sets. validation may be nil.
func (r references) complete(data, validation *dataset.Dataset) bool {
	return len(r.Data) == 2*data.Len() &&
		(validation == nil || len(r.Validation) == 2*validation.Len())
}

// findReferences sets the reference's log-probabilities: those that an earlier run wrote, or new
// ones, which it writes.
func (t *Trainer) findReferences() error {
	o := t.options
	if !o.kind().Reference {
		return nil
	}
	if err := t.findMismatched(); err != nil {
		return err
	}
	path := filepath.Join(o.CheckpointPath, referenceFile)
	found, err := t.readReferences(path)
	if err != nil {
		return err
	}
	o.at("searching for the reference's log-probabilities")
	have := o.anyOf(found != nil) // rank 0 decides: other hosts may have other folders
	if found == nil {
		found = &references{}
	}
	t.reference = map[*dataset.Dataset]network.Reference{}
	for _, set := range []struct {
		data  *dataset.Dataset
		found network.Reference
		what  string
	}{{t.data, found.Data, "data"}, {t.valid, found.Validation, "validation data"}} {
		if set.data == nil {
			continue
		}
		list := set.found
		switch {
		case !have:
			if list, err = t.logProbabilities(set.data, "reference on the "+set.what); err != nil {
				return err
			}
		case o.rank() > 0: // receives rank 0's
			list = o.sums(make(network.Reference, 2*set.data.Len())...)
		default:
			list = o.sums(list...)
		}
		t.reference[set.data] = list
	}
	if have || o.CheckpointPath == "" || o.rank() > 0 {
		return nil
	}
	r := references{
		Print: t.print, Data: t.reference[t.data], Validation: t.reference[t.valid],
		Length: o.mismatchedLength(),
	}
	r.CRC = r.checksum()
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, append(text, '\n'))
}

// findMismatched prepares the mismatched texts of the data sets, if the objective needs them.
func (t *Trainer) findMismatched() (err error) {
	o := t.options
	if !o.kind().Baseline {
		return nil
	}
	t.mismatched = map[*dataset.Dataset]*dataset.Mismatched{}
	for _, set := range []*dataset.Dataset{t.data, t.valid} {
		if set == nil {
			continue
		}
		if t.mismatched[set], err = dataset.NewMismatched(set, o.mismatchedLength()); err != nil {
			return err
		}
	}
	desirable := t.mismatched[t.data].Desirable()
	good := o.DesirableWeight * float64(desirable)
	bad := o.UndesirableWeight * float64(t.data.Len()-desirable)
	if !(good >= bad && good <= bad*4/3) {
		t.remember(fmt.Sprintf("%d of %d answers are desirable, with weights %g "+
			"and %g: the paper on %s advises weights that make the desirable ones count 1 to "+
			"1.33 times as much as the others (--desirable_weight, --undesirable_weight)",
			desirable, t.data.Len(), o.DesirableWeight, o.UndesirableWeight, o.Objective))
	}
	return nil
}

// maxReferences is the largest size of referenceFile, in bytes.
const maxReferences = 2 << 30

// readReferences reads referenceFile on rank 0: nil if it does not exist, is damaged or belongs to
// another run. The run then computes the log-probabilities again.
func (t *Trainer) readReferences(path string) (*references, error) {
	if t.options.CheckpointPath == "" || t.options.rank() > 0 {
		return nil, nil
	}
	text, err := wrongfile.Read(path, maxReferences)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var r references
	if json.Unmarshal(text, &r) != nil || r.CRC != r.checksum() || !t.madeFromThis(r) ||
		!r.complete(t.data, t.valid) || r.Length != t.options.mismatchedLength() {
		return nil, nil
	}
	return &r, nil
}

// madeFromThis reports whether r belongs to this run's data and model. Both fingerprints have been
// through JSON.
func (t *Trainer) madeFromThis(r references) bool {
	text, err := json.Marshal(t.print)
	var now state.Fingerprint
	return err == nil && json.Unmarshal(text, &now) == nil && reflect.DeepEqual(now, r.Print)
}

// logProbabilities runs the model over a data set of samples that are compared. Each process runs
// its part.
func (t *Trainer) logProbabilities(data *dataset.Dataset, what string) (network.Reference, error) {
	o := t.options
	list := make(network.Reference, 2*data.Len())
	_, parts := o.rowGroup()
	done := 0
	err := t.eachBatch(context.Background(), data, func(b dataset.Batch) error {
		o.at("%s", what)
		t.likelihoods(b, func(sample uint32, text int, p float64) { list[2*int(sample)+text] = p })
		if other := t.mismatched[data]; other != nil {
			texts, err := other.Batch(b, o.Pack)
			if err != nil {
				return err
			}
			t.likelihoods(texts, func(sample uint32, _ int, p float64) {
				list[2*int(sample)+1] = p
			})
		}
		done += o.BatchSize * parts
		if o.Progress == nil {
			return nil
		}
		return o.Progress(what, min(done, data.Len()), data.Len())
	})
	if err != nil {
		return nil, err
	}
	if o.rank()%o.tensorSize() > 0 { // another process took the same rows
		clear(list)
	}
	return o.sums(list...), nil
}

// likelihoods calls use with the log-probability of each text of a batch, on the process with the
// head. text is 1 for the second text of a sample.
func (t *Trainer) likelihoods(b dataset.Batch, use func(sample uint32, text int, p float64)) {
	torch.Scoped(func() {
		mb := t.microBatch(b, nil, nil, network.Whole{})
		t.strategy.infer(t.net, mb, func(hidden torch.Tensor) {
			for i, p := range t.net.Likelihoods(hidden, mb) {
				use(mb.Sources[i%mb.Samples], i/mb.Samples, p)
			}
		})
	})
}

// divergence is the sum, over samples of a data set, of the log-probability of the mismatched text
// minus that under the reference. Each process sums what it runs the head for.
type divergence struct{ sum, count float64 }

// add adds the samples of a batch.
func (d *divergence) add(t *Trainer, data *dataset.Dataset, b dataset.Batch) error {
	texts, err := t.mismatched[data].Batch(b, t.options.Pack)
	if err != nil {
		return err
	}
	known := t.reference[data]
	t.likelihoods(texts, func(sample uint32, _ int, p float64) {
		d.sum, d.count = d.sum+p-known[2*int(sample)+1], d.count+1
	})
	return nil
}

// mean is the estimate of the divergence over all processes, which cannot be negative.
func (d *divergence) mean(o Options) float64 {
	sums := o.sums(d.sum, d.count)
	return max(0, sums[0]/max(1, sums[1]))
}

// microBatch makes the tensors of a batch. carry has the states that its rows go on with, nil if
// they begin anew, known has the reference of the data set, nil if it is
// not needed, and whole the numbers of the step.
func (t *Trainer) microBatch(
	b dataset.Batch, carry *network.Carry, known network.Reference, whole network.Whole,
) network.MicroBatch {
	o := t.options
	if o.compares() {
		return network.NewComparedBatch(b, t.device, o.tensorSize(), o.kind(), known, whole, o.Pack)
	}
	if t.split != nil {
		return network.NewSplitBatch(b, t.device, t.split)
	}
	return network.NewMicroBatch(b, t.device, o.tensorSize(), carry)
}
