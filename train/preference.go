package train

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"conquer/internal/atomicfile"
	"conquer/text/dataset"
	"conquer/torch"
)

// What a run learns from.
const (
	SFT = "sft" // texts and answers: their likelihood grows
	DPO = "dpo" // pairs of answers: the preferred one's likelihood grows against the other's (Rafailov et al., arXiv 2305.18290)
)

// Objectives lists them.
var Objectives = []string{SFT, DPO}

// referenceFile lies beside the checkpoints and holds what the model said of every pair before the first step.
const referenceFile = "reference.json"

// reference is, for each pair of a data set, the log-probability of both answers under the model as it was before tuning: of
// pair i the preferred one's at 2i, the other's at 2i+1. So the model that DPO compares with is run once over the data and
// then not needed; with LoRA it is the model below the adapter, which adds nothing yet.
type reference []float64

// references is referenceFile.
type references struct {
	Print      fingerprint `json:"made_from"`
	Data       reference   `json:"data"`
	Validation reference   `json:"validation,omitempty"`
}

// refer finds the reference's log-probabilities where an earlier run of the same left them, or computes them.
func (t *Trainer) refer(data, validation *dataset.Dataset) error {
	o, found := t.options, references{}
	if o.Objective != DPO {
		return nil
	}
	path := filepath.Join(o.CheckpointPath, referenceFile)
	// Rank 0 decides, for a folder may be its own.
	there := 0.0
	if o.CheckpointPath != "" && o.rank() == 0 {
		switch old, err := os.ReadFile(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case json.Unmarshal(old, &found) == nil && t.madeFromThis(found) && len(found.Data) == 2*data.Len() && (validation == nil || len(found.Validation) == 2*validation.Len()):
			there = 1
		}
	}
	if o.processes() > 1 {
		t.at("looking for the reference's log-probabilities")
		there = o.World.All.Sums(there)[0]
	}
	t.reference = map[*dataset.Dataset]reference{}
	for _, set := range []struct {
		data  *dataset.Dataset
		found reference
		what  string
	}{{data, found.Data, "data"}, {validation, found.Validation, "validation data"}} {
		if set.data == nil {
			continue
		}
		list := set.found
		if there == 0 {
			var err error
			if list, err = t.logProbabilities(set.data, "reference on the "+set.what); err != nil {
				return err
			}
		} else if o.processes() > 1 {
			if o.rank() > 0 {
				list = make(reference, 2*set.data.Len())
			}
			list = o.World.All.Sums(list...)
		}
		t.reference[set.data] = list
	}
	if there > 0 || o.CheckpointPath == "" || o.rank() > 0 {
		return nil
	}
	made, err := json.Marshal(references{t.print, t.reference[data], t.reference[validation]})
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, append(made, '\n'))
}

// madeFromThis reports whether log-probabilities are of this run's data under this run's model. Both have been through JSON.
func (t *Trainer) madeFromThis(r references) bool {
	text, err := json.Marshal(t.print)
	var now fingerprint
	return err == nil && json.Unmarshal(text, &now) == nil && reflect.DeepEqual(now, r.Print)
}

// logProbabilities is what the model as it is says of each pair of a data set, of which every process runs its part.
func (t *Trainer) logProbabilities(data *dataset.Dataset, what string) (reference, error) {
	o := t.options
	batches, err := dataset.NewBatcher(data, o.layout(dataset.BatchOptions{InOrder: true}))
	if err != nil {
		return nil, err
	}
	list := make(reference, 2*data.Len())
	_, parts := o.rowGroup()
	for done, last := 0, false; !last; {
		b, err := batches.Next()
		if err != nil {
			return nil, err
		}
		last = b.Last
		t.at("%s", what)
		torch.Scoped(func() {
			mb := t.microBatch(b, nil)
			t.net.infer(mb, func(hidden torch.Tensor) {
				_, nll := t.net.model.Head().Loss(t.net.rows(hidden, mb), mb.labels, torch.Loss{})
				values := torch.Values[float64](mb.likelihoods(nll))
				for pair, i := range mb.sources {
					list[2*i], list[2*i+1] = values[pair], values[mb.pairs+pair]
				}
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
	if o.processes() > 1 {
		list = o.World.All.Sums(list...)
	}
	return list, nil
}

// pairing is what a micro-batch of pairs has besides. Its sequences are the preferred texts of its pairs, then the others.
type pairing struct {
	pairs     int
	sources   []uint32     // which sample of the data set each pair is
	owner     torch.Tensor // int64 [N]: the sequence that each label is of
	reference torch.Tensor // float32 [2·pairs]: each sequence's log-probability under the reference
}

// likelihoods sums the negative log-likelihoods of labels [N] to log-probabilities of sequences [2·pairs].
func (p pairing) likelihoods(nll torch.Tensor) torch.Tensor {
	return torch.Zeros([]int{2 * max(1, p.pairs)}, torch.Float32, nll.Device()).IndexAdd(0, p.owner, nll.Neg())
}

// microBatch makes the tensors of a batch: of samples, or of pairs, whose reference may be nil.
func (t *Trainer) microBatch(b dataset.Batch, known reference) microBatch {
	if t.options.Objective != DPO {
		return newMicroBatch(b, t.device, t.options.tensorSize())
	}
	var p pairing
	first := make([]int, b.Rows) // pairs in the rows before
	for r, sources := range b.Sources {
		first[r] = len(p.sources)
		p.sources = append(p.sources, sources...)
	}
	p.pairs = len(p.sources)
	var owner []int64
	for r := range b.Rows {
		for i := r*b.Length + 1; i < (r+1)*b.Length; i++ {
			if b.Labels[i] != dataset.IgnoreLabel {
				s := int(b.Segments[i] - 1)
				owner = append(owner, int64(first[r]+s/2+s%2*p.pairs))
			}
		}
	}
	if len(owner) == 0 { // as newMicroBatch has a row then
		owner = []int64{0}
	}
	p.owner = torch.From(owner, len(owner)).ToDevice(t.device)
	said := make([]float32, 2*max(1, p.pairs))
	for pair, i := range p.sources {
		if known != nil {
			said[pair], said[p.pairs+pair] = float32(known[2*i]), float32(known[2*i+1])
		}
	}
	p.reference = torch.From(said, len(said)).ToDevice(t.device)
	if !t.options.Pack {
		b = apart(b)
	}
	mb := newMicroBatch(b, t.device, t.options.tensorSize())
	mb.pairing = p
	return mb
}

// apart gives both texts of the pair in each row a row of their own, so that attention needs no mask.
func apart(b dataset.Batch) dataset.Batch {
	wide := b
	wide.Rows, wide.Length = 2*b.Rows, 0
	bounds := make([]int, b.Rows) // where the second text begins
	for r := range b.Rows {
		segments := b.Segments[r*b.Length : (r+1)*b.Length]
		end := 0
		for i, s := range segments {
			if s == 1 {
				bounds[r] = i + 1
			}
			if s > 0 {
				end = i + 1
			}
		}
		wide.Length = max(wide.Length, bounds[r], end-bounds[r])
	}
	wide.Length = max(wide.Length, 2)
	spread := func(values []int32, padding int32) []int32 {
		out := make([]int32, wide.Rows*wide.Length)
		for i := range out {
			out[i] = padding
		}
		for r := range b.Rows {
			row := values[r*b.Length : (r+1)*b.Length]
			copy(out[2*r*wide.Length:(2*r+1)*wide.Length], row[:bounds[r]])
			second := row[bounds[r]:]
			copy(out[(2*r+1)*wide.Length:(2*r+2)*wide.Length], second[:min(len(second), wide.Length)])
		}
		return out
	}
	wide.IDs, wide.Labels = spread(b.IDs, 0), spread(b.Labels, dataset.IgnoreLabel)
	wide.Positions, wide.Segments = spread(b.Positions, 0), spread(b.Segments, 0)
	for i, s := range wide.Segments {
		wide.Segments[i] = min(s, 1)
	}
	return wide
}

// preference is DPO's loss of the pairs of a micro-batch divided by divisor, for the hidden states [N,D] of the labels, in a
// form whose gradient is that of the loss, and the numbers that a step reports. With the log-probabilities p of the answers
// and r of them under the reference,
//
//	margin = beta·((p_chosen - r_chosen) - (p_rejected - r_rejected))     loss = -log sigmoid(margin)
//
// so that d loss / d p_chosen = -beta·sigmoid(-margin), the opposite of d loss / d p_rejected: the labels' likelihoods are
// computed once without gradients, and a second time with each label weighted by what its pair's loss gains from it.
func (n *network) preference(hidden torch.Tensor, mb microBatch, divisor float64) (loss, numbers torch.Tensor) {
	head := n.model.Head()
	var weights torch.Tensor
	torch.NoGrad(func() {
		_, nll := head.Loss(hidden, mb.labels, torch.Loss{})
		numbers, weights = n.compare(nll, mb, divisor)
	})
	loss, _ = head.Loss(hidden, mb.labels, torch.Loss{Divisor: 1, Weights: weights})
	return loss, numbers
}

// compare gives the numbers of DPO for the labels' negative log-likelihoods [N], and the labels' weights [N].
func (n *network) compare(nll torch.Tensor, mb microBatch, divisor float64) (numbers, weights torch.Tensor) {
	pairs := max(1, mb.pairs)
	reward := mb.likelihoods(nll).Sub(mb.reference).MulScalar(n.beta)
	chosen, rejected := reward.Narrow(0, 0, pairs), reward.Narrow(0, pairs, pairs)
	margin := chosen.Sub(rejected)
	loss := margin.Neg().Softplus()
	right := margin.ZerosLike().Less(margin).To(torch.Float32)
	numbers = torch.Stack(0, loss.Sum(), chosen.Sum(), rejected.Sum(), margin.Sum(), right.Sum()).MulScalar(1 / divisor)
	if mb.pairs == 0 {
		numbers = numbers.ZerosLike()
	}
	push := margin.Softplus().Neg().Exp().MulScalar(n.beta / divisor) // sigmoid(-margin)
	return numbers, torch.Cat(0, push, push.Neg()).IndexSelect(0, mb.owner)
}
