package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"conquer/internal/atomicfile"
	"conquer/internal/wrongfile"
)

// MetricsFile is the name of the file that holds one JSON object per line for each [Step],
// [Validation] and [Answer].
const MetricsFile = "metrics.jsonl"

// EventsFolder is the name of the folder that holds TensorBoard's event files.
const EventsFolder = "tensorboard"

// record is a line of metrics.jsonl. Numbers that are not finite are null.
type record struct {
	Step       int     `json:"step"`
	Epoch      float64 `json:"epoch,omitempty"`
	Loss       *number `json:"loss,omitempty"`
	Rate       *number `json:"learning_rate,omitempty"`
	Norm       *number `json:"gradient_norm,omitempty"`
	Skipped    bool    `json:"skipped,omitempty"`
	Tokens     int     `json:"tokens,omitempty"`
	Validation *number `json:"validation_loss,omitempty"`
	Question   string  `json:"question,omitempty"`
	Answer     *string `json:"answer,omitempty"`
	Seconds    float64 `json:"seconds"`
	Memory     int64   `json:"memory_bytes,omitempty"`
}

// number is a float64 that is written to JSON in full precision, or as null if it is not finite.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(n), 'g', -1, 64)
	if strings.ContainsAny(text, "NI") {
		text = "null"
	}
	return []byte(text), nil
}

func numberOf(x float64) *number { n := number(x); return &n }

// Log writes metrics.jsonl and TensorBoard event files. It is a train.Listener.
type Log struct {
	metrics atomicfile.File
	events  *events // nil without TensorBoard
}

// OpenLog opens metrics.jsonl in the folder dir and, if tensorBoard is set, a new event file in
// dir/tensorboard. The run has done `done` steps: lines of an earlier run about later steps are
// removed, because those steps run again. If done is 0, its event files are removed too.
func OpenLog(dir string, tensorBoard bool, done int) (*Log, error) {
	if err := atomicfile.MkdirAll(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, MetricsFile)
	if err := truncateMetrics(path, done); err != nil {
		return nil, err
	}
	events := filepath.Join(dir, EventsFolder)
	if done == 0 {
		if err := removeEvents(events); err != nil {
			return nil, err
		}
	}
	l := &Log{}
	var err error
	if l.metrics, err = atomicfile.Append(path); err != nil {
		return nil, err
	}
	if tensorBoard {
		if l.events, err = openEvents(events, done); err != nil {
			l.metrics.Close()
			return nil, err
		}
	}
	return l, nil
}

// maxMetrics is the largest metrics.jsonl, in bytes, that a run continues: four million lines.
const maxMetrics = 1 << 30

// truncateMetrics keeps the complete lines about the first `done` steps, and none if done is 0.
func truncateMetrics(path string, done int) error {
	old, err := wrongfile.Read(path, maxMetrics)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	kept := keptLines(old, done)
	if len(kept) == len(old) {
		return nil
	}
	return atomicfile.WriteBytes(path, kept)
}

// keptLines returns the complete lines about steps 1 to done. Lines that cannot be read, such as
// the last ones before a power failure, are left out.
func keptLines(old []byte, done int) []byte {
	var kept []byte
	for line := range bytes.Lines(old) {
		var r record
		complete := bytes.HasSuffix(line, []byte("\n"))
		if done > 0 && complete && json.Unmarshal(line, &r) == nil && r.Step >= 0 &&
			r.Step <= done {
			kept = append(kept, line...)
		}
	}
	return kept
}

// write appends a line with the fields of r and one more field per measure.
func (l *Log) write(r record, measures []Measure) error {
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

// Step writes a step's line and its scalars.
func (l *Log) Step(s Step) error {
	if l.events != nil {
		values := map[string]float64{
			"train/loss":              s.Loss,
			"train/learning_rate":     s.Rate,
			"train/gradient_norm":     s.Norm,
			"train/tokens_per_second": float64(s.Tokens) / s.Seconds,
			"train/memory_bytes":      float64(s.Memory),
		}
		for _, m := range s.Measures {
			values["train/"+m.Name] = m.Value
		}
		if err := l.events.scalars(s.Step, values); err != nil {
			return err
		}
	}
	return l.write(record{
		Step:    s.Step,
		Epoch:   s.Epoch,
		Loss:    numberOf(s.Loss),
		Rate:    numberOf(s.Rate),
		Norm:    numberOf(s.Norm),
		Skipped: s.Skipped,
		Tokens:  s.Tokens,
		Seconds: s.Seconds,
		Memory:  s.Memory,
	}, s.Measures)
}

// Validation writes a validation's line and its scalars.
func (l *Log) Validation(v Validation) error {
	if l.events != nil {
		values := map[string]float64{"validation/loss": v.Loss}
		for _, m := range v.Measures {
			values["validation/"+m.Name] = m.Value
		}
		if err := l.events.scalars(v.Step, values); err != nil {
			return err
		}
	}
	return l.write(record{Step: v.Step, Validation: numberOf(v.Loss), Seconds: v.Seconds},
		v.Measures)
}

// Answer writes the line of an answer and its text.
func (l *Log) Answer(a Answer) error {
	if l.events != nil {
		tag, text := fmt.Sprint("answers/", a.Number), a.Question+"\n\n"+a.Text
		if err := l.events.text(a.Step, tag, text); err != nil {
			return err
		}
	}
	return l.write(record{Step: a.Step, Question: a.Question, Answer: &a.Text, Seconds: a.Seconds},
		nil)
}

// Notice does nothing: notices are not logged.
func (l *Log) Notice(string) {}

// Sync flushes metrics.jsonl to the disk.
func (l *Log) Sync() error { return l.metrics.Sync() }

// Close closes the files.
func (l *Log) Close() {
	l.metrics.Close()
	if l.events != nil {
		l.events.close()
	}
}

// Point is a loss after a step.
type Point struct {
	Step int
	Loss float64
}

// ReadLosses reads a metrics.jsonl file: the loss of each step and of each validation. Losses that
// are not finite are left out.
func ReadLosses(path string) (steps, validation []Point, err error) {
	f, err := wrongfile.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if steps, validation, err = readLosses(f); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return steps, validation, nil
}

func readLosses(f io.Reader) (steps, validation []Point, err error) {
	d := json.NewDecoder(f)
	for {
		var r record
		if err := d.Decode(&r); err == io.EOF {
			return steps, validation, nil
		} else if err != nil {
			return nil, nil, err
		}
		if r.Loss != nil {
			steps = append(steps, Point{r.Step, float64(*r.Loss)})
		}
		if r.Validation != nil {
			validation = append(validation, Point{r.Step, float64(*r.Validation)})
		}
	}
}
