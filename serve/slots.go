package serve

import (
	"conquer/model"
	"conquer/torch"
)

// slots is the cache of the requests that are decoded together, a row for each, and the steps over
// it. Each row has a length of its own. The used rows are the first ones.
type slots struct {
	model model.Model
	cache *model.Cache
	rows  int
	steps map[[2]int]*step // by first row and number of rows
}

// cpuRows is the most rows of one pass on the CPU. For so few rows its kernels compute each row as
// they compute it alone, in float32. GEMMs of many rows do not.
const cpuRows = 16

func newSlots(m model.Model, rows, capacity int) *slots {
	return &slots{model: m, rows: rows, steps: map[[2]int]*step{},
		cache: m.NewCache(rows, capacity, model.DType(m), model.Device(m))}
}

func (s *slots) free() {
	for _, step := range s.steps {
		step.free()
	}
	s.cache.Free()
}

// copyRow copies length columns and the states of a row of another cache.
func (s *slots) copyRow(row int, from *model.Cache, fromRow, length int) {
	s.cache.CopyColumns(row, 0, from, fromRow, 0, length)
	s.cache.CopyStates(row, from, fromRow)
}

// decode reads the newest token of each used row, at its column. Before a pass over some rows it
// calls begin, which sets the adapters and reports whether there are any. After it, it calls take
// for each row, with a function for the logits [V] of the next token, in the model's dtype, and
// their argmax, which is -1 if they are not numbers.
func (s *slots) decode(ids, columns []int64, begin func(first, count int) (adapted bool),
	take func(row int, logits func() torch.Tensor, best int64)) {
	for first := 0; first < len(ids); {
		used, padded := s.pass(len(ids) - first)
		step := s.step(first, padded)
		torch.Scoped(func() {
			step.run(ids[first:first+used], columns[first:first+used], begin(first, used))
			for i, best := range torch.Values[int64](step.best)[:used] {
				take(first+i, func() torch.Tensor { return step.logits.Select(0, i) }, best)
			}
		})
		first += used
	}
}

// pass returns how many of n rows the next pass takes, and how many it computes. On a GPU that is a
// power of two, or all rows, so that few graphs are recorded.
func (s *slots) pass(n int) (used, padded int) {
	if !model.Device(s.model).IsCUDA() {
		n = min(n, cpuRows)
		return n, n
	}
	for padded = 1; padded < n; {
		padded *= 2
	}
	return n, min(padded, s.rows)
}

// step returns the step over some rows.
func (s *slots) step(first, count int) *step {
	key := [2]int{first, count}
	if s.steps[key] == nil {
		s.steps[key] = newStep(s.model, s.cache, first, count)
	}
	return s.steps[key]
}

// step decodes one token for some rows of the cache. On a GPU it is recorded.
type step struct {
	model        model.Model
	cache        *model.Cache // views of the rows
	ids          torch.Tensor // int64 [B,1]: the newest tokens
	logits, best torch.Tensor // [B,V], and int64 [B]: their argmax
	forward      func()
	capture      *torch.Capture
}

func newStep(m model.Model, cache *model.Cache, first, count int) *step {
	s := &step{model: m}
	device := model.Device(m)
	torch.Scoped(func() {
		s.cache = cache.Rows(first, count).Own()
		s.ids = torch.Zeros([]int{count, 1}, torch.Int64, device).Own()
		s.cache.Position = torch.Zeros([]int{count}, torch.Int64, device).Own()
		s.best = torch.Zeros([]int{count}, torch.Int64, device).Own()
		s.logits = torch.Zeros([]int{count, m.Head().Shape[0]}, model.DType(m), device).Own()
	})
	s.forward = func() {
		logits := model.LastLogits(m, model.Sequence{IDs: s.ids, Cache: s.cache})
		s.logits.Copy(logits)
		s.best.Copy(torch.Choose(logits, torch.Tensor{}, torch.Tensor{}, torch.Sampling{}))
	}
	s.capture = torch.NewCapture(device, s.forward)
	return s
}

// run reads a token for each of the first rows. The others read token 0 at column 0. A recorded
// step has no adapters: those with adapters are launched operation by operation.
func (s *step) run(ids, columns []int64, adapted bool) {
	count := s.ids.Size(0)
	device := s.ids.Device()
	padding := make([]int64, count-len(ids))
	s.ids.Copy(torch.From(append(append([]int64{}, ids...), padding...), count, 1).ToDevice(device))
	s.cache.Position.Copy(torch.From(append(append([]int64{}, columns...), padding...),
		count).ToDevice(device))
	if adapted {
		torch.Scoped(s.forward)
		return
	}
	s.capture.Run()
}

func (s *step) free() {
	s.capture.Free()
	for _, t := range []*torch.Tensor{&s.ids, &s.cache.Position, &s.logits, &s.best} {
		t.Free()
	}
	s.cache.Free()
}
