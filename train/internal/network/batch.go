package network

import (
	"fmt"
	"slices"

	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
)

// MakeBatch makes the tensors of a micro-batch when they are needed.
type MakeBatch func() MicroBatch

// MicroBatch is a batch as tensors, cut to the length that its rows use.
type MicroBatch struct {
	Seq model.Sequence
	// Rows are the positions, of B·L, that predict a counted label; Labels are these labels (int64
	// [N]). The head runs on these rows only.
	Rows, Labels torch.Tensor
	Targets      int // N
	// Counted is 1 for each token of a sample and 0 for padding, float32 [B·L]; no tensor without
	// padding.
	Counted torch.Tensor
	Carry   *Carry // the states that its rows begin with, nil for none
	Compared
}

// Compared describes the texts of a micro-batch whose log-probabilities are compared: the first
// text of each sample, then the second one of each if samples are pairs.
type Compared struct {
	Samples   int
	Sources   []uint32     // index of each sample in the data set
	Owner     torch.Tensor // int64 [N]: the text of each label, see Likelihoods
	Lengths   torch.Tensor // float64 [texts]: labels of each text
	Reference torch.Tensor // float64 [texts]: the reference's log-probabilities
	Better    torch.Tensor // float64 [texts]: 1 for a chosen or desirable answer, else 0
	Share     torch.Tensor // float64 []: Whole.Share of the step
	Baseline  torch.Tensor // float64 []: Whole.Baseline of the step
	Imitated  torch.Tensor // float64 []: labels of the imitation term
}

// Reference has, for each sample of a data set, the log-probabilities of two texts under the model
// before training: of sample i the first text's at 2i, the second one's at 2i+1. The second text of
// a rated answer is the mismatched one. So the reference model runs once over the data and is then
// not needed. With LoRA it is the base model, because fresh adapters add nothing.
type Reference []float64

// NewMicroBatch makes the tensors of b on device. A label stands at its own token, as in Hugging
// Face; the position before it predicts it. The number of tokens is a multiple of `parts`, over
// which processes divide them.
//
// With carry the last token of a full row is predicted, but not an input: the row that continues it
// begins with that token.
func NewMicroBatch(b dataset.Batch, device torch.Device, parts int, carry *Carry) MicroBatch {
	used, packed := usedLength(b, device, parts)
	if carry != nil {
		used = min(used, b.Length-1)
		carry.Begin(b.Continues)
	}
	cut := func(values []int32) torch.Tensor {
		list := make([]int64, b.Rows*used)
		for r := range b.Rows {
			for i, v := range values[r*b.Length : r*b.Length+min(used, b.Length)] {
				list[r*used+i] = int64(v)
			}
		}
		return torch.From(list, b.Rows, used).ToDevice(device)
	}
	var rows, labels []int64
	for r := range b.Rows {
		for i := 1; i < min(used+1, b.Length); i++ { // the last label may be beyond the inputs
			if label := b.Labels[r*b.Length+i]; label != dataset.IgnoreLabel {
				rows, labels = append(rows, int64(r*used+i-1)), append(labels, int64(label))
			}
		}
	}
	mb := MicroBatch{Seq: model.Sequence{IDs: cut(b.IDs)}, Targets: len(rows),
		Carry: carry}
	if len(rows) == 0 { // other processes have labels, and this one runs the same passes
		rows, labels = []int64{0}, []int64{int64(dataset.IgnoreLabel)}
	}
	mb.Rows = torch.From(rows, len(rows)).ToDevice(device)
	mb.Labels = torch.From(labels, len(labels)).ToDevice(device)
	if counted, padded := countedTokens(b, used); padded {
		mb.Counted = torch.From(counted, len(counted)).ToDevice(device)
	}
	if packed { // a row with one sample needs no mask: padding comes last, where no token attends
		mb.Seq.Positions, mb.Seq.Limit, mb.Seq.Segments = cut(b.Positions), used, cut(b.Segments)
	}
	return mb
}

// NewSplitBatch makes the tensors of this process's part of b, whose rows are one sample each.
func NewSplitBatch(b dataset.Batch, device torch.Device, split *model.Split) MicroBatch {
	used, _ := usedLength(b, device, 1)
	part := max((used+split.Size-1)/split.Size, leastPart)
	first := split.Rank * part
	ids := make([]int64, b.Rows*part)
	var rows, labels []int64
	for r := range b.Rows {
		for i := range part {
			if first+i < b.Length {
				ids[r*part+i] = int64(b.IDs[r*b.Length+first+i])
			}
			if first+i+1 >= b.Length { // the label after the row's last token
				continue
			}
			if label := b.Labels[r*b.Length+first+i+1]; label != dataset.IgnoreLabel {
				rows, labels = append(rows, int64(r*part+i)), append(labels, int64(label))
			}
		}
	}
	mb := MicroBatch{Targets: len(rows), Seq: model.Sequence{
		IDs: torch.From(ids, b.Rows, part).ToDevice(device), Split: split}}
	if len(rows) == 0 { // other parts have labels, and this one runs the same passes
		rows, labels = []int64{0}, []int64{int64(dataset.IgnoreLabel)}
	}
	mb.Rows = torch.From(rows, len(rows)).ToDevice(device)
	mb.Labels = torch.From(labels, len(labels)).ToDevice(device)
	return mb
}

// leastPart is the fewest tokens of a part of a row: a convolution's taps before the next part's
// first token come from one part.
const leastPart = 4

// usedLength is the length that b is cut to, and whether a row has several samples.
func usedLength(b dataset.Batch, device torch.Device, parts int) (used int, packed bool) {
	for i, segment := range b.Segments {
		if segment > 0 {
			used = max(used, i%b.Length+1)
		}
		packed = packed || segment > 1
	}
	used = max(used, 1)
	if device.IsCUDA() { // few lengths: attention plans each one, and memory is cached by size
		used = min((used+63)/64*64, b.Length)
	}
	for b.Rows*used%parts != 0 {
		used++
	}
	return used, packed
}

// NewComparedBatch makes the tensors of a batch of samples whose texts an objective compares. known
// has the reference's log-probabilities of the data set, nil if they are not needed, and whole the
// numbers of the step. Unless pack is set, each text gets a row of its own.
func NewComparedBatch(
	b dataset.Batch, device torch.Device, parts int, k Kind, known Reference, whole Whole,
	pack bool,
) MicroBatch {
	c, prompts := Compared{Samples: b.Samples}, b
	if k.Prompts {
		prompts.Labels = withPrompts(b)
	}
	n := max(1, b.Samples)
	lengths, better := make([]float64, k.Texts*n), make([]float64, k.Texts*n)
	owner, imitated := []int64{}, 0
	for r := range b.Rows {
		for i := r*b.Length + 1; i < (r+1)*b.Length; i++ {
			text := int(b.Segments[i] - 1)
			switch bin := len(c.Sources) + text/k.Texts + text%k.Texts*n; {
			case b.Labels[i] != dataset.IgnoreLabel:
				owner = append(owner, int64(bin))
				lengths[bin]++
			case prompts.Labels[i] != dataset.IgnoreLabel:
				owner = append(owner, int64(k.Texts*n))
			default:
				continue
			}
			if text%k.Texts == 0 {
				imitated++
			}
		}
		for s, i := range b.Sources[r] {
			if k.Texts == 2 || b.Ratings[r][s] == dataset.Desirable {
				better[len(c.Sources)] = 1
			}
			c.Sources = append(c.Sources, i)
		}
	}
	if len(owner) == 0 { // as for the labels in NewMicroBatch
		owner = []int64{0}
	}
	reference := make([]float64, k.Texts*n)
	for sample, i := range c.Sources {
		for text := range k.Texts {
			lengths[text*n+sample] = max(1, lengths[text*n+sample])
			if known != nil {
				reference[text*n+sample] = known[2*int(i)+text]
			}
		}
	}
	c.Owner = torch.From(owner, len(owner)).ToDevice(device)
	c.Lengths = torch.From(lengths, len(lengths)).ToDevice(device)
	c.Reference = torch.From(reference, len(reference)).ToDevice(device)
	c.Better = torch.From(better, len(better)).ToDevice(device)
	c.Share = torch.From([]float64{whole.Share}).ToDevice(device)
	c.Baseline = torch.From([]float64{whole.Baseline}).ToDevice(device)
	c.Imitated = torch.From([]float64{float64(imitated)}).ToDevice(device)
	if b = prompts; k.Texts == 2 && !pack {
		b = splitPairs(b)
	}
	mb := NewMicroBatch(b, device, parts, nil)
	mb.Compared = c
	return mb
}

// countedTokens is MicroBatch.Counted for rows of the used length; false if there is no padding.
func countedTokens(b dataset.Batch, used int) (counted []float32, padded bool) {
	counted = make([]float32, b.Rows*used)
	for i := range counted {
		if row, column := i/used, i%used; column < b.Length &&
			b.Segments[row*b.Length+column] > 0 {
			counted[i] = 1
		} else {
			padded = true
		}
	}
	return counted, padded
}

// withPrompts returns the labels of b and, in the first text of each pair, those of the prompt.
func withPrompts(b dataset.Batch) []int32 {
	labels := slices.Clone(b.Labels)
	for i := range labels {
		if i%b.Length > 0 && b.Segments[i] == b.Segments[i-1] && b.Segments[i]%2 == 1 {
			labels[i] = b.IDs[i]
		}
	}
	return labels
}

// Imitated counts the labels of b in the imitation term.
func (o Objective) Imitated(b dataset.Batch) (n int) {
	if o.Imitation == 0 {
		return 0
	}
	labels := b.Labels
	if o.Prompts {
		labels = withPrompts(b)
	}
	for i, label := range labels {
		if i%b.Length > 0 && label != dataset.IgnoreLabel && b.Segments[i]%2 == 1 {
			n++
		}
	}
	return n
}

// splitPairs gives both texts of the pair in each row a row of its own, so that attention needs no
// mask.
func splitPairs(b dataset.Batch) dataset.Batch {
	wide := b
	wide.Rows, wide.Length = 2*b.Rows, 2
	bounds := make([]int, b.Rows) // start of the second text
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
	spread := func(values []int32, padding int32) []int32 {
		out := make([]int32, wide.Rows*wide.Length)
		for i := range out {
			out[i] = padding
		}
		for r := range b.Rows {
			row := values[r*b.Length : (r+1)*b.Length]
			copy(out[2*r*wide.Length:(2*r+1)*wide.Length], row[:bounds[r]])
			second := row[bounds[r]:]
			copy(out[(2*r+1)*wide.Length:(2*r+2)*wide.Length],
				second[:min(len(second), wide.Length)])
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

// Targets counts the labels of b that contribute to the loss.
func Targets(b dataset.Batch) int {
	n := 0
	for i, label := range b.Labels {
		if i%b.Length > 0 && label != dataset.IgnoreLabel {
			n++
		}
	}
	return n
}

// Likelihoods sums the negative log-likelihoods of labels, [N], to the log-probabilities of texts
// and, in one more element, that of the prompts which are imitated: float64 [texts+1].
func (c Compared) Likelihoods(nll torch.Tensor) torch.Tensor {
	zeros := torch.Zeros([]int{c.Lengths.Numel() + 1}, torch.Float64, nll.Device())
	return zeros.IndexAdd(0, c.Owner, nll.Neg().To(torch.Float64))
}

// margin is, for each sample, the value of the chosen text minus that of the rejected one. A rated
// answer has only one of them.
func (c Compared) margin(values torch.Tensor) torch.Tensor {
	signed := values.Mul(c.Better.MulScalar(2).AddScalar(-1))
	return signed.View(-1, max(1, c.Samples)).SumDim(0, false)
}

// tensors lists the tensors of a micro-batch; some may be undefined.
func (mb *MicroBatch) tensors() []*torch.Tensor {
	return []*torch.Tensor{
		&mb.Seq.IDs,
		&mb.Seq.Positions,
		&mb.Seq.Segments,
		&mb.Rows,
		&mb.Labels,
		&mb.Counted,
		&mb.Owner,
		&mb.Lengths,
		&mb.Reference,
		&mb.Better,
		&mb.Share,
		&mb.Baseline,
		&mb.Imitated,
	}
}

// shape is a key that is equal for micro-batches whose passes launch the same work.
func (mb MicroBatch) shape() string {
	list := []any{mb.Samples, mb.Seq.Limit}
	for _, t := range mb.tensors() {
		if t.Defined() {
			list = append(list, t.Shape())
		} else {
			list = append(list, nil)
		}
	}
	return fmt.Sprint(list...)
}

// padded returns mb with more rows for the head, which predict nothing, so that their number is a
// multiple of half the number of tokens. Otherwise each number of labels would be a shape of its
// own.
func (mb MicroBatch) padded() MicroBatch {
	unit := max(1, mb.Seq.IDs.Numel()/2)
	n := (unit - mb.Labels.Numel()%unit) % unit
	if n == 0 {
		return mb
	}
	device := mb.Seq.IDs.Device()
	torch.NoGrad(func() {
		// Different positions, because their gradients are added.
		mb.Rows = torch.Cat(0, mb.Rows, torch.Arange(0, n, torch.Int64, device))
		ignored := torch.Full([]int{n}, float64(dataset.IgnoreLabel), torch.Int64, device)
		mb.Labels = torch.Cat(0, mb.Labels, ignored)
		if mb.Owner.Defined() {
			mb.Owner = torch.Cat(0, mb.Owner, torch.Zeros([]int{n}, torch.Int64, device))
		}
	})
	return mb
}
