package train

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Console is a Listener that tells a person how a run goes: a line every so many steps, and below them, on a terminal, a
// progress bar.
type Console struct {
	out    io.Writer
	every  int
	total  int
	bar    *progressbar.ProgressBar // nil when out is no terminal
	loss   float64                  // summed since the last line
	tokens int
	second float64
	steps  int
	more   []Measure // summed likewise
}

// NewConsole makes a Console that writes to out a line every so many steps of a run of total steps, done of which are done.
func NewConsole(out io.Writer, every, done, total int) *Console {
	c := &Console{out: out, every: max(1, every), total: total}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		c.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(out), progressbar.OptionShowCount(),
			progressbar.OptionSetWidth(24), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetDescription("tuning"))
		c.bar.Add(done)
	}
	return c
}

// Step counts a step; every so many, and for the first, it writes a line of their means.
func (c *Console) Step(s Step) error {
	c.loss, c.tokens, c.second, c.steps = c.loss+s.Loss, c.tokens+s.Tokens, c.second+s.Seconds, c.steps+1
	for i, m := range s.Measures {
		if len(c.more) <= i {
			c.more = append(c.more, Measure{Name: m.Name})
		}
		c.more[i].Value += m.Value
	}
	if s.Skipped {
		c.Notice(fmt.Sprintf("step %d skipped: its gradients are no finite numbers (norm %v)", s.Step, s.Norm))
	}
	if s.Step == 1 || s.Step%c.every == 0 || s.Step == c.total {
		more := spelled(c.more, c.steps)
		c.line(fmt.Sprintf("step %*d/%d  epoch %.2f  loss %.4f%s  rate %.2e  norm %.3f  %.0f tok/s  %s", digits(c.total), s.Step, c.total,
			s.Epoch, c.loss/float64(c.steps), more, s.Rate, s.Norm, float64(c.tokens)/c.second, gigabytes(s.Memory)))
		c.loss, c.tokens, c.second, c.steps, c.more = 0, 0, 0, 0, nil
	}
	if c.bar != nil {
		c.bar.Describe(fmt.Sprintf("loss %.3f", s.Loss))
		c.bar.Add(1)
	}
	return nil
}

// Validation writes a line.
func (c *Console) Validation(v Validation) error {
	c.line(fmt.Sprintf("step %*d/%d  validation loss %.4f%s  (%.1f s)", digits(c.total), v.Step, c.total, v.Loss, spelled(v.Measures, 1), v.Seconds))
	return nil
}

// spelled writes measures, summed over n steps, for people.
func spelled(measures []Measure, n int) (text string) {
	for _, m := range measures {
		text += fmt.Sprintf("  %s %.4f", strings.ReplaceAll(m.Name, "_", " "), m.Value/float64(n))
	}
	return text
}

// Notice writes a line.
func (c *Console) Notice(message string) { c.line(message) }

// Close takes the progress bar away.
func (c *Console) Close() {
	if c.bar != nil {
		c.bar.Finish()
		c.bar = nil
	}
}

func (c *Console) line(text string) {
	if c.bar != nil {
		c.bar.Clear()
	}
	fmt.Fprintln(c.out, text)
	if c.bar != nil {
		c.bar.RenderBlank()
	}
}

func digits(n int) int { return len(fmt.Sprint(n)) }

func gigabytes(bytes int64) string { return fmt.Sprintf("%.2f GB", float64(bytes)/1e9) }
