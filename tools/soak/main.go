// Command soak asks a running `conquer serve` with many clients that come, go and break off. It
// fails if a request is lost, if an answer changes, if something still runs afterwards, or if the
// server's memory grows. docs/serving.md says how to run it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// soak is the state of a run.
type soak struct {
	url, key string
	tokens   int

	mutex                            sync.Mutex
	answered, broken, refused, wrong int
	firsts                           []float64         // seconds to the first piece of text
	texts                            map[string]string // the first answer to each greedy request
}

func main() {
	s := &soak{texts: map[string]string{}}
	flag.StringVar(&s.url, "url", "http://127.0.0.1:8000", "the server's address")
	flag.StringVar(&s.key, "key", "", "the server's API key")
	flag.IntVar(&s.tokens, "tokens", 48, "most new tokens of a request")
	clients := flag.Int("clients", 64, "number of clients")
	length := flag.Duration("time", 30*time.Minute, "how long they ask")
	flag.Parse()
	if err := s.run(*clients, *length); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// run lets clients ask for some time, and checks the server afterwards.
func (s *soak) run(clients int, length time.Duration) error {
	end := time.Now().Add(length)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() { s.client(rand.New(rand.NewPCG(uint64(i), 1)), end) })
	}
	var memory []float64
	for n := 1; n <= 20; n++ { // measure 20 times
		time.Sleep(time.Until(end.Add(-length * time.Duration(20-n) / 20)))
		rss, err := s.metric("process_resident_memory_bytes")
		if err != nil {
			return err
		}
		memory = append(memory, rss)
		s.mutex.Lock()
		fmt.Printf("%5.1f min: %d answered, %d broken off, %d refused, %d wrong, %.1f MB\n",
			(length * time.Duration(n) / 20).Minutes(), s.answered, s.broken, s.refused, s.wrong,
			rss/1e6)
		s.mutex.Unlock()
	}
	all.Wait()
	return s.verdict(memory)
}

// verdict waits until the server is idle and judges the run.
func (s *soak) verdict(memory []float64) error {
	var left float64
	for range 100 {
		running, err := s.metric("conquer_running")
		if err != nil {
			return err
		}
		waiting, err := s.metric("conquer_waiting")
		if err != nil {
			return err
		}
		if left = running + waiting; left == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	// The caches of prefixes fill during the first part.
	middle, last := slices.Max(memory[8:13]), slices.Max(memory[15:])
	slices.Sort(s.firsts)
	if n := len(s.firsts); n > 0 {
		fmt.Printf("first text after %.2f s (median), %.2f s (99 %%)\n", s.firsts[n/2],
			s.firsts[n*99/100])
	}
	fmt.Printf("memory: %.1f MB in the middle, %.1f MB at the end\n", middle/1e6, last/1e6)
	switch {
	case s.wrong > 0:
		return fmt.Errorf("%d requests were lost or answered differently", s.wrong)
	case s.answered == 0:
		return fmt.Errorf("no request was answered")
	case left > 0:
		return fmt.Errorf("%g requests still run", left)
	case last > middle*1.03:
		return fmt.Errorf("memory grew from %.1f to %.1f MB", middle/1e6, last/1e6)
	}
	return nil
}

// client asks one request after the other.
func (s *soak) client(r *rand.Rand, end time.Time) {
	for time.Now().Before(end) {
		path, body, greedy := s.request(r)
		ctx, cancel := context.WithCancel(context.Background())
		breaks := 0 // pieces of text, or a time, after which the client leaves
		if r.IntN(4) == 0 {
			breaks = 1 + r.IntN(20)
			time.AfterFunc(time.Duration(breaks)*200*time.Millisecond, cancel)
		}
		text, err := s.ask(ctx, path, body, breaks)
		left := ctx.Err() != nil
		cancel()
		s.count(body, text, err, greedy, left || err == errLeft)
		time.Sleep(time.Duration(r.ExpFloat64() * float64(100*time.Millisecond)))
	}
}

// request draws a request. Few of them are greedy, so that each comes again.
func (s *soak) request(r *rand.Rand) (path, body string, greedy bool) {
	prompt := strings.Repeat("The gulls go round and round the tower. ", r.IntN(12)) + "Then"
	fields := map[string]any{"max_tokens": 1 + r.IntN(s.tokens)}
	switch r.IntN(5) {
	case 0:
		body, _ := json.Marshal(map[string]any{"input": prompt})
		return "/v1/embeddings", string(body), false
	case 1:
		fields["prompt"], fields["echo"], fields["logprobs"] = prompt, true, 1
		fields["max_tokens"], fields["temperature"], greedy = 1, 0, true
		path = "/v1/completions"
	case 2:
		fields["prompt"], fields["n"] = prompt, 1+r.IntN(3)
		path = "/v1/completions"
	default:
		fields["messages"] = []any{map[string]string{"role": "user", "content": prompt}}
		fields["stream"] = true
		if greedy = r.IntN(2) == 0; greedy {
			fields["temperature"], fields["max_tokens"] = 0, s.tokens
		}
		path = "/v1/chat/completions"
	}
	text, _ := json.Marshal(fields)
	return path, string(text), greedy
}

var (
	errLeft    = fmt.Errorf("the client left")
	errRefused = fmt.Errorf("refused")
)

// ask sends a request and returns the text of the answer. After some pieces of a stream the client
// leaves, if breaks is not 0.
func (s *soak) ask(ctx context.Context, path, body string, breaks int) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path,
		bytes.NewReader([]byte(body)))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+s.key)
	began := time.Now()
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusServiceUnavailable {
		return "", errRefused
	}
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return "", fmt.Errorf("status %d: %.200s", answer.StatusCode, text)
	}
	if !strings.HasPrefix(answer.Header.Get("Content-Type"), "text/event-stream") {
		return plain(answer.Body)
	}
	return s.streamed(answer.Body, began, breaks)
}

// plain reads an answer that is not streamed, and leaves out what differs each time.
func plain(body io.Reader) (string, error) {
	var whole map[string]any
	if err := json.NewDecoder(body).Decode(&whole); err != nil {
		return "", err
	}
	text, err := json.Marshal(whole["choices"])
	return string(text), err
}

func (s *soak) streamed(body io.Reader, began time.Time, breaks int) (string, error) {
	var text strings.Builder
	lines, pieces := bufio.NewScanner(body), 0
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return text.String(), nil
		}
		var chunk struct {
			Error   any
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil || chunk.Error != nil {
			return "", fmt.Errorf("event %.200s: %v", data, err)
		}
		for _, c := range chunk.Choices {
			if c.Delta.Content == "" {
				continue
			}
			if pieces++; pieces == 1 {
				s.mutex.Lock()
				s.firsts = append(s.firsts, time.Since(began).Seconds())
				s.mutex.Unlock()
			}
			text.WriteString(c.Delta.Content)
		}
		if breaks > 0 && pieces >= breaks {
			return "", errLeft
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("the stream ended without [DONE]")
}

// count records how a request ended.
func (s *soak) count(body, text string, err error, greedy, left bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case err == nil:
		s.answered++
		first, again := s.texts[body]
		if greedy && !again {
			s.texts[body] = text
		}
		if greedy && again && first != text {
			s.wrong++
			fmt.Printf("%s\n  was answered %.300q\n  and %.300q\n", body, first, text)
		}
	case left:
		s.broken++
	case err == errRefused:
		s.refused++
	default:
		s.wrong++
		fmt.Printf("%s\n  %v\n", body, err)
	}
}

// metric reads a number from /metrics.
func (s *soak) metric(name string) (float64, error) {
	answer, err := http.Get(s.url + "/metrics")
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s/metrics has no %s", s.url, name)
}
