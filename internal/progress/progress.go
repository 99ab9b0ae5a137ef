// Package progress shows on a terminal how much of a task is done.
package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Unit is what a [Bar] counts.
type Unit int

const (
	Steps Unit = iota // the bar shows how many of how many
	Bytes             // the bar shows megabytes and the rate
)

// A Bar shows a task's progress. A nil Bar draws nothing, so callers need not ask for a terminal.
type Bar struct {
	out   io.Writer
	bar   *progressbar.ProgressBar
	frame bytes.Buffer // what bar draws: it draws at each call, and only the last frame is shown
	shown time.Time
	task  string
	unit  Unit
	note  string
	done  int64
	now   func() time.Time

	total int64
	// When the first unit of this run was finished. What was done before, such as the steps of a
	// run that is resumed, and the first step, which warms up, say nothing about the time left.
	since     time.Time
	sinceDone int64
}

// New returns a bar for a task of total units, done of which are finished. A total of 0 means that
// it is not yet known. New returns nil if out is not a terminal.
func New(out io.Writer, task string, unit Unit, done, total int64) *Bar {
	if f, ok := out.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return newBar(out, task, unit, done, total, time.Now)
}

func newBar(out io.Writer, task string, unit Unit, done, total int64, now func() time.Time) *Bar {
	b := &Bar{out: out, task: task, unit: unit, done: done, total: total, now: now}
	b.bar = progressbar.NewOptions64(max(1, total),
		progressbar.OptionSetWriter(&b.frame),
		progressbar.OptionSetWidth(24),
		progressbar.OptionSetPredictTime(false), // it counts units of earlier runs
		progressbar.OptionUseANSICodes(true))
	b.draw()
	return b
}

// drawInterval is the least time between two drawings of a bar.
const drawInterval = 100 * time.Millisecond

// draw shows the bar as it is now.
func (b *Bar) draw() {
	b.bar.Set64(b.done)
	b.frame.Reset()
	b.bar.Describe(b.label())
	b.shown = b.now()
	b.out.Write(b.frame.Bytes())
}

// clear removes the bar from the terminal.
func (b *Bar) clear() {
	b.frame.Reset()
	b.bar.Clear()
	b.out.Write(b.frame.Bytes())
}

// Set reports that done units are finished.
func (b *Bar) Set(done int64) {
	if b == nil {
		return
	}
	b.done = done
	if b.since.IsZero() {
		b.since, b.sinceDone = b.now(), done
	}
	if b.now().Sub(b.shown) >= drawInterval || done >= b.total {
		b.draw()
	}
}

// Add reports that n more units are finished.
func (b *Bar) Add(n int64) {
	if b != nil {
		b.Set(b.done + n)
	}
}

// SetTotal sets the number of units.
func (b *Bar) SetTotal(total int64) {
	if b != nil && total != b.total {
		b.total = total
		b.bar.ChangeMax64(total)
	}
}

// Note sets a text that is shown after the count from the next Set on, such as the loss.
func (b *Bar) Note(text string) {
	if b != nil {
		b.note = text
	}
}

// Print writes a line to out, above the bar if there is one.
func (b *Bar) Print(out io.Writer, line string) {
	if b == nil {
		fmt.Fprintln(out, line)
		return
	}
	b.clear()
	fmt.Fprintln(out, line)
	if b.done < b.total {
		b.draw()
	}
}

// Close removes the bar.
func (b *Bar) Close() {
	if b != nil {
		b.clear()
	}
}

// label is the text before the bar: the task, how much is done, the time left and the note.
func (b *Bar) label() string {
	text := b.task
	elapsed := time.Duration(0)
	if !b.since.IsZero() {
		elapsed = b.now().Sub(b.since)
	}
	units := float64(b.done - b.sinceDone)
	switch {
	case b.total <= 0:
	case b.unit == Steps:
		text += fmt.Sprintf(" %d/%d", b.done, b.total)
	default:
		text += fmt.Sprintf(" %s/%s MB", megabytes(b.done), megabytes(b.total))
		if elapsed >= time.Second {
			text += fmt.Sprintf(", %s MB/s", megabytes(int64(units/elapsed.Seconds())))
		}
	}
	if left := float64(b.total - b.done); elapsed >= time.Second && units > 0 && left > 0 {
		text += ", " + duration(elapsed.Seconds()*left/units) + " left"
	}
	if b.note != "" {
		text += ", " + b.note
	}
	return text
}

func megabytes(bytes int64) string {
	if bytes < 10e6 {
		return fmt.Sprintf("%.1f", float64(bytes)/1e6)
	}
	return fmt.Sprintf("%.0f", float64(bytes)/1e6)
}

// duration formats seconds with the two largest units, such as 2 h 5 min.
func duration(seconds float64) string {
	s := int64(seconds + 0.5)
	switch {
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	case s < 3600:
		return fmt.Sprintf("%d min", s/60)
	case s < 48*3600:
		return fmt.Sprintf("%d h %d min", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%d days %d h", s/86400, s%86400/3600)
}

// Tasks returns a function that shows consecutive tasks on out, each with a bar of its own. A bar
// disappears when its task is finished.
func Tasks(out io.Writer, unit Unit) func(task string, done, total int64) {
	var bar *Bar
	current := ""
	return func(task string, done, total int64) {
		if task != current || done >= total {
			bar.Close()
			bar, current = nil, task
		}
		if done >= total {
			return
		}
		if bar == nil {
			bar = New(out, task, unit, done, total)
		}
		bar.Set(done)
	}
}
