package serve

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"conquer/generate"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
)

// writeAdapter writes an adapter of a model whose weights are not small, and leaves the model as it
// is.
func writeAdapter(t testing.TB, m model.Model, seed int64, dora bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "adapter")
	c := lora.Config{Rank: 4, Alpha: 16, DoRA: dora}
	if model.HasExperts(m) { // their adapters can only be merged
		c.Targets = []string{"q_proj", "o_proj"}
	}
	err := lora.Attach(m, c)
	if err == nil {
		err = torch.Run(func() error {
			torch.ManualSeed(seed)
			for _, a := range lora.Adapters(m) {
				a.B.Tensor.Uniform(-0.4, 0.4)
			}
			return nil
		})
	}
	if err == nil {
		err = lora.Save(m, dir, "base", c, nil)
	}
	lora.Remove(m)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Rows of a batch have different adapters, or none. What each request is answered has the tokens of
// the model with its adapter alone, and the same bits as when no other request runs.
func TestAdapters_RowsHaveTheirOwn(t *testing.T) {
	for name := range models {
		t.Run(name, func(t *testing.T) {
			m := tiny(t, name, nil)
			dirs := []string{"", writeAdapter(t, m, 1, false), writeAdapter(t, m, 2, true)}
			r := rand.New(rand.NewPCG(5, 6))
			const n = 18
			prompts := make([][]int32, n)
			want := make([][]int32, n)
			o := generate.Options{MaxNewTokens: 24, IgnoreEOS: true}
			for k, dir := range dirs {
				if dir != "" {
					if err := lora.Load(m, dir); err != nil {
						t.Fatal(err)
					}
				}
				for i := k; i < n; i += len(dirs) {
					prompts[i] = randomPrompt(r, 90)
					if i >= 6 { // prompts with the same beginnings and other adapters
						prompts[i] = slices.Concat(prompts[i%6], prompts[i][:1])
					}
					all, _, err := generate.Generate(t.Context(), m, nil, prompts[i:i+1], o, nil)
					if err != nil {
						t.Fatal(err)
					}
					want[i] = all[0].Tokens
				}
				lora.Remove(m)
			}
			s := start(t, m, Limits{Sequences: 18, Length: 200, Piece: 16, Prefixes: 1 << 24}, 100)
			a := newAdapters(s)
			for k := 1; k < len(dirs); k++ {
				if err := a.load(t.Context(), Adapter{fmt.Sprint(k), dirs[k]}, ""); err != nil {
					t.Fatal(err)
				}
			}
			o.Logprobs = true
			ask := func(i int) *task {
				q := newTask(t, s, t.Context(), prompts[i], o)
				if k := i % len(dirs); k > 0 && !a.use(fmt.Sprint(k), []*task{q}) {
					t.Fatal("the adapter is not there")
				}
				if err := s.submit(q); err != nil {
					t.Fatal(err)
				}
				return q
			}
			alone := make([]string, n)
			for i := range n {
				q := ask(i)
				if _, err := q.answer.whole(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := q.row.Result().Tokens; !slices.Equal(got, want[i]) {
					t.Errorf("request %d: %v, expected %v", i, got, want[i])
				}
				alone[i] = fmt.Sprint(q.row.Result())
			}
			var all sync.WaitGroup
			for i := range n {
				q := ask(i)
				all.Go(func() {
					if _, err := q.answer.whole(t.Context()); err != nil {
						t.Error(err)
					}
					if got := fmt.Sprint(q.row.Result()); got != alone[i] {
						t.Errorf("request %d: %.300s in company, %.300s alone", i, got, alone[i])
					}
				})
			}
			if !a.unload("1") { // those that run keep it
				t.Error("the adapter is not there")
			}
			all.Wait()
			for range 100 {
				a.mutex.Lock()
				left := len(a.all)
				a.mutex.Unlock()
				if left == 1 {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Error("an adapter that nobody uses was not freed")
		})
	}
}

// Clients name adapters as their model, and load and unload them where that is allowed.
func TestAdapters_OverHTTP(t *testing.T) {
	m := tiny(t, "llama", model.Config{"vocab_size": 704.0})
	first, second := writeAdapter(t, m, 1, false), writeAdapter(t, m, 2, false)
	l, err := Fit(m, 0, Limits{Sequences: 4, Length: 300, Piece: 32})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(m, smollm(t), Options{Model: "tiny", Limits: l, LoadAdapters: true,
		Adapters: []Adapter{{"first", first}}})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	defer s.Shutdown(t.Context())
	defer h.Close()
	ask := func(model string) string {
		status, answer := post(t, h.URL+"/v1/completions", `{"model": "`+model+`", "prompt":
			"hello", "max_tokens": 12, "temperature": 0, "ignore_eos": true}`)
		if status != 200 || at(t, answer, "model") != model {
			t.Fatalf("%s: %v", model, answer)
		}
		return at(t, answer, "choices.0.text").(string)
	}
	change := func(path, body string, want int, says string) {
		r, err := http.Post(h.URL+"/v1/"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text := make([]byte, 1000)
		n, _ := r.Body.Read(text)
		if r.StatusCode != want || !strings.Contains(string(text[:n]), says) {
			t.Errorf("%s %s: %d %s", path, body, r.StatusCode, text[:n])
		}
	}
	load := func(name, dir string) string {
		return fmt.Sprintf(`{"lora_name": %q, "lora_path": %q}`, name, dir)
	}
	base, one := ask("tiny"), ask("first")
	change("load_lora_adapter", load("second", second), 200, "Success")
	two := ask("second")
	if base == one || one == two || base == two {
		t.Errorf("%q, %q, %q", base, one, two)
	}
	change("load_lora_adapter", load("second", first), 400, "taken")
	change("load_lora_adapter", load("tiny", first), 400, "taken")
	change("load_lora_adapter", load("", first), 400, "needs a name")
	change("load_lora_adapter", load("third", t.TempDir()), 400, "third")
	r, err := http.Get(h.URL + "/v1/models/second")
	if err != nil || r.StatusCode != 200 {
		t.Errorf("%v, %v", r, err)
	}
	r.Body.Close()
	_, embedded := post(t, h.URL+"/v1/embeddings", `{"model": "second", "input": "hello"}`)
	_, plain := post(t, h.URL+"/v1/embeddings", `{"input": "hello"}`)
	if at(t, embedded, "data.0.embedding.0") == at(t, plain, "data.0.embedding.0") {
		t.Error("an embedding does not depend on the adapter")
	}
	change("unload_lora_adapter", load("second", ""), 200, "Success")
	change("unload_lora_adapter", load("second", ""), 404, "does not exist")
	if again := ask("tiny"); again != base {
		t.Errorf("%q, before %q", again, base)
	}
	status, _ := post(t, h.URL+"/v1/completions", `{"model": "second", "prompt": "a"}`)
	if status != 404 {
		t.Errorf("an adapter that is gone: %d", status)
	}
	_, closed := serving(t, nil)
	status, _ = post(t, closed.URL+"/v1/load_lora_adapter", load("x", first))
	if status != 404 {
		t.Errorf("loading that is not allowed: %d", status)
	}
}
