package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"conquer/text/tokenizer"
)

// ServingOptions say what [Serving] asks a server for. Prompts are random token ids.
type ServingOptions struct {
	Requests   int
	Lengths    []int // of prompts; there are about as many of each
	NewTokens  int   // of each answer
	Vocabulary int   // token ids are below it
	Seed       uint64
	// Warmup sends short requests first, so that kernels are loaded and steps are recorded.
	Warmup bool
}

// ServingRow is what a server did with many requests that came at once.
type ServingRow struct {
	Weights      string `json:"weights,omitempty"` // as in [Results]
	Device       string `json:"device,omitempty"`
	DType        string `json:"dtype,omitempty"`
	Requests     int    `json:"requests"`
	PromptTokens int    `json:"prompt_tokens"` // of all requests
	NewTokens    int    `json:"new_tokens"`
	// Seconds is the time from the first request to the end of the last answer, TokensPerS the new
	// tokens over it, and AllTokensPerS those of prompts and answers.
	Seconds       float64 `json:"seconds"`
	TokensPerS    float64 `json:"tokens_per_s"`
	AllTokensPerS float64 `json:"all_tokens_per_s"`
	// FirstTokenMS is the time from a request to its first text, and BetweenTokensMS the mean time
	// between two tokens of an answer, both as quantiles over requests.
	FirstTokenMS    Quantiles `json:"first_token_ms"`
	BetweenTokensMS Quantiles `json:"between_tokens_ms"`
	// Steps is the number of decoding steps, StepMS their mean time.
	Steps     int     `json:"steps"`
	StepMS    float64 `json:"step_ms"`
	PeakBytes int64   `json:"peak_bytes,omitempty"` // of tensors
}

// Quantiles are the median and the 99th percentile.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func quantiles(values []float64) Quantiles {
	if len(values) == 0 {
		return Quantiles{}
	}
	slices.Sort(values)
	return Quantiles{values[len(values)/2], values[min(len(values)-1, len(values)*99/100)]}
}

// prompts draws the prompts. The longest length comes less often where the number of requests is no
// multiple of the number of lengths.
func (o ServingOptions) prompts() [][]int32 {
	random := rand.New(rand.NewPCG(o.Seed, 2))
	prompts := make([][]int32, o.Requests)
	lengths := slices.Sorted(slices.Values(o.Lengths))
	for i := range prompts {
		for range lengths[i%len(lengths)] {
			prompts[i] = append(prompts[i], random.Int32N(int32(o.Vocabulary)))
		}
	}
	random.Shuffle(len(prompts), func(i, j int) {
		prompts[i], prompts[j] = prompts[j], prompts[i]
	})
	return prompts
}

// Serving sends all requests to the server at url at once and waits for all answers, which are
// streamed.
func Serving(ctx context.Context, url string, o ServingOptions) (ServingRow, error) {
	row := ServingRow{Requests: o.Requests}
	if err := checkPositive("requests, max_new_tokens or a prompt's length",
		append([]int{o.Requests, o.NewTokens, len(o.Lengths)}, o.Lengths...)...); err != nil {
		return row, err
	}
	prompts := o.prompts()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: o.Requests}}
	if o.Warmup {
		short := slices.Clone(prompts[:min(len(prompts), 2*len(o.Lengths))])
		for _, p := range prompts[len(short):] {
			short = append(short, p[:min(len(p), 16)])
		}
		if _, err := ask(ctx, client, url, short, o.NewTokens); err != nil {
			return row, fmt.Errorf("warming up: %w", err)
		}
	}
	before, err := readSteps(client, url)
	if err != nil {
		return row, err
	}
	began := time.Now()
	answers, err := ask(ctx, client, url, prompts, o.NewTokens)
	if err != nil {
		return row, err
	}
	row.Seconds = time.Since(began).Seconds()
	after, err := readSteps(client, url)
	if err != nil {
		return row, err
	}
	var first, between []float64
	for _, a := range answers {
		row.PromptTokens += a.promptTokens
		row.NewTokens += a.newTokens
		first = append(first, a.first.Seconds()*1e3)
		if a.newTokens > 1 {
			between = append(between, (a.last-a.first).Seconds()*1e3/float64(a.newTokens-1))
		}
	}
	row.TokensPerS = float64(row.NewTokens) / row.Seconds
	row.AllTokensPerS = float64(row.PromptTokens+row.NewTokens) / row.Seconds
	row.FirstTokenMS, row.BetweenTokensMS = quantiles(first), quantiles(between)
	if row.Steps = int(after.count - before.count); row.Steps > 0 {
		row.StepMS = 1e3 * (after.sum - before.sum) / float64(row.Steps)
	}
	return row, nil
}

// served is how a request was answered. Times are since it was sent.
type served struct {
	first, last             time.Duration
	promptTokens, newTokens int
}

// ask sends all prompts at once. It returns the first error after all requests have ended.
func ask(ctx context.Context, client *http.Client, url string, prompts [][]int32, newTokens int) (
	[]served, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, failed := make([]served, len(prompts)), make([]error, len(prompts))
	var all sync.WaitGroup
	for i, prompt := range prompts {
		all.Go(func() {
			answers[i], failed[i] = askOne(ctx, client, url, prompt, newTokens)
			if failed[i] != nil {
				cancel()
			}
		})
	}
	all.Wait()
	for _, err := range failed {
		if err != nil && !errors.Is(err, context.Canceled) {
			return nil, err
		}
	}
	return answers, ctx.Err()
}

func askOne(ctx context.Context, client *http.Client, url string, prompt []int32, newTokens int) (
	a served, err error) {
	body, err := json.Marshal(map[string]any{"prompt": prompt, "max_tokens": newTokens,
		"ignore_eos": true, "temperature": 0, "stream": true,
		"stream_options": map[string]bool{"include_usage": true}})
	if err != nil {
		return a, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions",
		bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	r.Header.Set("Content-Type", "application/json")
	began := time.Now()
	answer, err := client.Do(r)
	if err != nil {
		return a, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
		return a, fmt.Errorf("status %d: %s", answer.StatusCode, text)
	}
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var chunk struct {
			Error   any
			Choices []struct{ Text string }
			Usage   *struct {
				Prompt int `json:"prompt_tokens"`
				New    int `json:"completion_tokens"`
			}
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil || chunk.Error != nil {
			return a, fmt.Errorf("event %.200s: %v", data, err)
		}
		if len(chunk.Choices) > 0 && chunk.Choices[0].Text != "" {
			a.last = time.Since(began)
			if a.first == 0 {
				a.first = a.last
			}
		}
		if chunk.Usage != nil {
			a.promptTokens, a.newTokens = chunk.Usage.Prompt, chunk.Usage.New
		}
	}
	if err := lines.Err(); err != nil {
		return a, err
	}
	if a.newTokens != newTokens {
		return a, fmt.Errorf("an answer has %d tokens, expected %d", a.newTokens, newTokens)
	}
	return a, nil
}

// steps are the number and the seconds of decoding steps.
type steps struct{ count, sum float64 }

// readSteps reads them from a server's metrics.
func readSteps(client *http.Client, url string) (s steps, err error) {
	answer, err := client.Get(url + "/metrics")
	if err != nil {
		return s, err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch name {
		case "conquer_step_seconds_count":
			s.count, err = strconv.ParseFloat(value, 64)
		case "conquer_step_seconds_sum":
			s.sum, err = strconv.ParseFloat(value, 64)
		}
		if err != nil {
			return s, err
		}
	}
	return s, lines.Err()
}

// Words returns a tokenizer in which each of size token ids is a word of its own, for models with
// random weights.
func Words(size int) (*tokenizer.Tokenizer, error) {
	vocabulary := make(map[string]int, size)
	for id := range size {
		vocabulary["Ġ"+strconv.FormatInt(int64(id), 36)] = id
	}
	data, err := json.Marshal(map[string]any{
		"model":         map[string]any{"type": "BPE", "vocab": vocabulary, "merges": []string{}},
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": true},
		"decoder":       map[string]any{"type": "ByteLevel"},
	})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "conquer-words-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), data, 0o600); err != nil {
		return nil, err
	}
	return tokenizer.Open(dir)
}
