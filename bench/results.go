// Package bench measures the state-space scan alone, a model over prompts, the accuracy
// of each chunking strategy, and how well one text says the same as another.
//
// Each benchmark gives [Results], which are written as a JSON file and a CSV file with the
// same rows. [Read] reads the JSON file. docs/experiment.md defines every column.
//
// The functions of this package return failures of libtorch as errors.
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
	"conquer/internal/budget"
	"conquer/internal/wrongfile"
)

// Kinds of results. Each is the name of a benchmark and of its files.
const (
	SSD      = "ssd"
	Chunks   = "chunks"
	Accuracy = "accuracy"
	GPTScore = "gptscore"

	Consistency  = "consistency"
	Quantization = "quantization"
	Speed        = "speed" // of tools/peers: this program beside others
)

// Results are the results of one benchmark.
type Results struct {
	Kind     string    `json:"kind"`
	Command  string    `json:"command"` // command line of the run
	Time     time.Time `json:"time"`    // start of the run
	Machine  Machine   `json:"machine"`
	Versions Versions  `json:"versions"`
	// Weights says where the model's weights are from: the path of a checkpoint, or what
	// [RandomWeights] returns. Inputs says the same of random inputs. Both are "" where there are
	// none, and in files of versions before they were recorded.
	Weights string `json:"weights,omitempty"`
	Inputs  string `json:"inputs,omitempty"`
	// Program is the name and version of another program that was measured; "" is conquer. Rows
	// that have a strategy then show the program in its place.
	Program string `json:"program,omitempty"`
	// []SSDRow, []ChunksRow, []AccuracyRow, []GPTScoreRow, []ConsistencyRow, []QuantizationRow
	// or []SpeedRow, by Kind
	Rows any `json:"rows"`
}

// RandomWeights is the value of Results.Weights for random weights.
func RandomWeights(seed int64) string { return fmt.Sprintf("random, seed %d", seed) }

// RandomInputs is the value of Results.Inputs for random inputs of the kind what.
func RandomInputs(what string, seed int64) string {
	return fmt.Sprintf("random %s, seed %d", what, seed)
}

// Machine describes where a benchmark ran.
type Machine struct {
	CPU         string   `json:"cpu"`
	Cores       int      `json:"cores"`
	Threads     int      `json:"threads"` // available to an operation on the CPU
	MemoryBytes int64    `json:"memory_bytes"`
	GPU         string   `json:"gpu,omitempty"`
	Driver      string   `json:"driver,omitempty"`
	Device      string   `json:"device"` // measured device: cpu or cuda:N
	Ceilings    Ceilings `json:"ceilings"`
}

// Ceilings are the best rates of libtorch's own operations on the device in this run; 0 if
// they were not measured. Other figures can be higher, because data in a cache is read
// faster than memory.
type Ceilings struct {
	ReadGBPerS    float64 `json:"read_gb_per_s"`    // sum of a tensor larger than the caches
	F32GFlopPerS  float64 `json:"f32_gflop_per_s"`  // float32 GEMM
	BF16GFlopPerS float64 `json:"bf16_gflop_per_s"` // bfloat16 GEMM
}

// Versions are the versions of the software.
type Versions struct {
	Conquer  string `json:"conquer"`
	Libtorch string `json:"libtorch"`
	Go       string `json:"go"`
}

// SSDRow is one shape, pass and strategy of the scan. Bytes and Flops are counted from the
// shapes, not measured.
type SSDRow struct {
	// Strategy is default, windowed:2-optimized, …, or kernel for passes other than the scan.
	Strategy    string  `json:"strategy"`
	Pass        string  `json:"pass"` // forward, backward, step, conv or norm
	Device      string  `json:"device"`
	DType       string  `json:"dtype"`
	Batch       int     `json:"batch"`
	Length      int     `json:"length"` // 1 for step
	Heads       int     `json:"heads"`
	HeadDim     int     `json:"head_dim"`
	State       int     `json:"state"`
	Groups      int     `json:"groups"`
	ChunkSize   int     `json:"chunk_size"` // 0 for passes without chunks
	MedianMS    float64 `json:"median_ms"`
	LowMS       float64 `json:"low_ms"`  // first quartile
	HighMS      float64 `json:"high_ms"` // third quartile
	Repeats     int     `json:"repeats"`
	Bytes       int64   `json:"bytes"`
	Flops       int64   `json:"flops"`
	GBPerS      float64 `json:"gb_per_s"`
	GFlopPerS   float64 `json:"gflop_per_s"`
	OfBandwidth float64 `json:"of_bandwidth"` // GBPerS over the machine's ceiling
	OfRate      float64 `json:"of_rate"`      // GFlopPerS over the machine's ceiling for the dtype
	PeakBytes   int64   `json:"peak_bytes"`   // in addition to the inputs
	// Error is ‖out-ref‖/‖ref‖ of the worst result, where ref is computed in float64.
	Error  float64 `json:"error"`
	Failed string  `json:"failed,omitempty"`
}

// ChunksRow is one prompt, strategy and way to launch. BytesMoved and Flops are counted
// from the model's shapes, not measured.
type ChunksRow struct {
	ID              int     `json:"id"` // index in the prompts file, from 0
	PromptTokens    int     `json:"prompt_tokens"`
	NumChunks       int     `json:"num_chunks"` // of ChunkSize tokens
	ChunkSize       int     `json:"chunk_size"`
	Strategy        string  `json:"strategy"` // without -optimized, which Compile says
	Compile         string  `json:"compile"`  // eager, kernels, graph or both
	Layers          int     `json:"layers"`
	UseCache        bool    `json:"use_cache"`
	Device          string  `json:"device"`
	DType           string  `json:"dtype"`
	NewTokens       int     `json:"new_tokens"`
	Repeats         int     `json:"repeats"`
	TotalMS         float64 `json:"total_ms"` // median time from the prompt to the last token
	LowMS           float64 `json:"low_ms"`
	HighMS          float64 `json:"high_ms"`
	FirstTokenMS    float64 `json:"first_token_ms"`
	BetweenTokensMS float64 `json:"between_tokens_ms"` // mean; 0 for a single new token
	TokensPerS      float64 `json:"tokens_per_s"`      // new tokens over TotalMS
	PeakBytes       int64   `json:"peak_bytes"`        // in addition to the weights
	BytesMoved      int64   `json:"bytes_moved"`
	GBPerS          float64 `json:"gb_per_s"`
	Flops           int64   `json:"flops"`
	GFlopPerS       float64 `json:"gflop_per_s"`
	CPUUtilization  float64 `json:"cpu_utilization"` // 0 to 1, of all cores
	// GPUUtilization is 0 to 1, or null without a GPU or a value from the driver.
	GPUUtilization *float64    `json:"gpu_utilization,omitempty"`
	TopOperations  []Operation `json:"top_operations"`
	Failed         string      `json:"failed,omitempty"` // reason if the row has no figures
}

// Operation is the time of one kind of operation in a run.
type Operation struct {
	Name  string  `json:"name"`
	MS    float64 `json:"ms"`    // without the operations it called
	Share float64 `json:"share"` // of the time of all operations
}

// AccuracyRow is one prompt and strategy.
type AccuracyRow struct {
	ID              int    `json:"id"`
	Strategy        string `json:"strategy"`
	ChunkSize       int    `json:"chunk_size"`
	PromptTokens    int    `json:"prompt_tokens"`
	ReferenceTokens int    `json:"reference_tokens"`
	// NLL is the mean of the reference after the prompt, in nats per token.
	NLL        float64 `json:"nll"`
	Perplexity float64 `json:"perplexity"`
	Prediction string  `json:"prediction"`
}

// GPTScoreRow is the score of one line of a predictions file under one aspect. Scores are
// mean log-likelihoods in nats per token: negative, and better if nearer to zero.
type GPTScoreRow struct {
	ID     int    `json:"id"`
	Source string `json:"source"` // name of the predictions file
	// Strategy made the predictions. It is "" if the name of the file does not say.
	Strategy     string  `json:"strategy"`
	Aspect       string  `json:"aspect"` // none means no instruction
	HypoGivenRef float64 `json:"hypo_given_ref"`
	RefGivenHypo float64 `json:"ref_given_hypo"`
	Average      float64 `json:"average"`
	HarmonicMean float64 `json:"harmonic_mean"`
}

// SpeedRow is one program's time or rate for one task, as tools/peers writes it.
type SpeedRow struct {
	// Program is conquer, or the name and version of another, perhaps with a comma and how it ran.
	Program string  `json:"program"`
	Task    string  `json:"task"`
	Device  string  `json:"device"`
	DType   string  `json:"dtype,omitempty"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"` // ms, tokens/s, GB
}

// Save writes <dir>/<kind>.json and the same rows as <dir>/<kind>.csv. It creates dir if it
// is missing. Each write is atomic.
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

// writeCSV writes one column for each field of a row, under its name in the JSON file.
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

// cell formats a field for the CSV file.
func cell(v any) string {
	switch v := v.(type) {
	case float64:
		return strconv.FormatFloat(v, 'g', 6, 64)
	case *float64:
		if v == nil {
			return ""
		}
		return cell(*v)
	case []ConsistencyPoint:
		var parts []string
		for _, p := range v {
			parts = append(parts, fmt.Sprintf("%d %.3g", p.Position, p.KL))
		}
		return strings.Join(parts, "; ")
	case []Operation:
		var parts []string
		for _, o := range v {
			parts = append(parts, fmt.Sprintf("%s %.3g ms (%.0f %%)", o.Name, o.MS, 100*o.Share))
		}
		return strings.Join(parts, "; ")
	}
	return fmt.Sprint(v)
}

// The largest size of a file of results, in bytes, and the most rows and operations in it.
const (
	maxResults = 64 << 20
	maxObjects = 1 << 19
)

// Read reads a JSON file that [Results.Save] wrote.
func Read(path string) (*Results, error) {
	data, err := wrongfile.Read(path, maxResults)
	if err != nil {
		return nil, err
	}
	return parseResults(path, data)
}

func parseResults(path string, data []byte) (r *Results, err error) {
	var rows json.RawMessage
	r = &Results{Rows: &rows}
	if c := budget.Count(data); c.Objects > maxObjects || c.Arrays > maxObjects {
		return nil, fmt.Errorf("%s: not the results of a benchmark: it has %d objects and %d "+
			"lists, expected at most %d", path, c.Objects, c.Arrays, maxObjects)
	}
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
	case Consistency:
		r.Rows, err = rowsOf[ConsistencyRow](rows)
	case Quantization:
		r.Rows, err = rowsOf[QuantizationRow](rows)
	case Speed:
		r.Rows, err = rowsOf[SpeedRow](rows)
	default:
		return nil, fmt.Errorf(
			"%s: not the results of a benchmark: kind is %q, expected %s, %s, %s, %s, %s, %s "+
				"or %s", path, r.Kind, SSD, Chunks, Accuracy, GPTScore, Consistency, Quantization,
			Speed)
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
