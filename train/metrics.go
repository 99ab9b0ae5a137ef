package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"conquer/internal/atomicfile"
	"conquer/torch"
)

// MetricsFile is the file in Options.LogPath that has a line of JSON for each [Step] and each [Validation].
const MetricsFile = "metrics.jsonl"

// Step is what one step gave.
type Step struct {
	Step    int     // from 1
	Epoch   float64 // passes over the data set, the part of the current one included
	Loss    float64 // mean over the step's labels, nats
	Rate    float64 // learning rate
	Norm    float64 // of the gradients, before clipping
	Skipped bool    // the gradients were no finite numbers: the weights did not change
	Tokens  int     // that are not padding
	Seconds float64
	Memory  int64 // bytes that the process has resident, or that libtorch has allocated on the GPU
	// Measures are what else the objective tells. "objective" is the loss with label smoothing and z-loss, which Loss is
	// without. DPO's Loss is a mean over pairs, as are "reward_chosen" and "reward_rejected" (beta times how far the answers'
	// log-probabilities are from the reference's), "reward_margin" (their difference) and "accuracy" (how often it is positive).
	Measures []Measure
}

// Validation is a look at the validation set after a step; 0 is before the first.
type Validation struct {
	Step    int
	Loss    float64 // mean over the labels, or pairs, nats
	Seconds float64
	// Measures are DPO's, as in Step.
	Measures []Measure
}

// record is a line of metrics.jsonl. Loss and norm are null where they are no finite numbers.
type record struct {
	Step       int     `json:"step"`
	Epoch      float64 `json:"epoch,omitempty"`
	Loss       *number `json:"loss,omitempty"`
	Rate       *number `json:"learning_rate,omitempty"`
	Norm       *number `json:"gradient_norm,omitempty"`
	Skipped    bool    `json:"skipped,omitempty"`
	Tokens     int     `json:"tokens,omitempty"`
	Validation *number `json:"validation_loss,omitempty"`
	Seconds    float64 `json:"seconds"`
	Memory     int64   `json:"memory_bytes,omitempty"`
}

// number is a float64 that JSON shows as null when it is not finite, and in full precision otherwise.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(n), 'g', -1, 64)
	if strings.ContainsAny(text, "NI") {
		text = "null"
	}
	return []byte(text), nil
}

func numberOf(x float64) *number { n := number(x); return &n }

// logFiles is the Listener that writes a run's files.
type logFiles struct {
	metrics *os.File
	events  *events // nil without TensorBoard
}

// openLog opens metrics.jsonl in dir for a run that has done a number of steps. What an earlier run wrote about later
// steps goes: they are about to be done again.
func openLog(dir string, tensorBoard bool, done int) (*logFiles, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, MetricsFile)
	if err := truncateMetrics(path, done); err != nil {
		return nil, err
	}
	l := &logFiles{}
	var err error
	if l.metrics, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666); err != nil {
		return nil, err
	}
	if tensorBoard {
		if l.events, err = openEvents(filepath.Join(dir, "tensorboard"), done); err != nil {
			l.metrics.Close()
			return nil, err
		}
	}
	return l, nil
}

// truncateMetrics keeps the lines about the first `done` steps, none of them when there were none.
func truncateMetrics(path string, done int) error {
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var kept bytes.Buffer
	for line := range bytes.Lines(old) {
		var r record
		if done > 0 && json.Unmarshal(line, &r) == nil && r.Step <= done && bytes.HasSuffix(line, []byte("\n")) {
			kept.Write(line)
		}
	}
	if kept.Len() == len(old) {
		return nil
	}
	return atomicfile.WriteBytes(path, kept.Bytes())
}

// write writes a line, with measures as further fields of it.
func (l *logFiles) write(r record, measures []Measure) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	for _, m := range measures {
		value, _ := numberOf(m.Value).MarshalJSON()
		line = fmt.Appendf(line[:len(line)-1], ",%q:%s}", m.Name, value)
	}
	if _, err := l.metrics.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing the metrics: %w", err)
	}
	return nil
}

// Step writes a step's line.
func (l *logFiles) Step(s Step) error {
	if l.events != nil {
		values := map[string]float64{
			"train/loss": s.Loss, "train/learning_rate": s.Rate, "train/gradient_norm": s.Norm,
			"train/tokens_per_second": float64(s.Tokens) / s.Seconds, "train/memory_bytes": float64(s.Memory),
		}
		for _, m := range s.Measures {
			values["train/"+m.Name] = m.Value
		}
		if err := l.events.scalars(s.Step, values); err != nil {
			return err
		}
	}
	return l.write(record{Step: s.Step, Epoch: s.Epoch, Loss: numberOf(s.Loss), Rate: numberOf(s.Rate), Norm: numberOf(s.Norm),
		Skipped: s.Skipped, Tokens: s.Tokens, Seconds: s.Seconds, Memory: s.Memory}, s.Measures)
}

// Validation writes a validation's line.
func (l *logFiles) Validation(v Validation) error {
	if l.events != nil {
		values := map[string]float64{"validation/loss": v.Loss}
		for _, m := range v.Measures {
			values["validation/"+m.Name] = m.Value
		}
		if err := l.events.scalars(v.Step, values); err != nil {
			return err
		}
	}
	return l.write(record{Step: v.Step, Validation: numberOf(v.Loss), Seconds: v.Seconds}, v.Measures)
}

// Notice is not written.
func (l *logFiles) Notice(string) {}

// sync brings what was written to the disk.
func (l *logFiles) sync() error { return l.metrics.Sync() }

func (l *logFiles) close() {
	l.metrics.Close()
	if l.events != nil {
		l.events.close()
	}
}

// memory is how much memory is used now and was used at the peak, in bytes: on the CPU what the process has resident, on
// a GPU what libtorch has allocated there. 0 where the system does not say.
func memory(d torch.Device) (now, peak int64) {
	if d.IsCUDA() {
		info := d.Info()
		return info.Allocated, info.Peak
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			now = kib << 10
		} else if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			peak = kib << 10
		}
	}
	return now, peak
}

// PeakMemory is the most memory used so far on the trained model's device, in bytes.
func (t *Trainer) PeakMemory() int64 {
	_, peak := memory(t.device)
	return peak
}
