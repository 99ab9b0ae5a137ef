package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"conquer/generate"
	"conquer/model"
	"conquer/text/tokenizer"
)

// serving starts a server with a small random model.
func serving(t testing.TB, change func(*Options)) (*Server, *httptest.Server) {
	t.Helper()
	return servingWith(t, smollm(t), 300, change)
}

// servingWith is serving with a tokenizer and a length of requests.
func servingWith(t testing.TB, tok *tokenizer.Tokenizer, length int, change func(*Options)) (
	*Server, *httptest.Server) {
	t.Helper()
	m := tiny(t, "llama", model.Config{"vocab_size": 704.0})
	l, err := Fit(m, 0, Limits{Sequences: 4, Length: length, Piece: 32})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Model: "tiny", Limits: l, Defaults: generate.Options{Temperature: 1}}
	if change != nil {
		change(&o)
	}
	s, err := New(m, tok, o)
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.Close()
		s.Shutdown(context.Background())
	})
	return s, h
}

// post sends a body and returns the status and the decoded answer.
func post(t testing.TB, url, body string) (int, map[string]any) {
	t.Helper()
	r, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("%s: content type %q", body, got)
	}
	answer := map[string]any{}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return r.StatusCode, answer
}

// at returns the member of an answer behind a path such as choices.0.text.
func at(t testing.TB, answer any, path string) any {
	t.Helper()
	for name := range strings.SplitSeq(path, ".") {
		switch v := answer.(type) {
		case map[string]any:
			answer = v[name]
		case []any:
			i := 0
			if _, err := fmt.Sscan(name, &i); err != nil || i >= len(v) {
				t.Fatalf("%s: no element %s of %d", path, name, len(v))
			}
			answer = v[i]
		default:
			t.Fatalf("%s: %s is below %v", path, name, v)
		}
	}
	return answer
}

// scoring is what lm-eval sends to score one-token continuations of four prompts at once.
// The rules that lm-eval needs: an entry for each token of the prompt and the generated one, the
// first null, and equal numbers where the token is the most likely one.
// A stop string that is the text of a special token ends the answer at the token, and no answer
// holds its stop string.
// streamed sends a body and returns the events' data.
// The pieces of a stream give the text of the plain answer, and clients find in it what they need:
// one id, roles first, empty choices beside the usage, no member "error".
// A client that leaves frees its place.
func TestServer_ForgetsClientsThatLeave(t *testing.T) {
	s, h := serving(t, func(o *Options) { o.Limits.Sequences = 1 })
	for _, stream := range []string{"false", "true"} {
		ctx, cancel := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "POST", h.URL+"/v1/completions", strings.NewReader(
			`{"prompt": "a", "max_tokens": 290, "ignore_eos": true, "n": 20, "stream": `+
				stream+`}`))
		done := make(chan error, 1)
		go func() {
			answer, err := http.DefaultClient.Do(r)
			if err == nil {
				_, err = io.ReadAll(answer.Body)
				answer.Body.Close()
			}
			done <- err
		}()
		time.Sleep(30 * time.Millisecond)
		cancel()
		if err := <-done; err == nil {
			t.Error("the request ended before it was cancelled")
		}
		for range 500 {
			s.scheduler.mutex.Lock()
			left := len(s.scheduler.queue)
			s.scheduler.mutex.Unlock()
			if left == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		status, answer := post(t, h.URL+"/v1/completions", `{"prompt": "a", "max_tokens": 2}`)
		if status != http.StatusOK {
			t.Errorf("after a client left: %d %v", status, answer)
		}
	}
}

// Every mistake gets a status, a message and the field's name in OpenAI's form.
func TestServer_AnswersMistakesInOpenAIsForm(t *testing.T) {
	_, h := serving(t, func(o *Options) { o.MaxBody = 4000 })
	long := strings.Repeat("1,", 300) + "1"
	for _, c := range []struct {
		path, body string
		status     int
		param      any
		says       string
	}{
		{"completions", `{"prompt": "a", "best_of": 2}`, 400, "best_of", "best_of"},
		{"completions", `{"prompt": "a", "model": "other"}`, 404, "model", `has "tiny"`},
		{"completions", `{"prompt": "a", "frobnicate": 1}`, 400, "frobnicate", "frobnicate"},
		{"completions", `{"prompt": "a", "max_tokens": "many"}`, 400, "max_tokens", "an integer"},
		{"completions", `{"prompt": "a", "max_tokens": 0}`, 400, nil, "max_new_tokens is 0"},
		{"completions", `{"prompt": "a", "n": 0}`, 400, "n", "expected 1"},
		{"completions", `{"prompt": "a", "n": 1000}`, 400, "n", "expected 1"},
		{"completions", `{"prompt": [], "n": 1}`, 400, "prompt", "not empty"},
		{"completions", `{"prompt": {}}`, 400, "prompt", "expected a text"},
		{"completions", `{}`, 400, "prompt", "expected a text"},
		{"completions", `{"prompt": [[1, 999]]}`, 400, nil, "999"},
		{"completions", `{"prompt": [-1]}`, 400, nil, "-1"},
		{"completions", `{"prompt": [` + long + `]}`, 400, nil, "301 tokens"},
		{"completions", `{"prompt": "a", "temperature": -1}`, 400, nil, "temperature"},
		{"completions", `{"prompt": "a", "logprobs": 99}`, 400, "logprobs", "0 to 20"},
		{"completions", `{"prompt": "a", "logit_bias": {"x": 1}}`, 400, "logit_bias", "token id"},
		{"completions", `{"prompt": "a", "logit_bias": {"9999": 1}}`, 400, nil, "9999"},
		{"completions", `{"prompt": "a", "stop": ""}`, 400, nil, "stop string is empty"},
		{"completions", `{"prompt": "a"} {}`, 400, nil, "more than one"},
		{"completions", `prompt=a`, 400, nil, "not a JSON object"},
		{"completions", `{"prompt": "` + strings.Repeat("a", 5000) + `"}`, 413, nil, "4000 bytes"},
		{"chat/completions", `{"messages": []}`, 400, "messages", "empty"},
		{"chat/completions", `{"messages": [{"role": "user", "content": "a"}], "audio": {}}`,
			400, "audio", "audio"},
		{"chat/completions", `{"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}`,
			400, "top_logprobs", "logprobs true"},
		{"embeddings", `{"input": "a", "encoding_format": "int8"}`, 400, "encoding_format",
			"base64"},
		{"embeddings", `{"input": []}`, 400, "prompt", "not empty"},
		{"nothing", `{}`, 404, nil, "/v1/nothing"},
	} {
		status, answer := post(t, h.URL+"/v1/"+c.path, c.body)
		message, _ := at(t, answer, "error.message").(string)
		if status != c.status || at(t, answer, "error.param") != c.param ||
			!strings.Contains(message, c.says) || at(t, answer, "error.type") !=
			"invalid_request_error" {
			t.Errorf("%s %.80s: %d %v", c.path, c.body, status, answer)
		}
	}
	r, err := http.Get(h.URL + "/v1/completions")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") != "POST" {
		t.Errorf("GET of completions: %d", r.StatusCode)
	}
	r, err = http.Get(h.URL + "/tokenizer_info") // lm-eval would change its ways
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusNotFound {
		t.Errorf("/tokenizer_info: %d", r.StatusCode)
	}
}

func TestServer_AsksForAKeyAndKnowsOrigins(t *testing.T) {
	_, open := serving(t, nil)
	_, locked := serving(t, func(o *Options) {
		o.APIKeys = []string{"first", "second"}
		o.Origins = []string{"https://example.org"}
	})
	for _, c := range []struct {
		url, authorization, origin, site string
		method                           string
		status                           int
		allowed                          string
	}{
		{open.URL + "/v1/models", "Bearer ", "", "", "GET", 200, ""},
		{open.URL + "/v1/models", "", "https://evil.org", "cross-site", "POST", 403, ""},
		{open.URL + "/v1/models", "", "https://evil.org", "cross-site", "OPTIONS", 405, ""},
		{locked.URL + "/v1/models", "", "", "", "GET", 401, ""},
		{locked.URL + "/v1/models", "Bearer third", "", "", "GET", 401, ""},
		{locked.URL + "/v1/models", "first", "", "", "GET", 401, ""},
		{locked.URL + "/v1/models", "Bearer second", "", "", "GET", 200, ""},
		{locked.URL + "/health", "", "", "", "GET", 200, ""},
		{locked.URL + "/tokenize", "", "", "", "POST", 401, ""},
		{locked.URL + "/v1/completions", "", "https://example.org", "cross-site", "OPTIONS", 204,
			"https://example.org"},
		{locked.URL + "/v1/models", "Bearer first", "https://example.org", "cross-site", "GET", 200,
			"https://example.org"},
	} {
		r, _ := http.NewRequest(c.method, c.url, nil)
		for name, value := range map[string]string{"Authorization": c.authorization,
			"Origin": c.origin, "Sec-Fetch-Site": c.site} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if got := answer.Header.Get("Access-Control-Allow-Origin"); answer.StatusCode != c.status ||
			got != c.allowed {
			t.Errorf("%+v: %d, allowed %q", c, answer.StatusCode, got)
		}
	}
}

func TestServer_LocalAnswersForThisMachineOnly(t *testing.T) {
	_, h := serving(t, func(o *Options) { o.Local = true })
	for host, status := range map[string]int{"": 200, "localhost:8000": 200, "LOCALHOST": 200,
		"127.0.0.1": 200, "[::1]:8000": 200, "example.org": 403, "example.org:8000": 403,
		"localhost.example.org": 403, "192.0.2.1": 403} {
		r, _ := http.NewRequest("GET", h.URL+"/v1/models", nil)
		if host != "" {
			r.Host = host
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != status {
			t.Errorf("host %q: %d, expected %d", host, answer.StatusCode, status)
		}
	}
}

func TestServer_TimeoutAndFullQueueSayWhetherToTryAgain(t *testing.T) {
	_, h := serving(t, func(o *Options) { o.Timeout = time.Millisecond })
	r, err := http.Post(h.URL+"/v1/completions", "application/json",
		strings.NewReader(`{"prompt": "a", "max_tokens": 290, "ignore_eos": true}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusGatewayTimeout || r.Header.Get("x-should-retry") != "false" {
		t.Errorf("a request that took too long: %d, %v", r.StatusCode, r.Header)
	}
	_, full := serving(t, func(o *Options) { o.Queue = 1 })
	r, err = http.Post(full.URL+"/v1/completions", "application/json",
		strings.NewReader(`{"prompt": ["a", "b"], "max_tokens": 2}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("more prompts than the queue holds: %d, %v", r.StatusCode, r.Header)
	}
}

// The page and its files are served with a policy that lets nothing come from elsewhere, and they
// name no other place.
func TestPage_NeedsNothingFromElsewhere(t *testing.T) {
	_, h := serving(t, func(o *Options) { o.APIKeys = []string{"secret"} })
	get := func(path string) (int, string) {
		r, err := http.Get(h.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if policy := r.Header.Get("Content-Security-Policy"); r.StatusCode == http.StatusOK &&
			(!strings.Contains(policy, "default-src 'none'") ||
				strings.Contains(policy, "unsafe")) {
			t.Errorf("%s has the policy %q", path, policy)
		}
		return r.StatusCode, string(text)
	}
	_, index := get("/")
	links := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(index, -1)
	if len(links) < 4 {
		t.Errorf("only %d links in %q", len(links), index)
	}
	for _, link := range links {
		status, text := get("/" + link[1])
		if status != http.StatusOK || len(text) < 50 {
			t.Errorf("%s: %d", link[1], status)
		}
		outside := regexp.MustCompile(`(?:https?:)?//[a-z]+\.[a-z]`).FindString(text)
		if outside != "" && outside != "http://www.w" { // the name space of SVG
			t.Errorf("%s names %s", link[1], outside)
		}
	}
	if status, _ := get("/page/none"); status != http.StatusNotFound {
		t.Errorf("a file that is not there: %d", status)
	}
}

// Paths that a client invents do not become names of metrics.
func TestMetrics_CountTokensAndKnownPaths(t *testing.T) {
	_, h := serving(t, nil)
	post(t, h.URL+"/v1/completions", `{"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": true}`)
	for i := range 3 {
		post(t, h.URL+fmt.Sprint("/v1/invented/", i), `{}`)
	}
	r, err := http.Get(h.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"conquer_prompt_tokens_total 3\n", "conquer_new_tokens_total 4\n",
		`conquer_requests_total{path="/v1/completions",status="200"} 1` + "\n",
		`conquer_requests_total{path="other",status="404"} 3` + "\n", "conquer_running 0\n"} {
		if !strings.Contains(string(text), line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if strings.Contains(string(text), "invented") {
		t.Error("an invented path is counted by name")
	}
}

// Any body gives an answer or an error in OpenAI's form, and tasks within the limits.
