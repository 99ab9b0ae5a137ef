package serve

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"conquer/generate"
)

const scoring = `{"model": "tiny", "prompt": [[5,6,7,8,9], [300,20], [5,6,7,8,9], [1]],
	"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true}`

func TestCompletions_ScoreAsHarnessesNeed(t *testing.T) {
	s, h := serving(t, nil)
	status, answer := post(t, h.URL+"/v1/completions", scoring)
	if status != http.StatusOK {
		t.Fatalf("%d: %v", status, answer)
	}
	prompts := [][]int32{{5, 6, 7, 8, 9}, {300, 20}, {5, 6, 7, 8, 9}, {1}}
	for i, prompt := range prompts {
		choice := at(t, answer, fmt.Sprint("choices.", i))
		if at(t, choice, "index") != float64(i) {
			t.Errorf("choice %d has the index %v", i, at(t, choice, "index"))
		}
		values := at(t, choice, "logprobs.token_logprobs").([]any)
		tops := at(t, choice, "logprobs.top_logprobs").([]any)
		if len(values) != len(prompt)+1 || len(tops) != len(values) {
			t.Fatalf("%d and %d entries for %d tokens", len(values), len(tops), len(prompt))
		}
		if values[0] != nil || tops[0] != nil {
			t.Errorf("the first token has %v and %v", values[0], tops[0])
		}
		var nll []float64
		if len(prompt) > 1 {
			scores, err := generate.Score(t.Context(), s.model, prompt)
			if err != nil {
				t.Fatal(err)
			}
			nll = scores.TokenNLL
		}
		for k := 1; k < len(values); k++ {
			best := -1e300
			for _, v := range tops[k].(map[string]any) {
				best = max(best, v.(float64))
			}
			v := values[k].(float64)
			if v > best || k == len(prompt) && v != best { // the generated token is greedy
				t.Errorf("token %d has %v, the largest is %v", k, v, best)
			}
			if k < len(prompt) && (v+nll[k-1] > 1e-5 || v+nll[k-1] < -1e-5) {
				t.Errorf("token %d has %v, expected %v", k, v, -nll[k-1])
			}
		}
	}
	if a, b := at(t, answer, "choices.0"), at(t, answer, "choices.2"); fmt.Sprint(
		at(t, a, "logprobs")) != fmt.Sprint(at(t, b, "logprobs")) {
		t.Errorf("equal prompts differ: %v and %v", a, b)
	}
	if got := at(t, answer, "usage.prompt_tokens"); got != 13.0 {
		t.Errorf("%v prompt tokens, expected 13", got)
	}
}

func TestCompletions_StopWhereTheyAreTold(t *testing.T) {
	s, h := serving(t, nil)
	end := s.tokenizer.EOS()[0]
	body := `{"prompt": "hello", "max_tokens": 200, "temperature": 0, %s}`
	_, plain := post(t, h.URL+"/v1/completions", fmt.Sprintf(body, `"ignore_eos": true`))
	text := at(t, plain, "choices.0.text").(string)
	middle := text[len(text)/2:][:3]
	_, cut := post(t, h.URL+"/v1/completions", fmt.Sprintf(body, fmt.Sprintf(
		`"ignore_eos": true, "stop": [%q]`, middle)))
	before, _, _ := strings.Cut(text, middle)
	if got := at(t, cut, "choices.0.text"); got != before ||
		at(t, cut, "choices.0.finish_reason") != "stop" {
		t.Errorf("%q before %q: %q", text, middle, got)
	}
	if at(t, plain, "choices.0.finish_reason") != "length" {
		t.Errorf("%v", plain)
	}
	name, _ := json.Marshal(s.tokenizer.Token(end))
	for _, stop := range []string{fmt.Sprintf(`"stop": %s`, name),
		fmt.Sprintf(`"stop": [%s]`, name), fmt.Sprintf(`"stop_token_ids": [%d]`, end)} {
		_, answer := post(t, h.URL+"/v1/completions", fmt.Sprintf(body, fmt.Sprintf(
			`"ignore_eos": true, "logprobs": 0, "logit_bias": {"%d": 100}, %s`, end, stop)))
		if at(t, answer, "choices.0.text") != "" ||
			at(t, answer, "usage.completion_tokens") != 1.0 ||
			len(at(t, answer, "choices.0.logprobs.token_logprobs").([]any)) != 1 {
			t.Errorf("%s: %v", stop, answer)
		}
	}
}

func TestCompletions_SeedsAndChoices(t *testing.T) {
	_, h := serving(t, nil)
	body := `{"prompt": ["hello", "there"], "n": 3, "seed": 5, "max_tokens": 12, "echo": true}`
	_, one := post(t, h.URL+"/v1/completions", body)
	_, two := post(t, h.URL+"/v1/completions", body)
	var texts []string
	for i := range 6 {
		text := at(t, one, fmt.Sprint("choices.", i, ".text")).(string)
		if text != at(t, two, fmt.Sprint("choices.", i, ".text")) {
			t.Errorf("choice %d differs although the seed is the same", i)
		}
		if want := []string{"hello", "there"}[i/3]; !strings.HasPrefix(text, want) {
			t.Errorf("choice %d does not begin with its prompt: %q", i, text)
		}
		texts = append(texts, text)
	}
	slices.Sort(texts)
	if len(slices.Compact(texts)) < 6 {
		t.Errorf("equal choices: %q", texts)
	}
	if at(t, one, "usage.prompt_tokens") == 0.0 || at(t, one, "usage.completion_tokens") != 72.0 {
		t.Errorf("usage %v", at(t, one, "usage"))
	}
}

func streamed(t testing.TB, url, body string) (events []string) {
	t.Helper()
	r, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if got := r.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
		text, _ := io.ReadAll(r.Body)
		t.Fatalf("content type %q: %s", got, text)
	}
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		line := lines.Text()
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok && line != "" {
			t.Fatalf("a line of the stream is %q", line)
		}
		if ok {
			events = append(events, data)
		}
	}
	return events
}

func TestStream_GivesThePlainAnswerInPieces(t *testing.T) {
	_, h := serving(t, nil)
	for path, fields := range map[string][2]string{
		"/v1/chat/completions": {
			`"messages": [{"role": "user", "content": "hi"}], "logprobs": true`,
			"choices.0.message.content"},
		"/v1/completions": {`"prompt": "hi", "logprobs": 1`, "choices.0.text"},
	} {
		body := fmt.Sprintf(`{%s, "n": 2, "max_tokens": 30, "ignore_eos": true,
			"seed": 7`, fields[0])
		_, plain := post(t, h.URL+path, body+"}")
		events := streamed(t, h.URL+path,
			body+`, "stream": true, "stream_options": {"include_usage": true}}`)
		if events[len(events)-1] != "[DONE]" {
			t.Fatalf("%s ends with %q", path, events[len(events)-1])
		}
		texts, reasons, entries := [2]string{}, [2]any{}, [2]int{}
		var id, usage any
		for i, event := range events[:len(events)-1] {
			var chunk map[string]any
			if err := json.Unmarshal([]byte(event), &chunk); err != nil {
				t.Fatal(err)
			}
			if _, has := chunk["error"]; has || id != nil && chunk["id"] != id {
				t.Errorf("%s: %s", path, event)
			}
			id = chunk["id"]
			if u, has := chunk["usage"]; has {
				usage = u
			}
			for _, c := range chunk["choices"].([]any) {
				k := int(at(t, c, "index").(float64))
				if reason := at(t, c, "finish_reason"); reason != nil {
					reasons[k] = reason
				}
				if path == "/v1/completions" {
					texts[k] += at(t, c, "text").(string)
					entries[k] += len(at(t, c, "logprobs.token_logprobs").([]any))
					continue
				}
				delta := at(t, c, "delta").(map[string]any)
				if (delta["role"] != nil) != (i < 2) || i < 2 && k != i {
					t.Errorf("event %d: %s", i, event)
				}
				if content, ok := delta["content"].(string); ok != (reasons[k] == nil) {
					t.Errorf("content beside the end of a choice: %s", event)
				} else {
					texts[k] += content
				}
				if l, _ := at(t, c, "logprobs").(map[string]any); l != nil {
					entries[k] += len(l["content"].([]any))
				}
			}
		}
		for k := range 2 {
			want := at(t, plain, strings.Replace(fields[1], "0", fmt.Sprint(k), 1))
			if texts[k] != want || reasons[k] != "length" || entries[k] != 30 {
				t.Errorf("%s: choice %d is %q, %v, %d entries, expected %q", path, k, texts[k],
					reasons[k], entries[k], want)
			}
		}
		for _, name := range []string{"prompt_tokens", "completion_tokens", "total_tokens"} {
			if got := at(t, usage, name); got != at(t, plain, "usage."+name) {
				t.Errorf("usage %v, expected %v", usage, at(t, plain, "usage"))
			}
		}
	}
}

func TestEmbeddings_HaveLengthOne(t *testing.T) {
	_, h := serving(t, nil)
	_, both := post(t, h.URL+"/v1/embeddings", `{"input": ["hello there", "hello"]}`)
	_, alone := post(t, h.URL+"/v1/embeddings", `{"input": "hello"}`)
	_, last := post(t, h.URL+"/v1/embeddings", `{"input": "hello there", "pooling": "last"}`)
	if fmt.Sprint(at(t, both, "data.1.embedding")) != fmt.Sprint(at(t, alone, "data.0.embedding")) {
		t.Error("an embedding depends on the other inputs")
	}
	if fmt.Sprint(at(t, both, "data.0.embedding")) == fmt.Sprint(at(t, last, "data.0.embedding")) {
		t.Error("pooling changes nothing")
	}
	vector := at(t, both, "data.0.embedding").([]any)
	square := 0.0
	for _, v := range vector {
		square += v.(float64) * v.(float64)
	}
	if len(vector) != 48 || square < 0.999 || square > 1.001 {
		t.Errorf("%d elements of square %v", len(vector), square)
	}
	_, packed := post(t, h.URL+"/v1/embeddings", `{"input": "hello", "encoding_format": "base64"}`)
	if text := at(t, packed, "data.0.embedding").(string); len(text) != 256 {
		t.Errorf("%d characters of base64", len(text))
	}
}

func FuzzRequests_NeverCrash(f *testing.F) {
	s, _ := serving(f, nil)
	for _, body := range []string{scoring, `{"prompt": "a", "stop": ["b", "<|im_end|>"], "n": 2}`,
		`{"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 2}`,
		`{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "seed": -1}`,
		`{"input": ["a", ""], "encoding_format": "base64"}`, `{"prompt": [[]]}`, `{"prompt": null}`,
		`{"prompt": "a", "logit_bias": {"1": 1e300}, "top_k": -2, "max_tokens": 1e9}`, `null`, `[]`,
		`{"prompt":"a","echo":true,"max_tokens":0}`,
		`{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function",` +
			`"function": {"name": "f"}}], "tool_choice": "required"}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		check := func(j *job, err error) {
			if err != nil {
				var p *problem
				if !errors.As(err, &p) || p.message == "" || p.status < 400 {
					t.Errorf("%q: %v", body, err)
				}
				return
			}
			if len(j.choices) == 0 || len(j.choices) > maxChoices {
				t.Errorf("%q: %d choices", body, len(j.choices))
			}
			for _, c := range j.choices {
				if n := len(c.task.prompt); n == 0 || n > s.options.Limits.Length ||
					c.task.row != nil && n+c.task.row.Most() > s.options.Limits.Length {
					t.Errorf("%q: a prompt of %d tokens", body, n)
				}
			}
		}
		var completion completionRequest
		if err := decodeBody(body, &completion); err != nil {
			check(nil, err)
		} else {
			check(completion.job(s))
		}
		var chat chatRequest
		if err := decodeBody(body, &chat); err != nil {
			check(nil, err)
		} else {
			check(chat.job(s))
		}
		var embedding embeddingRequest
		if err := decodeBody(body, &embedding); err != nil {
			check(nil, err)
		} else if _, err := s.embeddingTasks(&embedding); err != nil {
			check(nil, err)
		}
	})
}
