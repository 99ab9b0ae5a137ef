// Package mlflow sends what a program measures to an MLflow tracking server, over MLflow's REST
// interface. Nothing that a caller does waits for the server, except Close for a bounded time.
package mlflow

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Options say what a run is logged as, and where.
type Options struct {
	// URI is the server's address, with http or https. A user and a password in it, or else those
	// below, or else the token, are sent to it alone.
	URI, User, Password, Token string

	Experiment string // is made if there is none of this name
	Run        string // name of a new run; "" lets the server choose
	// RunID, if not empty, is a run to continue. If the server no longer has it, a new run is made.
	RunID string
	// Params are the parameters of a new run, and Tags its tags.
	Params, Tags map[string]string
	// Started, if not nil, is called with the id of the run when the server has made or found it.
	// It is called on a goroutine of the Run.
	Started func(id string) error
}

// The states in which a run can end.
const (
	Finished = "FINISHED"
	Failed   = "FAILED"
	Killed   = "KILLED"
)

// Limits of what waits for a server, and of the server's requests.
const (
	maxPending = 100_000 // metrics that wait
	maxMetrics = 1000    // of a request
	maxParams  = 100     // of a request
	maxKey     = 250     // bytes of a name
	maxValue   = 500     // bytes of a parameter
	maxBackOff = time.Minute
)

// closingTime is how long Close waits for the server.
var closingTime = 10 * time.Second // tests raise it

// interval is how long metrics wait for others to be sent with, and the shortest pause after a
// failure.
var interval = time.Second

// Metric is a value that a run had after a step.
type Metric struct {
	Key   string
	Value float64
	Step  int
	Time  time.Time
}

// Run is a run that is being logged. Its methods may be called from one goroutine at a time.
type Run struct {
	client  *client
	address string // without a password
	options Options
	wake    chan struct{} // has one element if the worker has something to do
	done    chan struct{} // is closed when the worker has ended
	closing chan struct{} // is closed by Close
	cancel  context.CancelFunc

	mutex    sync.Mutex
	pending  []Metric
	lost     int      // metrics that were dropped
	messages []string // for Messages
	status   string   // set by Close
	ended    bool     // the server knows the status
}

// Start begins to log a run. It returns an error only if the options are wrong: the server is asked
// later.
func Start(o Options) (*Run, error) {
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Run{client: c, address: c.base.String(), options: o, cancel: cancel,
		wake: make(chan struct{}, 1), done: make(chan struct{}), closing: make(chan struct{})}
	r.wake <- struct{}{}
	go r.work(ctx)
	return r, nil
}

// Log takes metrics, which are sent later. If too many wait already, they are lost.
func (r *Run) Log(metrics ...Metric) {
	r.mutex.Lock()
	free := min(len(metrics), maxPending-len(r.pending))
	r.pending = append(r.pending, metrics[:free]...)
	r.lost += len(metrics) - free
	r.mutex.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Messages returns what there is to say about the server since the last call.
func (r *Run) Messages() []string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	list := r.messages
	r.messages = nil
	return list
}

// Close ends the run with a status. It waits at most ten seconds for the server.
func (r *Run) Close(status string) {
	r.mutex.Lock()
	r.status = status
	r.mutex.Unlock()
	close(r.closing)
	timer := time.AfterFunc(closingTime, r.cancel)
	<-r.done
	timer.Stop()
	r.cancel()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	switch lost := r.lost + len(r.pending); {
	case lost > 0:
		r.say("%d values did not reach MLflow at %s", lost, r.address)
	case !r.ended:
		r.say("the end of the run did not reach MLflow at %s, where it stays in the state RUNNING",
			r.address)
	}
}

// say adds a message. The caller holds the mutex.
func (r *Run) say(format string, args ...any) {
	r.messages = append(r.messages, fmt.Sprintf(format, args...))
}

// work talks to the server until the run has ended or ctx is canceled.
func (r *Run) work(ctx context.Context) {
	defer close(r.done)
	w := worker{Run: r, id: r.options.RunID}
	wait, reached := time.Duration(0), true
	for ctx.Err() == nil {
		if wait == 0 {
			select {
			case <-r.wake:
			case <-r.closing:
			}
			wait = interval // more metrics come together
		}
		select {
		case <-ctx.Done():
		case <-r.closing:
		case <-time.After(wait):
		}
		closing := false
		select {
		case <-r.closing:
			closing = true
		default:
		}
		err := w.send(ctx, closing)
		switch {
		case err == nil && closing:
			return
		case err == nil:
			if !reached {
				r.mutex.Lock()
				r.say("MLflow at %s answers again", r.address)
				r.mutex.Unlock()
			}
			wait, reached = 0, true
			continue
		case reached:
			r.mutex.Lock()
			r.say("MLflow at %s does not take the run's metrics: %v; the run goes on, and up to "+
				"%d values wait for the server", r.address, err, maxPending)
			r.mutex.Unlock()
		}
		reached = false
		if closing { // the rest of the closing time, in short pauses, if that may help
			var refused *refusal
			if errors.As(err, &refused) && refused.status < 500 {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(interval):
			}
		}
		wait = min(maxBackOff, 2*max(wait, interval))
	}
}

// worker is what only the worker knows.
type worker struct {
	*Run
	id     string // of the run on the server
	opened bool   // the server has the run, in the state RUNNING
	params []param
}

// send sends what waits and, if closing is set, the end of the run. What is not sent stays.
func (w *worker) send(ctx context.Context, closing bool) error {
	if !w.opened {
		if err := w.open(ctx); err != nil {
			return err
		}
	}
	for len(w.params) > 0 {
		n := min(maxParams, len(w.params))
		if err := w.batch(ctx, batch{Params: w.params[:n]}); err != nil {
			return err
		}
		w.params = w.params[n:]
	}
	for {
		w.mutex.Lock()
		n := min(maxMetrics, len(w.pending))
		list := w.pending[:n:n]
		w.mutex.Unlock()
		if n == 0 {
			break
		}
		if err := w.batch(ctx, batch{Metrics: metricsOf(list)}); err != nil {
			return err
		}
		w.mutex.Lock()
		if w.pending = w.pending[n:]; len(w.pending) == 0 {
			w.pending = nil // frees what was sent
		}
		w.mutex.Unlock()
	}
	if !closing {
		return nil
	}
	if err := w.client.update(ctx, w.id, w.status, time.Now()); err != nil {
		return err
	}
	w.mutex.Lock()
	w.ended = true
	w.mutex.Unlock()
	return nil
}

// open makes the run, or continues it.
func (w *worker) open(ctx context.Context) error {
	if w.id != "" {
		err := w.client.update(ctx, w.id, "RUNNING", time.Time{})
		switch {
		case err == nil:
			return w.begun()
		case !missing(err):
			return err
		}
		w.mutex.Lock()
		w.say("MLflow at %s no longer has the run %s: a new one is made", w.address, w.id)
		w.mutex.Unlock()
		w.id = ""
	}
	experiment, err := w.client.experiment(ctx, w.options.Experiment)
	if err != nil {
		return err
	}
	if w.id, err = w.client.create(ctx, experiment, w.options); err != nil {
		return err
	}
	w.params = paramsOf(w.options.Params)
	return w.begun()
}

func (w *worker) begun() error {
	w.opened = true
	if w.options.Started == nil {
		return nil
	}
	if err := w.options.Started(w.id); err != nil {
		w.mutex.Lock()
		w.say("the id of the run on MLflow cannot be kept: %v", err)
		w.mutex.Unlock()
	}
	return nil
}

// batch sends a batch. One that the server refuses for what it holds is lost, and others go on.
func (w *worker) batch(ctx context.Context, b batch) error {
	b.Run = w.id
	err := w.client.post(ctx, "runs/log-batch", b, nil)
	var refused *refusal
	if !errors.As(err, &refused) || !refused.permanent() {
		return err
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.say("MLflow at %s refused %d values: %v", w.address, len(b.Params)+len(b.Metrics), err)
	w.lost += len(b.Params) + len(b.Metrics)
	return nil
}

// Address returns the address of a server as messages have it, without user and password. It
// returns an error if uri is not one.
func Address(uri string) (string, error) {
	u, err := parse(uri)
	if err != nil {
		return "", err
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String(), nil
}

func parse(uri string) (*url.URL, error) {
	u, err := url.Parse(uri)
	switch {
	case err != nil: // its text would hold a password
		return nil, errors.New("this is not an address of an MLflow server: expected one such as " +
			"http://localhost:5000")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("%s is not the address of an MLflow server: expected one such as "+
			"http://localhost:5000; for files, start one with mlflow server --backend-store-uri",
			u.Redacted())
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	return u, nil
}
