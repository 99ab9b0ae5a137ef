package mlflow

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	interval = 20 * time.Millisecond
	closingTime, requestTime = 10*time.Minute, 10*time.Minute // on a machine that is busy, too
	m.Run()
}

// server is a tracking server that keeps what it gets.
type server struct {
	*httptest.Server
	mutex   sync.Mutex
	calls   []string
	params  map[string]string
	metrics []metric
	status  string
	auth    string
	broken  func(call string) int // the status of an answer that is an error, or 0
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{params: map[string]string{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.answer))
	t.Cleanup(s.Close)
	return s
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	call := strings.TrimPrefix(r.URL.Path, "/api/2.0/mlflow/")
	s.calls, s.auth = append(s.calls, call), r.Header.Get("Authorization")
	body, _ := io.ReadAll(r.Body)
	if s.broken != nil {
		if status := s.broken(call); status != 0 {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"error_code":"BROKEN","message":"got %s"}`, s.auth)
			return
		}
	}
	switch call {
	case "experiments/get-by-name":
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"none"}`)
	case "experiments/create":
		io.WriteString(w, `{"experiment_id":"3"}`)
	case "runs/create":
		io.WriteString(w, `{"run":{"info":{"run_id":"r1"}}}`)
	case "runs/log-batch":
		var b batch
		json.Unmarshal(body, &b)
		s.metrics = append(s.metrics, b.Metrics...)
		for _, p := range b.Params {
			s.params[p.Key] = p.Value
		}
		io.WriteString(w, "{}")
	case "runs/update":
		var u struct{ Status string }
		json.Unmarshal(body, &u)
		s.status = u.Status
		io.WriteString(w, "{}")
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func start(t *testing.T, o Options) *Run {
	t.Helper()
	r, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// steps logs a loss for each of n steps.
func steps(r *Run, n int) {
	for i := range n {
		r.Log(Metric{Key: "loss", Value: float64(i), Step: i + 1, Time: time.Now()})
	}
}

func TestRun_ReachesTheServerWhole(t *testing.T) {
	s := newServer(t)
	params := map[string]string{"long": strings.Repeat("ü", 4000)}
	for i := range 250 {
		params[fmt.Sprint("p", i)] = "v"
	}
	var id string
	r := start(t, Options{URI: s.URL, Experiment: "mine", Run: "first", Params: params,
		Token: "secret", Started: func(made string) error { id = made; return nil }})
	steps(r, 2500)
	r.Log(Metric{Key: "odd", Value: math.NaN()}, Metric{Key: "odd", Value: math.Inf(-1)})
	r.Close(Finished)
	if got := r.Messages(); len(got) > 0 || id != "r1" || s.status != Finished {
		t.Errorf("%q, run %q, %s", got, id, s.status)
	}
	if len(s.metrics) != 2502 || s.metrics[2499].Step != 2500 || s.metrics[2500].Value != "NaN" ||
		s.metrics[2501].Value != "-Infinity" {
		t.Errorf("%d metrics", len(s.metrics))
	}
	if len(s.params) != 251 || len(s.params["long"]) > 500 || s.auth != "Bearer secret" {
		t.Errorf("%d parameters, %q", len(s.params), s.auth)
	}
	for i, call := range s.calls {
		if i > 0 && call == "runs/log-batch" && slices.Contains(s.calls[i:], "runs/create") {
			t.Errorf("the calls are %v", s.calls)
		}
	}
}

func TestRun_SurvivesAServerThatFails(t *testing.T) {
	s := newServer(t)
	failures := 3
	s.broken = func(string) int {
		if failures--; failures >= 0 {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	r := start(t, Options{URI: s.URL, Experiment: "mine", User: "me", Password: "secret"})
	steps(r, 10)
	r.Close(Failed)
	got := strings.Join(r.Messages(), "\n")
	if len(s.metrics) != 10 || s.status != Failed || strings.Count(got, "\n") != 0 ||
		!strings.Contains(got, "503 Service Unavailable") || !strings.Contains(got, s.URL) {
		t.Errorf("%d metrics, %s, %q", len(s.metrics), s.status, got)
	}
}

// What the server refuses for good is lost, and what comes after it is not.
func TestRun_LosesWhatIsRefused(t *testing.T) {
	s := newServer(t)
	batches := 0
	s.broken = func(call string) int {
		if call == "runs/log-batch" {
			if batches++; batches == 1 {
				return http.StatusBadRequest
			}
		}
		return 0
	}
	r := start(t, Options{URI: s.URL, Experiment: "mine"})
	steps(r, 1500)
	r.Close(Killed)
	got := strings.Join(r.Messages(), "\n")
	if len(s.metrics) != 500 || s.status != Killed || !strings.Contains(got,
		"refused 1000 values") || !strings.Contains(got, "1000 values did not reach MLflow") {
		t.Errorf("%d metrics, %s, %q", len(s.metrics), s.status, got)
	}
}

func TestRun_ContinuesARunOrMakesANewOne(t *testing.T) {
	s := newServer(t)
	r := start(t, Options{URI: s.URL, RunID: "r0", Params: map[string]string{"a": "b"}})
	steps(r, 1)
	r.Close(Finished)
	if slices.Contains(s.calls, "runs/create") || len(s.params) > 0 || len(s.metrics) != 1 {
		t.Errorf("the calls are %v", s.calls)
	}
	gone := true
	s.broken = func(call string) int {
		if call == "runs/update" && gone {
			gone = false
			return http.StatusNotFound
		}
		return 0
	}
	r = start(t, Options{URI: s.URL, RunID: "r0"})
	r.Close(Finished)
	if got := strings.Join(r.Messages(), "\n"); !slices.Contains(s.calls, "runs/create") ||
		!strings.Contains(got, "no longer has the run r0") {
		t.Errorf("%q, the calls are %v", got, s.calls)
	}
}

// Nothing waits for a server that is not there, does not answer or is wrong, and no message has a
// password.
func TestRun_NeverWaitsForTheServer(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	wall := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-wall:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(wall) })
	refusing := newServer(t)
	refusing.broken = func(string) int { return http.StatusUnauthorized }
	for name, c := range map[string]struct{ uri, want string }{
		"gone":     {gone.URL, "refused"},
		"silent":   {silent.URL, ""},
		"refusing": {refusing.URL, "401 Unauthorized (BROKEN: got Bearer ***)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uri := strings.Replace(c.uri, "http://", "http://user:hidden@", 1)
			if name == "refusing" {
				uri = c.uri
			}
			r := start(t, Options{URI: uri, Token: "hidden"})
			r.cancelAfter(t, c.want)
			begin := time.Now()
			for range maxPending / 1000 {
				r.Log(make([]Metric, 1000)...)
			}
			steps(r, 7)
			r.Close(Finished)
			if took := time.Since(begin); took > 5*time.Minute { // a request may take ten
				t.Errorf("it took %v", took)
			}
			got := strings.Join(r.Messages(), "\n")
			if !strings.Contains(got, c.want) || strings.Contains(got, "hidden") ||
				!strings.Contains(got, fmt.Sprint(maxPending+7, " values did not reach MLflow at ",
					c.uri)) {
				t.Errorf("the messages are %q", got)
			}
		})
	}
}

// cancelAfter ends the time that Close waits a second after there is a message that contains text.
func (r *Run) cancelAfter(t *testing.T, text string) {
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	go func() {
		for said := text == ""; !said; {
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Millisecond):
			}
			r.mutex.Lock()
			said = strings.Contains(strings.Join(r.messages, "\n"), text)
			r.mutex.Unlock()
		}
		select {
		case <-ended:
		case <-time.After(time.Second):
			r.cancel()
		}
	}()
}

func TestStart_RefusesWhatIsNoServer(t *testing.T) {
	for _, uri := range []string{"", "mlruns", "file:///mlruns", "sqlite:///x.db", "databricks",
		"http://", "ftp://u:hidden@h", "http://u:hidden@h:x y"} {
		_, err := Start(Options{URI: uri})
		if err == nil || strings.Contains(err.Error(), "hidden") ||
			!strings.Contains(err.Error(), "http://localhost:5000") {
			t.Errorf("%q: %v", uri, err)
		}
	}
	if got, err := Address("https://u:p@host/base/?q#f"); got != "https://host/base" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
