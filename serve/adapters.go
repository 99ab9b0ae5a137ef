package serve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"

	"conquer/lora"
	"conquer/torch"
)

// Adapter is a LoRA adapter that requests can name as their model.
type Adapter struct {
	Name string
	Path string // a folder in PEFT's format
}

// adapter is an adapter that was read. Requests that began with it keep it when its name is given
// up.
type adapter struct {
	Adapter
	layers *lora.Adapter
	number int // 1 for the first that was read; 0 is the model without one
	uses   int // requests, and one for the name; guarded by adapters.mutex
}

// maxAdapters is the most adapters that have a name at a time.
const maxAdapters = 256

// adapters are those that requests can name.
type adapters struct {
	scheduler *scheduler
	mutex     sync.Mutex
	named     map[string]*adapter
	all       map[*adapter]bool // also those whose name was given up, until they are freed
	made      int
}

func newAdapters(s *scheduler) *adapters {
	return &adapters{scheduler: s, named: map[string]*adapter{}, all: map[*adapter]bool{}}
}

// free frees all adapters once the scheduler has stopped.
func (a *adapters) free() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	for one := range a.all {
		one.layers.Free()
	}
	a.all, a.named = map[*adapter]bool{}, map[string]*adapter{}
}

var errNameTaken = errors.New("the name is taken")

// load reads an adapter and gives it a name.
func (a *adapters) load(ctx context.Context, which Adapter, taken string) error {
	a.mutex.Lock()
	full := len(a.named) >= maxAdapters
	used := a.named[which.Name] != nil || which.Name == taken
	a.mutex.Unlock()
	switch {
	case which.Name == "" || which.Path == "":
		return errors.New("an adapter needs a name and a path")
	case used:
		return fmt.Errorf("the adapter %q: %w", which.Name, errNameTaken)
	case full:
		return fmt.Errorf("there are %d adapters already: unload one first", maxAdapters)
	}
	var layers *lora.Adapter
	var err error
	if failed := a.scheduler.do(ctx, func() {
		layers, err = lora.Read(a.scheduler.model, which.Path)
	}); failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("the adapter %q: %w", which.Name, err)
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.made++
	read := &adapter{Adapter: which, layers: layers, number: a.made, uses: 1}
	a.all[read] = true
	if a.named[which.Name] != nil { // another request was faster
		a.releaseLocked(read)
		return fmt.Errorf("the adapter %q: %w", which.Name, errNameTaken)
	}
	a.named[which.Name] = read
	return nil
}

// unload gives up a name. It reports whether there was such an adapter.
func (a *adapters) unload(name string) bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	known := a.named[name]
	if known == nil {
		return false
	}
	delete(a.named, name)
	a.releaseLocked(known)
	return true
}

// use gives tasks the adapter of a name. It reports whether there is such an adapter.
func (a *adapters) use(name string, tasks []*task) bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	known := a.named[name]
	if known == nil {
		return false
	}
	known.uses += len(tasks)
	for _, t := range tasks {
		t.adapter, t.ended = known, func() { a.release(known) }
	}
	return true
}

// release ends a use.
func (a *adapters) release(used *adapter) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.releaseLocked(used)
}

func (a *adapters) releaseLocked(used *adapter) {
	if used.uses--; used.uses > 0 {
		return
	}
	go a.scheduler.do(context.Background(), func() { // else free does it
		used.layers.Free()
		a.mutex.Lock()
		defer a.mutex.Unlock()
		delete(a.all, used)
	})
}

// list returns the adapters in the order of their names.
func (a *adapters) list() (all []Adapter) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	for _, name := range slices.Sorted(maps.Keys(a.named)) {
		all = append(all, a.named[name].Adapter)
	}
	return all
}

// has reports whether there is an adapter of a name.
func (a *adapters) has(name string) bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.named[name] != nil
}

// adapterRequest is the body of /v1/load_lora_adapter and /v1/unload_lora_adapter.
type adapterRequest struct {
	Name string `json:"lora_name"`
	Path string `json:"lora_path"`
}

// loadAdapter answers /v1/load_lora_adapter.
func (s *Server) loadAdapter(w http.ResponseWriter, r *http.Request) {
	var q adapterRequest
	err := s.decode(w, r, &q)
	if err == nil {
		err = s.adapters.load(r.Context(), Adapter(q), s.options.Model)
		if err != nil && !errors.Is(err, errStopping) && r.Context().Err() == nil {
			err = invalid("lora_path", "%v", err)
		}
	}
	s.adapterChanged(w, err, fmt.Sprintf("Success: the adapter %q can be used.", q.Name))
}

// unloadAdapter answers /v1/unload_lora_adapter.
func (s *Server) unloadAdapter(w http.ResponseWriter, r *http.Request) {
	var q adapterRequest
	err := s.decode(w, r, &q)
	if err == nil && !s.adapters.unload(q.Name) {
		err = s.noModel(q.Name)
	}
	s.adapterChanged(w, err, fmt.Sprintf("Success: the adapter %q is gone.", q.Name))
}

func (s *Server) adapterChanged(w http.ResponseWriter, err error, text string) {
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, text)
}

// number is the number of the task's adapter, 0 without one.
func (t *task) number() int {
	if t.adapter == nil {
		return 0
	}
	return t.adapter.number
}

// end tells that the adapter is not needed any more.
func (t *task) end() {
	if t.ended != nil {
		t.ended()
		t.ended = nil
	}
}

// adapterOf is the adapter of a task for a pass.
func (t *task) adapterOf() *lora.Adapter {
	if t.adapter == nil {
		return nil
	}
	return t.adapter.layers
}

// submit puts the tasks of a request for a model into the queue. They end when the client leaves.
func (s *Server) submit(r *http.Request, model string, tasks []*task) error {
	for _, t := range tasks {
		t.ctx = r.Context()
	}
	if model != "" && model != s.options.Model && !s.adapters.use(model, tasks) {
		return s.noModel(model)
	}
	err := s.scheduler.submit(tasks...)
	if err != nil {
		for _, t := range tasks {
			t.end()
		}
	}
	return err
}

// use makes the following passes take adapters, one for each row.
func (s *scheduler) use(rows ...*lora.Adapter) {
	if !slices.ContainsFunc(rows, func(a *lora.Adapter) bool { return a != nil }) {
		rows = nil
	}
	if !slices.Equal(rows, s.used) {
		lora.Use(s.model, rows...)
		s.used = slices.Clone(rows)
	}
}

// do runs f between two rounds, on the goroutine that runs the model, and waits for it. f must not
// panic except with errors of libtorch, which are returned.
func (s *scheduler) do(ctx context.Context, f func()) error {
	done := make(chan error, 1)
	s.mutex.Lock()
	if s.ended {
		s.mutex.Unlock()
		return errStopping
	}
	s.calls = append(s.calls, func() {
		done <- torch.Run(func() error { f(); return nil })
	})
	s.mutex.Unlock()
	s.signal()
	select {
	case err := <-done:
		return err
	case <-ctx.Done(): // f still runs
		return ctx.Err()
	}
}

// runCalls runs what do was asked for.
func (s *scheduler) runCalls() {
	s.mutex.Lock()
	calls := s.calls
	s.calls = nil
	s.mutex.Unlock()
	for _, call := range calls {
		call()
	}
}
