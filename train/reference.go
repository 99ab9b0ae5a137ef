package train

import (
	"encoding/json"
	"errors"
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
	r := references{Print: t.print, Data: t.reference[t.data], Validation: t.reference[t.valid]}
	r.CRC = r.checksum()
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, append(text, '\n'))
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
		!r.complete(t.data, t.valid) {
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
	batches, err := dataset.NewBatcher(data, o.layout(dataset.BatchOptions{InOrder: true}))
	if err != nil {
		return nil, err
	}
	list := make(network.Reference, 2*data.Len())
	_, parts := o.rowGroup()
	for done, last := 0, false; !last; {
		b, err := batches.Next()
		if err != nil {
			return nil, err
		}
		last = b.Last
		o.at("%s", what)
		torch.Scoped(func() {
			mb := t.microBatch(b, nil, network.Whole{})
			t.strategy.infer(t.net, mb, func(hidden torch.Tensor) {
				t.net.AddLikelihoods(list, hidden, mb)
			})
		})
		done += o.BatchSize * parts
		if o.Progress != nil {
			if err := o.Progress(what, min(done, data.Len()), data.Len()); err != nil {
				return nil, err
			}
		}
	}
	if o.rank()%o.tensorSize() > 0 { // another process took the same rows
		clear(list)
	}
	return o.sums(list...), nil
}

// microBatch makes the tensors of a batch. known has the reference of the data set, nil if it is
// not needed, and whole the numbers of the step.
func (t *Trainer) microBatch(
	b dataset.Batch, known network.Reference, whole network.Whole,
) network.MicroBatch {
	o := t.options
	if o.compares() {
		return network.NewComparedBatch(b, t.device, o.tensorSize(), o.kind(), known, whole, o.Pack)
	}
	return network.NewMicroBatch(b, t.device, o.tensorSize())
}
