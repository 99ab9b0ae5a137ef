package eval

import (
	"cmp"
	"context"
	"slices"

	"conquer/model"
	"conquer/torch"
)

// reading goes through trees of tokens with the model.
type reading struct {
	*LM
	ctx context.Context
	// result gets the sum of the log-probabilities of count tokens of a request.
	result func(request, count int, sum float64, greedy bool)
}

// job is a node to be read after a row of its parent's cache.
type job struct {
	*node
	row int
}

func jobsOf(nodes []*node, row int) (jobs []job) {
	for _, n := range nodes {
		jobs = append(jobs, job{n, row})
	}
	return jobs
}

// read reads nodes and what is below them. parents is nil for roots.
func (r *reading) read(parents *model.Cache, jobs []job) error {
	var leaves, inner []job
	for _, j := range jobs {
		if len(j.children) == 0 {
			leaves = append(leaves, j)
		} else {
			inner = append(inner, j)
		}
	}
	longest := func(a, b job) int { return cmp.Compare(len(b.tokens), len(a.tokens)) }
	slices.SortStableFunc(leaves, longest)
	slices.SortStableFunc(inner, longest)
	for _, list := range [][]job{inner, leaves} {
		for len(list) > 0 {
			if err := r.ctx.Err(); err != nil {
				return err
			}
			n := r.batch(list, parents)
			if err := r.pass(parents, list[:n]); err != nil {
				return err
			}
			list = list[n:]
		}
	}
	return nil
}

// batch returns how many of the jobs, which are sorted by length, are read at once. Nodes that are
// continued must end in one column. Roots are padded on their left for that, others cannot be.
func (r *reading) batch(jobs []job, parents *model.Cache) int {
	length := len(jobs[0].tokens)
	most := max(1, r.BatchTokens/length)
	n := 1
	for n < min(most, len(jobs)) {
		next := len(jobs[n].tokens)
		if parents != nil && len(jobs[0].children) > 0 && next != length {
			break
		}
		// Much padding costs more than a second pass.
		if next*4 < length*3 && n*length >= r.BatchTokens/4 {
			break
		}
		n++
	}
	return n
}

// pass reads jobs together, scores what follows their tokens, and reads their children.
func (r *reading) pass(parents *model.Cache, jobs []job) (err error) {
	m, length := r.model, len(jobs[0].tokens)
	continued := len(jobs[0].children) > 0
	rows := make([]int, len(jobs))
	starts := make([]int, len(jobs)) // the column of each job's first token
	for i, j := range jobs {
		rows[i] = j.row
		if continued {
			starts[i] = length - len(j.tokens)
		}
	}
	var cache *model.Cache
	switch {
	case parents != nil:
		cache = parents.Branch(m, rows, parents.Length+length)
	case continued:
		cache = m.NewCache(len(jobs), length, model.DType(m), model.Device(m))
		if starts[len(jobs)-1] > 0 { // the shortest is last
			cache.Starts = slices.Clone(starts)
		}
	}
	if cache != nil {
		defer cache.Free()
	}
	torch.Scoped(func() {
		ids := make([]int32, len(jobs)*length)
		for i, j := range jobs {
			copy(ids[i*length+starts[i]:], j.tokens)
		}
		input := torch.From(ids, len(jobs), length).To(torch.Int64).ToDevice(model.Device(m))
		hidden := model.Hidden(m, model.Sequence{IDs: input, Cache: cache})
		r.score(hidden.Reshape(len(jobs)*length, hidden.Size(2)), jobs, starts, length)
	})
	if !continued {
		return nil
	}
	var children []job
	for i, j := range jobs {
		children = append(children, jobsOf(j.children, i)...)
	}
	return r.read(cache, children)
}

// headRows is the number of tokens whose logits are computed at once.
const headRows = 256

// score gives the probabilities of the jobs' targets. hidden is [rows*length, D].
func (r *reading) score(hidden torch.Tensor, jobs []job, starts []int, length int) {
	var places, labels []int64
	for i, j := range jobs {
		for _, s := range j.spans {
			for k, target := range s.targets {
				places = append(places, int64(i*length+starts[i]+s.first+k))
				labels = append(labels, int64(target))
			}
		}
	}
	values := make([]float32, 0, len(places))
	greedy := make([]int64, 0, len(places))
	for at := 0; at < len(places); at += headRows {
		end := min(at+headRows, len(places))
		torch.Scoped(func() {
			device := hidden.Device()
			index := torch.From(places[at:end], end-at).ToDevice(device)
			target := torch.From(labels[at:end], end-at, 1).ToDevice(device)
			logits := r.model.Head().Logits(hidden.IndexSelect(0, index)).To(torch.Float32)
			best := logits.Argmax(1)
			chosen := logits.LogSoftmax(1).Gather(1, target)
			values = append(values, torch.Values[float32](chosen.Squeeze(1))...)
			greedy = append(greedy, torch.Values[int64](best)...)
		})
	}
	at := 0
	for _, j := range jobs {
		for _, s := range j.spans {
			sum, all := 0.0, true
			for range s.targets {
				sum += float64(values[at])
				all = all && greedy[at] == labels[at]
				at++
			}
			r.result(s.request, len(s.targets), sum, all)
		}
	}
}
