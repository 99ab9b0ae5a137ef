package serve

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"conquer/lora"
	"conquer/model"
	"conquer/torch"
)

var (
	errQueueFull = errors.New("too many requests are waiting: try again later")
	errStopping  = errors.New("the server is stopping")
)

// scheduler runs all requests on one model. In each round it reads a piece of prompts, then decodes
// one token for every request whose prompt has been read. Requests join and leave between rounds.
// One goroutine runs the model.
type scheduler struct {
	model   model.Model
	reader  *reader
	slots   *slots
	active  []*task // those that are decoded, by row of slots
	metrics *metrics
	used    []*lora.Adapter // those that the next pass takes

	mutex    sync.Mutex
	calls    []func() // to run between two rounds
	ended    bool     // nothing runs calls any more
	queue    []*task  // in order of arrival
	most     int      // length of the queue
	stopping bool
	wake     chan struct{} // capacity 1
	stop     chan struct{} // closed: cancel what is left
	stopped  chan struct{} // closed when the goroutine has ended
}

func newScheduler(m model.Model, l Limits, queue int, metrics *metrics) (*scheduler, error) {
	s := &scheduler{model: m, most: queue, metrics: metrics, wake: make(chan struct{}, 1),
		stop: make(chan struct{}), stopped: make(chan struct{})}
	err := torch.Run(func() error {
		s.slots = newSlots(m, l.Sequences, l.Length)
		s.reader = newReader(m, l, metrics)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("making room for %d sequences of %d tokens: %w", l.Sequences,
			l.Length, err)
	}
	go s.run()
	return s, nil
}

// submit puts tasks into the queue, all or none.
func (s *scheduler) submit(tasks ...*task) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case s.stopping:
		return errStopping
	case len(s.queue)+len(tasks) > s.most:
		return errQueueFull
	}
	for _, t := range tasks {
		t.queued = time.Now()
	}
	s.queue = append(s.queue, tasks...)
	s.metrics.waiting.Set(float64(len(s.queue)))
	s.signal()
	return nil
}

func (s *scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// shutdown refuses new tasks, waits until all others have ended or ctx has, cancels what is left
// then, and frees the caches.
func (s *scheduler) shutdown(ctx context.Context) error {
	s.mutex.Lock()
	first := !s.stopping
	s.stopping = true
	s.mutex.Unlock()
	s.signal()
	select {
	case <-s.stopped:
		return nil
	case <-ctx.Done():
	}
	if first {
		close(s.stop)
	}
	<-s.stopped
	return ctx.Err()
}

// ending reports whether the scheduler refuses new tasks.
func (s *scheduler) ending() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.stopping
}

// run is the scheduler's goroutine.
func (s *scheduler) run() {
	defer close(s.stopped)
	defer func() {
		s.cancelAll(errStopping)
		s.mutex.Lock()
		s.ended = true
		s.mutex.Unlock()
		s.runCalls()
		s.use()
		s.reader.free()
		s.slots.free()
	}()
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		s.runCalls()
		s.next()
		if s.reader.task != nil || len(s.active) > 0 {
			s.readPiece()
			s.decode()
			continue
		}
		s.mutex.Lock()
		done := s.stopping && len(s.queue) == 0
		s.mutex.Unlock()
		if done {
			return
		}
		select {
		case <-s.wake:
		case <-s.stop:
		}
	}
}

// next drops the tasks that nobody waits for any more, and takes the next one of the queue if
// there is room for it.
func (s *scheduler) next() {
	for i := len(s.active) - 1; i >= 0; i-- {
		if err := s.active[i].ctx.Err(); err != nil {
			s.leave(i, err)
		}
	}
	if t := s.reader.task; t != nil && t.ctx.Err() != nil {
		s.reader.task = nil
		s.end(t, t.ctx.Err())
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.queue = slices.DeleteFunc(s.queue, func(t *task) bool {
		if err := t.ctx.Err(); err != nil {
			s.end(t, err)
			return true
		}
		return false
	})
	if s.reader.task == nil && len(s.queue) > 0 &&
		(len(s.active) < s.slots.rows || !s.queue[0].decodes()) {
		t := s.queue[0]
		s.queue = slices.Delete(s.queue, 0, 1)
		s.metrics.wait.Observe(time.Since(t.queued).Seconds())
		if err := guarded(func() { s.reader.begin(t) }); err != nil {
			s.reader.task = nil
			s.reader.forget()
			s.end(t, err)
		}
	}
	s.metrics.waiting.Set(float64(len(s.queue)))
}

// guarded calls f, which uses the model, and returns an error of libtorch.
func guarded(f func()) error {
	return torch.Run(func() error {
		torch.NoGrad(f)
		return nil
	})
}

// readPiece reads up to as many tokens of prompts as a piece has: a piece of one prompt, or several
// short prompts.
func (s *scheduler) readPiece() {
	for left := s.reader.piece; s.reader.task != nil; s.next() {
		n := s.reader.ahead()
		if n > left && left < s.reader.piece {
			return
		}
		left -= n
		s.read()
	}
}

// read reads a piece of the current prompt. After the last one it chooses the first token, and the
// task joins those that are decoded.
func (s *scheduler) read() {
	t := s.reader.task
	if t == nil {
		return
	}
	ended := false
	err := guarded(func() {
		if !s.reader.done() {
			s.use(t.adapterOf())
			before := len(s.reader.ids)
			s.reader.read()
			s.metrics.promptTokens.Add(float64(len(s.reader.ids) - before))
		}
		if !s.reader.done() {
			return
		}
		s.reader.task = nil
		if t.row == nil {
			ended = true
			return
		}
		s.metrics.firstToken.Observe(time.Since(t.queued).Seconds())
		s.metrics.newTokens.Inc()
		ended = t.row.Choose(s.reader.last.Clone().Squeeze(0)) != ""
		t.publish()
		if !ended {
			s.slots.copyRow(len(s.active), s.reader.cache, 0, len(s.reader.ids))
			s.active = append(s.active, t)
			s.metrics.running.Set(float64(len(s.active)))
		}
	})
	if err != nil { // what the cache holds is not known
		s.reader.task = nil
		s.reader.forget()
	}
	if err != nil || ended {
		s.end(t, err)
	}
}

// decode takes a step with all active tasks.
func (s *scheduler) decode() {
	if len(s.active) == 0 {
		return
	}
	ids, columns := make([]int64, len(s.active)), make([]int64, len(s.active))
	adapters := make([]*lora.Adapter, len(s.active))
	for i, t := range s.active {
		adapters[i] = t.adapterOf()
		ids[i], columns[i] = int64(t.row.Last()), int64(t.row.Len()-1)
	}
	began := time.Now()
	err := guarded(func() {
		take := func(i int, logits func() torch.Tensor, best int64) {
			row := s.active[i].row
			if row.Greedy() {
				row.Accept(int32(best))
				return
			}
			torch.Scoped(func() {
				row.Choose(logits().To(torch.Float32).ToDevice(torch.CPU).Clone())
			})
			s.active[i].publish()
		}
		s.slots.decode(ids, columns, func(first, count int) (adapted bool) {
			s.use(adapters[first : first+count]...)
			return s.used != nil
		}, take)
	})
	if err != nil { // the states of all rows are lost
		for i := len(s.active) - 1; i >= 0; i-- {
			s.leave(i, err)
		}
		return
	}
	s.metrics.step.Observe(time.Since(began).Seconds())
	s.metrics.newTokens.Add(float64(len(s.active)))
	for i := len(s.active) - 1; i >= 0; i-- {
		if s.active[i].row.Finished() != "" {
			s.leave(i, nil)
		}
	}
}

// leave ends an active task. The last row moves to its place.
func (s *scheduler) leave(i int, err error) {
	t, last := s.active[i], len(s.active)-1
	if moved := s.active[last]; i < last {
		failed := guarded(func() {
			s.slots.copyRow(i, s.slots.cache, last, moved.row.Len())
		})
		s.active[i] = moved
		if failed != nil {
			defer s.end(moved, failed)
			s.active = slices.Delete(s.active, i, i+1)
			last--
		}
	}
	s.active = s.active[:last]
	s.metrics.running.Set(float64(len(s.active)))
	s.end(t, err)
}

// end tells the handler that a task has ended.
func (s *scheduler) end(t *task, err error) {
	if t.row != nil {
		t.row.Interrupt()
		if err == nil {
			err = t.row.Result().Err
		}
	}
	t.end()
	t.answer.finish(err)
}

// cancelAll ends all tasks.
func (s *scheduler) cancelAll(err error) {
	if t := s.reader.task; t != nil {
		s.end(t, err)
	}
	for _, t := range s.active {
		s.end(t, err)
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, t := range s.queue {
		s.end(t, err)
	}
	s.reader.task, s.active, s.queue = nil, nil, nil
}

// decodes reports whether the task needs a row of the slots.
func (t *task) decodes() bool { return t.row != nil && t.row.Most() > 1 }
