package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"image/color"
	"image/png"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"conquer/bench"
)

var strategies = []string{"default", "independent", "windowed:1", "windowed:4"}

// save writes results of one kind as a benchmark does.
func save(t testing.TB, dir, kind string, rows any) {
	t.Helper()
	r := &bench.Results{
		Kind: kind, Command: "conquer bench " + kind + " --chunking 'default,<b>'",
		Time: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
		Machine: bench.Machine{CPU: "A processor & a half", Cores: 2, Threads: 2, MemoryBytes: 16e9,
			Device:   "cpu",
			Ceilings: bench.Ceilings{ReadGBPerS: 21, F32GFlopPerS: 180}},
		Versions: bench.Versions{Conquer: "v0.0-test", Libtorch: "2.11.0", Go: "go1.26"},
		Rows:     rows,
	}
	if err := r.Save(dir); err != nil {
		t.Fatal(err)
	}
}

func ssdRows(r *rand.Rand) (rows []bench.SSDRow) {
	for _, name := range strategies {
		for _, code := range []string{"", "-optimized"} {
			for _, pass := range []string{"forward", "backward"} {
				for _, length := range []int{256, 1024, 4096} {
					for _, chunk := range []int{32, 64} {
						ms := float64(length) * (1 + r.Float64()) / 100
						rows = append(rows, bench.SSDRow{Strategy: name + code, Pass: pass,
							Device: "cpu", DType: "float32", Batch: 1, Length: length,
							Heads: 8, HeadDim: 32, State: 64, Groups: 1, ChunkSize: chunk,
							MedianMS: ms, LowMS: 0.9 * ms, HighMS: 1.2 * ms, Repeats: 5,
							GBPerS: 10 * r.Float64(), GFlopPerS: 100 * r.Float64(),
							OfBandwidth: r.Float64(), OfRate: r.Float64(),
							PeakBytes: int64(length) * 1000, Error: 1e-6 * r.Float64()})
					}
				}
			}
		}
	}
	for _, pass := range []string{"step", "conv", "norm"} {
		rows = append(rows, bench.SSDRow{Strategy: "kernel", Pass: pass, Device: "cpu",
			DType: "float32", Batch: 1, Length: 1, Heads: 8, HeadDim: 32,
			State: 64, Groups: 1, MedianMS: r.Float64(), GBPerS: 10 * r.Float64(),
			GFlopPerS: 10 * r.Float64(), Error: 1e-7})
	}
	return rows
}

func chunksRows(r *rand.Rand) (rows []bench.ChunksRow) {
	for id, length := range []int{256, 300, 1024, 2048} {
		for _, name := range strategies {
			for _, way := range ways {
				ms := float64(length) * (1 + r.Float64())
				rows = append(rows, bench.ChunksRow{ID: id, PromptTokens: length,
					NumChunks: length / 16, ChunkSize: 16, Strategy: name, Compile: way,
					Layers: 4, Device: "cpu", DType: "float32", NewTokens: 8, Repeats: 3,
					TotalMS: ms, LowMS: 0.9 * ms, HighMS: 1.1 * ms,
					FirstTokenMS: ms / 2, BetweenTokensMS: ms / 16, TokensPerS: 8000 / ms,
					PeakBytes: int64(length) * 4096, BytesMoved: 1e9, GBPerS: 3,
					Flops: 1e9, GFlopPerS: 40, CPUUtilization: 0.5,
					TopOperations: []bench.Operation{{Name: "aten::mm", MS: ms / 3,
						Share: 0.33}}})
			}
		}
	}
	return rows
}

func accuracyRows(r *rand.Rand) (rows []bench.AccuracyRow) {
	for id := range 20 {
		for _, name := range strategies {
			nll := 1 + r.Float64()
			rows = append(rows, bench.AccuracyRow{ID: id, Strategy: name + "-optimized",
				ChunkSize: 16, PromptTokens: 256,
				ReferenceTokens: 50 + r.IntN(50), NLL: nll, Perplexity: math.Exp(nll),
				Prediction: "</svg><script>"})
		}
	}
	return rows
}

func gptScoreRows(r *rand.Rand) (rows []bench.GPTScoreRow) {
	for id := range 20 {
		for _, name := range strategies {
			for _, aspect := range []string{"none", "fluency"} {
				a, b := -4*r.Float64()-0.1, -4*r.Float64()-0.1
				rows = append(rows, bench.GPTScoreRow{ID: id, Source: "predictions.tsv",
					Strategy: name, Aspect: aspect, HypoGivenRef: a, RefGivenHypo: b,
					Average: (a + b) / 2, HarmonicMean: 2 * a * b / (a + b)})
			}
		}
	}
	return rows
}

// parsed is a page or a drawing, read by a strict XML parser.
type parsed struct {
	elements map[string]int
	ids      []string
	links    []string
	text     string
}

func parse(t testing.TB, path string) parsed {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := parsed{elements: map[string]int{}}
	d := xml.NewDecoder(bytes.NewReader(data))
	var text strings.Builder
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			p.elements[token.Name.Local]++
			for _, a := range token.Attr {
				switch a.Name.Local {
				case "id":
					p.ids = append(p.ids, a.Value)
				case "href", "src":
					p.links = append(p.links, a.Value)
				}
			}
		case xml.CharData:
			text.Write(token)
		}
	}
	p.text = text.String()
	return p
}

func all(t testing.TB) (dir string, accuracy []bench.AccuracyRow) {
	dir = t.TempDir()
	r := rand.New(rand.NewPCG(rand.Uint64(), 1))
	accuracy = accuracyRows(r)
	save(t, dir, bench.SSD, ssdRows(r))
	save(t, dir, bench.Chunks, chunksRows(r))
	save(t, dir, bench.Accuracy, accuracy)
	save(t, dir, bench.GPTScore, gptScoreRows(r))
	save(t, dir, bench.Consistency, []bench.ConsistencyRow{
		consistencyRow("conquer", bench.Whole, 0, 1e-6),
		consistencyRow("conquer", bench.Pieces, 7, 4e-6)})
	save(t, dir, bench.Quantization, []bench.QuantizationRow{
		{Kind: "original", Bytes: 100, BitsPerWeight: 16, Perplexity: 12},
		{Kind: "Q4_K_M", Bytes: 30, BitsPerWeight: 4.8, Perplexity: 12.3, KL: 0.05, KLError: 0.002},
		{Kind: "Q4_K_M", Bytes: 30, BitsPerWeight: 4.8, Perplexity: 12.2, KL: 0.03,
			Importance: true}})
	return dir, accuracy
}

func TestWrite_PageIsCompleteAndSelfContained(t *testing.T) {
	dir, accuracy := all(t)
	out := filepath.Join(t.TempDir(), "new", "report.html")
	report, err := Write(dir, out)
	if err != nil || len(report.Notes) > 0 {
		t.Fatalf("%v, notes %q", err, report.Notes)
	}
	page := parse(t, out)
	for _, id := range []string{"accuracy", "gptscore", "chunks", "ssd", "consistency",
		"quantization", "made"} {
		if !slices.Contains(page.ids, id) {
			t.Errorf("there is no section %s", id)
		}
	}
	for _, link := range page.links {
		if !strings.HasPrefix(link, "#") {
			t.Errorf("the page needs %s", link)
		}
	}
	if strings.Contains(page.text, "url(") || strings.Contains(page.text, "@import") {
		t.Error("the style sheet loads something")
	}
	for _, want := range []string{"A processor & a half",
		"conquer bench ssd --chunking 'default,<b>'", "v0.0-test", "libtorch 2.11.0", "go1.26",
		"4 March 2026"} {
		if !strings.Contains(page.text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}

	// The perplexities are those of the rows.
	for _, name := range strategies {
		nats, tokens := 0.0, 0
		for _, row := range accuracy {
			if row.Strategy == name+"-optimized" {
				nats += row.NLL * float64(row.ReferenceTokens)
				tokens += row.ReferenceTokens
			}
		}
		if want := fmt.Sprintf("%.3f", math.Exp(nats/float64(tokens))); !strings.Contains(page.text,
			want) {
			t.Errorf("the page lacks the perplexity %s of %s", want, name)
		}
	}

	// Each plot is in the page and in two files, and none is blank.
	if page.elements["svg"] != len(report.Plots)/2 || len(report.Plots) < 20 {
		t.Errorf("%d plots in the page, files %q", page.elements["svg"], report.Plots)
	}
	for _, path := range report.Plots {
		if strings.HasSuffix(path, ".svg") {
			if drawn := parse(t, path); drawn.elements["path"] < 10 || drawn.elements["text"] < 4 {
				t.Errorf("%s has %v", path, drawn.elements)
			}
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		picture, err := png.Decode(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		seen := map[color.Color]bool{}
		for x := range picture.Bounds().Dx() {
			for y := range picture.Bounds().Dy() {
				seen[picture.At(x, y)] = true
			}
		}
		if len(seen) < 10 {
			t.Errorf("%s has %d colors", path, len(seen))
		}
	}
	for _, name := range []string{"perplexity", "gptscore", "latency", "throughput", "memory",
		"compile", "scan-forward", "scan-backward", "bandwidth", "rate"} {
		if !slices.ContainsFunc(report.Plots,
			func(path string) bool { return filepath.Base(path) == name+".svg" }) {
			t.Errorf("there is no plot %s", name)
		}
	}
}

func TestWrite_EscapesHostileNames(t *testing.T) {
	const hostile = "</svg><script>alert('x')</script>\x01\"&"
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	scans, prompts, scores, answers := ssdRows(r), chunksRows(r), gptScoreRows(r), accuracyRows(r)
	for i := range scans {
		scans[i].Strategy += hostile
		scans[i].DType = hostile
	}
	for i := range prompts {
		prompts[i].Strategy, prompts[i].Device = hostile, hostile
		prompts[i].TopOperations[0].Name = hostile
	}
	scores[0].Strategy, scores[0].Aspect = "", hostile
	scores[0].Source = hostile
	answers[0].Strategy = hostile + strings.Repeat("long ", 100)
	scans = append(scans, bench.SSDRow{Failed: hostile})
	prompts = append(prompts, bench.ChunksRow{Failed: hostile})
	save(t, dir, bench.SSD, scans)
	save(t, dir, bench.Chunks, prompts)
	save(t, dir, bench.GPTScore, scores)
	save(t, dir, bench.Accuracy, answers)
	out := filepath.Join(t.TempDir(), "report.html")
	report, err := Write(dir, out)
	if err != nil {
		t.Fatal(err)
	}
	page := parse(t, out)
	if page.elements["script"] > 0 || page.elements["b"] > 0 {
		t.Errorf("a name became an element: %v", page.elements)
	}
	if !strings.Contains(page.text, "<script>alert('x')") {
		t.Error("the name is not shown")
	}
	for _, path := range report.Plots {
		if strings.HasSuffix(path, ".svg") {
			parse(t, path)
		}
	}
}

func TestWrite_NamesMissingAndBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(t.TempDir(), "report.html")
	if _, err := Write(filepath.Join(dir, "none"), out); err == nil {
		t.Error("a missing folder was no error")
	}
	if _, err := Write(dir, out); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("an empty folder: %v", err)
	}
	save(t, dir, bench.GPTScore, gptScoreRows(rand.New(rand.NewPCG(1, 2))))
	report, err := Write(dir, out)
	if err != nil || len(report.Notes) != 4 {
		t.Fatalf("%v, notes %q", err, report.Notes)
	}
	if page := parse(t, out); !strings.Contains(page.text, "ssd.json is missing") ||
		page.elements["svg"] != 2 {
		t.Errorf("%d plots", page.elements["svg"])
	}

	// A broken file is an error, and the page shows the others.
	for name, text := range map[string]string{"cut off": `{"kind": "ssd", "rows": [`,
		"another kind":         `{"kind": "chunks", "rows": []}`,
		"rows of another type": `{"kind": "ssd", "rows": [{"length": "long"}]}`,
		"no JSON":              "strategy,pass\n", "empty": ""} {
		path := filepath.Join(dir, "ssd.json")
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		os.Remove(out)
		report, err := Write(dir, out)
		if report == nil || err == nil || !strings.Contains(err.Error(), path) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if page := parse(t, out); page.elements["svg"] != 2 || !strings.Contains(page.text, path) {
			t.Errorf("%s: %d plots", name, page.elements["svg"])
		}
	}
}

func TestLooks_AreConstantAndDistinct(t *testing.T) {
	var l looks
	first, second := l.of("mamba_ssm"), l.of("another")
	if first.color == second.color || l.of("mamba_ssm") != first ||
		l.of("mamba_ssm-optimized").color != first.color {
		t.Error("unknown names do not keep colors of their own")
	}
	seen := map[color.RGBA]string{}
	for _, name := range append([]string{"windowed:2"}, strategies...) {
		if twin := seen[l.of(name).color]; twin != "" {
			t.Errorf("%s looks like %s", name, twin)
		}
		seen[l.of(name).color] = name
		if !l.of(name).plain || l.of(name+"-optimized").plain {
			t.Errorf("%s: kernels and libtorch's operations look the same", name)
		}
	}
	// WCAG requires a contrast of 3 for graphics.
	for _, c := range colors()[2:] {
		if got := contrast(c, color.RGBA{255, 255, 255, 255}); got < 3 {
			t.Errorf("%s has a contrast of %.1f to white", hex(c), got)
		}
	}
	black, white := color.RGBA{0, 0, 0, 255}, color.RGBA{255, 255, 255, 255}
	if got := contrast(black, white); math.Abs(got-21) > 1e-9 {
		t.Errorf("black on white has a contrast of %g, expected 21", got)
	}
}

func TestShort_KeepsThreeDigits(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.01234: "0.0123", 1.5: "1.5", 12.345: "12.3",
		123.4: "123", 999.4: "999", 999.7: "1,000",
		1234567: "1,234,567", -4096: "-4,096", math.NaN(): "–", 1000: "1,000", 100: "100"} {
		if got := short(x); got != want {
			t.Errorf("%g is written %q, expected %q", x, got, want)
		}
	}
}

// FuzzWrite checks that any result file gives a report or an error in one line.
func FuzzWrite(f *testing.F) {
	kinds := []string{bench.SSD, bench.Chunks, bench.Accuracy, bench.GPTScore}
	seeds := rand.New(rand.NewPCG(1, 2))
	for i, rows := range []any{ssdRows(seeds)[:12], chunksRows(seeds)[:12],
		accuracyRows(seeds)[:12], gptScoreRows(seeds)[:12]} {
		dir := f.TempDir()
		save(f, dir, kinds[i], rows)
		data, err := os.ReadFile(filepath.Join(dir, kinds[i]+".json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, i)
	}
	f.Add([]byte(`{"kind":"ssd","rows":[{"length":1,"pass":"forward","median_ms":1e-320,`+
		`"gb_per_s":1e308,"chunk_size":3},`+
		`{"length":9000000000000000000,"pass":"forward","median_ms":1e300,"peak_bytes":-5}]}`), 0)
	f.Add([]byte(`{"kind":"chunks","rows":[{"prompt_tokens":1,"total_ms":1e300,`+
		`"compile":"kernels"},`+
		`{"prompt_tokens":1,"total_ms":1e-300,"compile":"","peak_bytes":1}]}`), 1)
	f.Add([]byte(`{"kind":"accuracy","rows":[{"nll":1e300,"reference_tokens":1},`+
		`{"nll":-1e300,"reference_tokens":9223372036854775807}]}`), 2)
	f.Add([]byte(`{"kind":"gptscore","rows":[{"average":1e308},{"average":-1e308},`+
		`{"average":0}]}`), 3)
	dir := f.TempDir()
	last := ""
	f.Fuzz(func(t *testing.T, data []byte, kind int) {
		if len(data) > 1<<14 {
			return
		}
		path := filepath.Join(dir, kinds[uint(kind)%4]+".json")
		if last != "" && last != path {
			os.Remove(last)
		}
		last = path
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		p, _, err := compose(dir)
		if err == nil {
			html, err := p.html()
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(dir, "report.html")
			if err := os.WriteFile(out, html, 0o666); err != nil {
				t.Fatal(err)
			}
			parse(t, out)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("the error has several lines: %v", err)
		}
	})
}

// A page says which weights were random and how often a time was measured, and a ratio has limits.
func TestWrite_NamesWeightsRunsAndLimits(t *testing.T) {
	page := func(command, weights string, repeats int, spread float64) string {
		t.Helper()
		dir := t.TempDir()
		r := rand.New(rand.NewPCG(3, 4))
		chunks, scans := chunksRows(r), ssdRows(r)
		for i := range chunks {
			c := &chunks[i]
			c.TotalMS = map[string]float64{"eager": 1000}[c.Compile] + 500
			c.LowMS, c.HighMS, c.Repeats = c.TotalMS/spread, c.TotalMS*spread, repeats
		}
		for i := range scans {
			s := &scans[i]
			s.MedianMS = 2
			if strings.HasSuffix(s.Strategy, "-optimized") {
				s.MedianMS = 0.5
			}
			s.LowMS, s.HighMS, s.Repeats = s.MedianMS/spread, s.MedianMS*spread, repeats
		}
		for kind, rows := range map[string]any{bench.Chunks: chunks, bench.SSD: scans,
			bench.Accuracy: accuracyRows(r)} {
			result := &bench.Results{Kind: kind, Command: command, Weights: weights,
				Inputs: "random tokens, seed 9", Rows: rows}
			if err := result.Save(dir); err != nil {
				t.Fatal(err)
			}
		}
		out := filepath.Join(t.TempDir(), "report.html")
		if _, err := Write(dir, out); err != nil {
			t.Fatal(err)
		}
		return parse(t, out).text
	}
	for name, c := range map[string]struct {
		command, weights string
		repeats          int
		spread           float64
		with, without    []string
	}{
		"random": {"conquer", bench.RandomWeights(7), 5, 1.1, []string{
			"The weights are random, seed 7: the perplexities say nothing",
			"The weights are random, seed 7: they take the same time", "random tokens, seed 9",
			"Points are medians of 5 runs of each prompt, error bars are quartiles.",
			"4 times as fast (3.31 to 4.84 between the quartiles of 5 runs)",
			"3 times as fast (2.48 to 3.63 between the quartiles of 5 runs)",
			"95 % interval"}, []string{"overlap", "single run, without"}},
		"overlapping": {"conquer --model_path m", "m", 5, 2.5, []string{
			"4 times as fast (0.64 to 25 between the quartiles, which overlap: the difference " +
				"may be noise)"}, []string{"The weights are random"}},
		"single": {"conquer", "m", 1, 1, []string{"run once, so there are no quartiles",
			"Each time is that of a single run",
			"4 times as fast (a single run, without quartiles)",
		}, []string{"medians of", "The weights are random"}},
		"older file": {"conquer bench accuracy --variant bytes", "", 3, 1.1, []string{
			"The weights are random, seed not recorded"}, nil},
	} {
		text := strings.Join(strings.Fields(page(c.command, c.weights, c.repeats, c.spread)), " ")
		for _, want := range c.with {
			if !strings.Contains(text, want) {
				t.Errorf("%s: the page lacks %q", name, want)
			}
		}
		for _, not := range c.without {
			if strings.Contains(text, not) {
				t.Errorf("%s: the page says %q", name, not)
			}
		}
	}
}

func TestPerplexities_IntervalHoldsTheDifference(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	rows := func(shift, noise float64) *perplexities {
		var list []bench.AccuracyRow
		for id := range 40 {
			nll := 1 + r.Float64()
			for name, more := range map[string]float64{"default": 0,
				"independent": shift + noise*r.NormFloat64()} {
				list = append(list, bench.AccuracyRow{ID: id, Strategy: name, ChunkSize: 16,
					ReferenceTokens: 50, NLL: nll + more})
			}
		}
		return newPerplexities(list)
	}
	for _, c := range []struct {
		shift, noise float64
		noisy        bool
	}{{0.2, 0.05, false}, {0, 0.3, true}, {-0.2, 0.05, false}} {
		var low, high float64
		text := rows(c.shift, c.noise).interval(way{"independent", 16})
		if _, err := fmt.Sscanf(text, ", 95 %% interval %f to %f", &low, &high); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		mean := 100 * (math.Exp(c.shift) - 1)
		deviation := 100 * math.Exp(c.shift) * c.noise / math.Sqrt(40)
		if low > mean+deviation || high < mean-deviation || high-low < 2.5*deviation ||
			high-low > 6*deviation || strings.Contains(text, "noise") != c.noisy {
			t.Errorf("%+v: %s", c, text)
		}
	}
}
