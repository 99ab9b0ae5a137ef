// Package bench measures: the state-space scan by itself, a model over prompts, what a way of chunking costs in accuracy,
// and how well a text says what another one does.
//
// Each benchmark gives [Results], which are written as one JSON file and a CSV file of the same rows; [Read] reads them
// back. docs/experiment.md says what each column means and how it is counted.
//
// The functions of this package are the boundary between mathematics and programs: they return libtorch's failures as
// errors.
package bench

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"conquer/internal/atomicfile"
)

// The kinds of results, which are the names of the benchmarks and of their files.
const (
	SSD      = "ssd"
	Chunks   = "chunks"
	Accuracy = "accuracy"
	GPTScore = "gptscore"
)

// Results are what a run of one benchmark gave.
type Results struct {
	Kind     string    `json:"kind"`
	Command  string    `json:"command"` // the command line that made them
	Time     time.Time `json:"time"`    // when it began
	Machine  Machine   `json:"machine"`
	Versions Versions  `json:"versions"`
	Rows     any       `json:"rows"` // []SSDRow, []ChunksRow, []AccuracyRow or []GPTScoreRow, by Kind
}

// Machine is where a benchmark ran.
type Machine struct {
	CPU         string   `json:"cpu"`
	Cores       int      `json:"cores"`
	Threads     int      `json:"threads"` // that an operation on the CPU could use
	MemoryBytes int64    `json:"memory_bytes"`
	GPU         string   `json:"gpu,omitempty"`
	Driver      string   `json:"driver,omitempty"`
	Device      string   `json:"device"` // what was measured: cpu or cuda:N
	Ceilings    Ceilings `json:"ceilings"`
}

// Ceilings are the best that libtorch's own operations reached on the device in this run; 0 where they were not measured.
// A measured figure can lie above them: what stays in a cache is read faster than from memory.
type Ceilings struct {
	ReadGBPerS    float64 `json:"read_gb_per_s"`    // adding up a tensor larger than the caches
	F32GFlopPerS  float64 `json:"f32_gflop_per_s"`  // products of float32 matrices
	BF16GFlopPerS float64 `json:"bf16_gflop_per_s"` // products of bfloat16 matrices
}

// Versions name the programs.
type Versions struct {
	Conquer  string `json:"conquer"`
	Libtorch string `json:"libtorch"`
	Go       string `json:"go"`
}

// SSDRow is one shape, pass and strategy. Bytes and Flops are counted from the shapes, not measured.
type SSDRow struct {
	Strategy    string  `json:"strategy"` // of the scan: default, windowed:2-optimized, …; kernel for the other passes
	Pass        string  `json:"pass"`     // forward, backward, step, conv or norm
	Device      string  `json:"device"`
	DType       string  `json:"dtype"`
	Batch       int     `json:"batch"`
	Length      int     `json:"length"` // 1 for step
	Heads       int     `json:"heads"`
	HeadDim     int     `json:"head_dim"`
	State       int     `json:"state"`
	Groups      int     `json:"groups"`
	ChunkSize   int     `json:"chunk_size"` // 0 for passes that have none
	MedianMS    float64 `json:"median_ms"`
	LowMS       float64 `json:"low_ms"`  // first quartile
	HighMS      float64 `json:"high_ms"` // third quartile
	Repeats     int     `json:"repeats"`
	Bytes       int64   `json:"bytes"`
	Flops       int64   `json:"flops"`
	GBPerS      float64 `json:"gb_per_s"`
	GFlopPerS   float64 `json:"gflop_per_s"`
	OfBandwidth float64 `json:"of_bandwidth"` // GBPerS as a fraction of the machine's ceiling
	OfRate      float64 `json:"of_rate"`      // GFlopPerS as a fraction of the machine's ceiling for the dtype
	PeakBytes   int64   `json:"peak_bytes"`   // beyond the inputs
	Error       float64 `json:"error"`        // ‖out-ref‖/‖ref‖ of the worst result, against float64 in the same run
	Failed      string  `json:"failed,omitempty"`
}

// ChunksRow is one prompt, strategy and way to launch. Bytes and operations are counted from the model's
// shapes, not measured.
type ChunksRow struct {
	ID              int         `json:"id"` // the entry's place in the prompts file, from 0
	PromptTokens    int         `json:"prompt_tokens"`
	NumChunks       int         `json:"num_chunks"` // of the strategy's chunk size
	ChunkSize       int         `json:"chunk_size"`
	Strategy        string      `json:"strategy"` // without -optimized: Compile says which code ran
	Compile         string      `json:"compile"`  // eager, kernels, graph or both
	Layers          int         `json:"layers"`
	UseCache        bool        `json:"use_cache"`
	Device          string      `json:"device"`
	DType           string      `json:"dtype"`
	NewTokens       int         `json:"new_tokens"`
	Repeats         int         `json:"repeats"`
	TotalMS         float64     `json:"total_ms"` // median, from the prompt to the last token
	LowMS           float64     `json:"low_ms"`
	HighMS          float64     `json:"high_ms"`
	FirstTokenMS    float64     `json:"first_token_ms"`
	BetweenTokensMS float64     `json:"between_tokens_ms"` // mean; 0 with a single new token
	TokensPerS      float64     `json:"tokens_per_s"`      // new tokens over the total time
	PeakBytes       int64       `json:"peak_bytes"`        // beyond the weights
	BytesMoved      int64       `json:"bytes_moved"`
	GBPerS          float64     `json:"gb_per_s"`
	Flops           int64       `json:"flops"`
	GFlopPerS       float64     `json:"gflop_per_s"`
	CPUUtilization  float64     `json:"cpu_utilization"`           // 0 to 1, of all cores
	GPUUtilization  *float64    `json:"gpu_utilization,omitempty"` // 0 to 1; null where there is no GPU or the driver did not say
	TopOperations   []Operation `json:"top_operations"`
	Failed          string      `json:"failed,omitempty"` // why there are no figures
}

// Operation is what one kind of operation took of a run.
type Operation struct {
	Name  string  `json:"name"`
	MS    float64 `json:"ms"`    // without what it called
	Share float64 `json:"share"` // of all operations' time
}

// AccuracyRow is one prompt and strategy.
type AccuracyRow struct {
	ID              int     `json:"id"`
	Strategy        string  `json:"strategy"`
	ChunkSize       int     `json:"chunk_size"`
	PromptTokens    int     `json:"prompt_tokens"`
	ReferenceTokens int     `json:"reference_tokens"`
	NLL             float64 `json:"nll"` // mean negative log-likelihood of the reference after the prompt, in nats a token
	Perplexity      float64 `json:"perplexity"`
	Prediction      string  `json:"prediction"`
}

// GPTScoreRow is one line of a predictions file as a scorer judges it, under one aspect. Scores are mean log-likelihoods in
// nats a token: below zero, and the nearer to it the better.
type GPTScoreRow struct {
	ID           int     `json:"id"`
	Source       string  `json:"source"`   // the predictions file's name
	Strategy     string  `json:"strategy"` // that made the predictions, where the file's name says so
	Aspect       string  `json:"aspect"`   // none: without an instruction
	HypoGivenRef float64 `json:"hypo_given_ref"`
	RefGivenHypo float64 `json:"ref_given_hypo"`
	Average      float64 `json:"average"`
	HarmonicMean float64 `json:"harmonic_mean"`
}

// Save writes <dir>/<kind>.json and the same rows as <dir>/<kind>.csv, making dir where it is missing. Each file appears
// whole or not at all.
func (r *Results) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := atomicfile.Write(filepath.Join(dir, r.Kind+".json"), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", " ")
		return e.Encode(r)
	})
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, r.Kind+".csv"), r.writeCSV)
}

// writeCSV writes the rows with one column a field, under the names that the JSON has.
func (r *Results) writeCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	rows := reflect.ValueOf(r.Rows)
	fields := reflect.VisibleFields(rows.Type().Elem())
	line := make([]string, len(fields))
	for i, f := range fields {
		line[i], _, _ = strings.Cut(f.Tag.Get("json"), ",")
	}
	out.Write(line)
	for i := range rows.Len() {
		for j := range fields {
			line[j] = cell(rows.Index(i).Field(j).Interface())
		}
		out.Write(line)
	}
	out.Flush()
	return out.Error()
}

func cell(v any) string {
	switch v := v.(type) {
	case float64:
		return strconv.FormatFloat(v, 'g', 6, 64)
	case *float64:
		if v == nil {
			return ""
		}
		return cell(*v)
	case []Operation:
		var parts []string
		for _, o := range v {
			parts = append(parts, fmt.Sprintf("%s %.3g ms (%.0f %%)", o.Name, o.MS, 100*o.Share))
		}
		return strings.Join(parts, "; ")
	}
	return fmt.Sprint(v)
}

// Read reads the JSON file that [Results.Save] wrote.
func Read(path string) (*Results, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rows json.RawMessage
	r := &Results{Rows: &rows}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: not the results of a benchmark: %w", path, err)
	}
	switch r.Kind {
	case SSD:
		r.Rows, err = rowsOf[SSDRow](rows)
	case Chunks:
		r.Rows, err = rowsOf[ChunksRow](rows)
	case Accuracy:
		r.Rows, err = rowsOf[AccuracyRow](rows)
	case GPTScore:
		r.Rows, err = rowsOf[GPTScoreRow](rows)
	default:
		return nil, fmt.Errorf("%s: not the results of a benchmark: kind is %q, expected %s, %s, %s or %s", path, r.Kind, SSD, Chunks, Accuracy, GPTScore)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: rows: %w", path, err)
	}
	return r, nil
}

func rowsOf[Row any](data []byte) ([]Row, error) {
	var rows []Row
	err := json.Unmarshal(data, &rows)
	return rows, err
}
