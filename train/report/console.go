package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"conquer/internal/progress"
)

// Console writes a run's progress for a person: a line every few steps and, on a terminal, a
// progress bar below them. It is a train.Listener.
type Console struct {
	out   io.Writer
	every int
	total int
	bar   *progress.Bar

	// Sums since the last line.
	steps    int
	loss     float64
	tokens   int
	seconds  float64
	measures []summed
}

// summed is a measure that some of the steps have.
type summed struct {
	Measure
	steps int
}

// NewConsole returns a Console that writes to out one line per `every` steps of a run of total
// steps, of which done are already done.
func NewConsole(out io.Writer, every, done, total int) *Console {
	bar := progress.New(out, "training", progress.Steps, int64(done), int64(total))
	return &Console{out: out, every: max(1, every), total: total, bar: bar}
}

// Step counts a step. For the first, the last, and every `every`th step it writes a line with the
// means since the last line.
func (c *Console) Step(s Step) error {
	c.steps, c.loss = c.steps+1, c.loss+s.Loss
	c.tokens, c.seconds = c.tokens+s.Tokens, c.seconds+s.Seconds
	c.add(s.Measures)
	c.bar.Note(fmt.Sprintf("loss %.3f", s.Loss))
	c.bar.Set(int64(s.Step))
	if s.Skipped {
		c.Notice(
			fmt.Sprintf("step %d skipped: its gradients are not finite (norm %v)", s.Step, s.Norm))
	}
	if s.Step == 1 || s.Step%c.every == 0 || s.Step == c.total {
		c.line(
			fmt.Sprintf(
				"step %*d/%d  epoch %.2f  loss %.4f%s  rate %.2e  norm %.3f  %.0f tok/s  %s",
				digits(c.total), s.Step, c.total, s.Epoch, c.loss/float64(c.steps),
				spelled(c.measures), s.Rate, s.Norm, float64(c.tokens)/c.seconds,
				gigabytes(s.Memory)),
		)
		c.steps, c.loss, c.tokens, c.seconds, c.measures = 0, 0, 0, 0, nil
	}
	return nil
}

// add adds the measures of a step.
func (c *Console) add(measures []Measure) {
	for _, m := range measures {
		i := slices.IndexFunc(c.measures, func(s summed) bool { return s.Name == m.Name })
		if i < 0 {
			i = len(c.measures)
			c.measures = append(c.measures, summed{Measure: Measure{Name: m.Name}})
		}
		c.measures[i].Value += m.Value
		c.measures[i].steps++
	}
}

// Validation writes a line.
func (c *Console) Validation(v Validation) error {
	var one Console
	one.add(v.Measures)
	c.line(fmt.Sprintf("step %*d/%d  validation loss %.4f%s  (%.1f s)",
		digits(c.total), v.Step, c.total, v.Loss, spelled(one.measures), v.Seconds))
	return nil
}

// spelled formats the means of measures.
func spelled(measures []summed) (text string) {
	for _, m := range measures {
		text += fmt.Sprintf("  %s %.4f", strings.ReplaceAll(m.Name, "_", " "),
			m.Value/float64(m.steps))
	}
	return text
}

// Notice writes a line.
func (c *Console) Notice(message string) { c.line(message) }

// Print writes a text to another writer, above the progress bar.
func (c *Console) Print(out io.Writer, text string) { c.bar.Print(out, text) }

// Close removes the progress bar.
func (c *Console) Close() { c.bar.Close() }

func (c *Console) line(text string) { c.bar.Print(c.out, text) }

func digits(n int) int { return len(fmt.Sprint(n)) }

func gigabytes(bytes int64) string { return fmt.Sprintf("%.2f GB", float64(bytes)/1e9) }
