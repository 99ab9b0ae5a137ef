package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// mlflowServer records what an MLflow server gets.
type mlflowServer struct {
	mutex  sync.Mutex
	params map[string]string
	steps  map[string][]int // by name of the metric
	states []string
	calls  []string
}

func (s *mlflowServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var body struct {
		Metrics []struct {
			Key  string
			Step int
		}
		Params []struct{ Key, Value string }
		Status string
	}
	json.NewDecoder(r.Body).Decode(&body)
	for _, m := range body.Metrics {
		s.steps[m.Key] = append(s.steps[m.Key], m.Step)
	}
	for _, p := range body.Params {
		s.params[p.Key] = p.Value
	}
	if body.Status != "" {
		s.states = append(s.states, body.Status)
	}
	s.calls = append(s.calls, strings.TrimPrefix(r.URL.Path, "/api/2.0/mlflow/"))
	io.WriteString(w, `{"experiment":{"experiment_id":"1"},"run":{"info":{"run_id":"r1"}}}`)
}

// A run and its continuation are one run of the server, with all steps. A run that fails says so.
func TestTrain_LogsToMLflow(t *testing.T) {
	s := &mlflowServer{params: map[string]string{}, steps: map[string][]int{}}
	server := httptest.NewServer(s)
	defer server.Close()
	base := writeModel(t, 704, true)
	out := filepath.Join(t.TempDir(), "out")
	uri := strings.Replace(server.URL, "http://", "http://me:hidden@", 1)
	flags := []string{"--mlflow", uri, "--save_at_end", "--validation_fraction", "1"}
	mustTune(t, base, out, flags...)
	t.Setenv("MLFLOW_TRACKING_URI", uri)
	stderr, code := tune(t, base, out, append(flags[2:], "--resume", "--steps", "4")...)
	if code != 0 || !strings.Contains(stderr, "logging to MLflow at "+server.URL) ||
		strings.Contains(stderr, "hidden") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if !slices.Equal(s.steps["loss"], []int{1, 2, 3, 4}) || len(s.steps["validation_loss"]) < 3 {
		t.Errorf("the steps are %v", s.steps)
	}
	if want := []string{"FINISHED", "RUNNING", "FINISHED"}; !slices.Equal(s.states, want) {
		t.Errorf("the states are %v", s.states)
	}
	if s.params["steps"] != "2" || s.params["model_path"] != base || s.params["mlflow"] != "" {
		t.Errorf("the parameters are %v", s.params)
	}
	if n := strings.Count(strings.Join(s.calls, " "), "runs/create"); n != 1 {
		t.Errorf("%d runs were made", n)
	}
	if text, err := os.ReadFile(filepath.Join(out, "mlflow.json")); err != nil ||
		string(text) != `{"server":"`+server.URL+`","run_id":"r1"}`+"\n" {
		t.Errorf("%v: %s", err, text)
	}
	stderr, code = tune(t, base, filepath.Join(t.TempDir(), "bad"), "--steps", "9",
		"--learning_rate", "1e30", "--clip", "0", "--schedule", "constant")
	if code != 1 || s.states[len(s.states)-1] != "FAILED" {
		t.Errorf("exit %d, %v: %s", code, s.states, stderr)
	}
	for _, c := range []struct {
		variable string
		args     []string
		want     string
	}{
		{"", []string{"--mlflow", "mlruns"}, "--mlflow: mlruns is not the address"},
		{"file:///mlruns", nil, "MLFLOW_TRACKING_URI: file:///mlruns is not the address"},
		{"", []string{"--mlflow_run", "x"}, "need --mlflow"},
	} {
		t.Setenv("MLFLOW_TRACKING_URI", c.variable)
		stderr, code := tune(t, base, filepath.Join(t.TempDir(), "none"), c.args...)
		if code != 2 || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit %d: %s", c, code, stderr)
		}
	}
}
