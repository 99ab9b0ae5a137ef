package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serving starts conquer serve on a free port and returns its address.
func serving(t *testing.T, more ...string) (c *exec.Cmd, address string, stderr *bufio.Scanner) {
	t.Helper()
	args := append([]string{"serve", "--model_path", writeModel(t, 704, true), "--device", "cpu",
		"--port", "0"}, more...)
	c = exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), programVariable+"=1", "OMP_NUM_THREADS=1")
	pipe, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill() })
	stderr = bufio.NewScanner(pipe)
	for stderr.Scan() {
		if _, address, ok := strings.Cut(stderr.Text(), "conquer serve: model at "); ok {
			return c, address, stderr
		}
	}
	t.Fatal("the server did not print its address")
	return
}

// The server answers; SIGTERM lets a running request end and then ends the program with success.
func TestServe_AnswersUntilItIsStopped(t *testing.T) {
	key := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(key, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, address, stderr := serving(t, "--api_key_file", key, "--max_sequences", "2")
	ask := func(body string) (*http.Response, error) {
		r, err := http.NewRequest("POST", address+"/v1/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer secret")
		return http.DefaultClient.Do(r)
	}
	r, err := http.Get(address + "/v1/models")
	if err != nil || r.StatusCode != http.StatusUnauthorized {
		t.Fatalf("without a key: %v, %v", r, err)
	}
	r, err = ask(`{"prompt": "hello", "max_tokens": 200, "ignore_eos": true, "stream": true}`)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", r, err)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r.Body)
	if err != nil || !strings.HasSuffix(string(text), "data: [DONE]\n\n") {
		t.Errorf("the running request ended with %v, %.200q", err, text)
	}
	var said []string
	for stderr.Scan() {
		said = append(said, stderr.Text())
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%v: %q", err, said)
		}
	case <-time.After(time.Minute):
		t.Error("the program still runs")
	}
	if !strings.Contains(fmt.Sprint(said), "stopping") {
		t.Errorf("it said %q", said)
	}
}

func TestServe_RefusesWhatCannotBe(t *testing.T) {
	dir := writeModel(t, 704, true)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--port", "70000"}, 2, "--port is 70000"},
		{[]string{"--max_length", "-1"}, 2, "--max_length is negative"},
		{[]string{"--tls_cert", "x.pem"}, 2, "--tls_key"},
		{[]string{"--tls_cert", "x.pem", "--tls_key", "y.pem"}, 1, "x.pem"},
		{[]string{"--api_key_file", "none"}, 1, "--api_key_file"},
		{[]string{"--host", "256.0.0.1"}, 1, "256.0.0.1"},
		{[]string{"--cors_origin", "example.org"}, 1, "example.org"},
		{[]string{"--max_length", "100000"}, 1, "the model's context of 256"},
		{[]string{"--cache_memory", "0.000001"}, 1, "may be used"},
		{[]string{"question"}, 2, "unexpected"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"serve", "--model_path", dir, "--port",
			"0", "--device", "cpu"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("%q: exit %d, %s", c.args, code, stderr)
		}
	}
}
