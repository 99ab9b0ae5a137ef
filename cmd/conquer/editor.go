package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// errInterrupted is the error of Ctrl-C on an empty line.
var errInterrupted = errors.New("interrupted")

// errDiscarded is the error of a line that Ctrl-C discards.
var errDiscarded = errors.New("line discarded")

// editor reads lines from a terminal. The arrow keys edit a line and recall earlier ones. Pasted
// lines are one text, which Enter sends.
type editor struct {
	in, out  *os.File
	terminal *term.Terminal
	history  history
	cooked   *term.State // of the terminal while no line is read
	stop     func()      // stops watching the terminal's size
	ctrlC    bool        // the last error of terminal comes from Ctrl-C
	ahead    []byte      // keys that were pressed after it
}

// history holds the earlier lines, oldest first. It implements term.History.
type history struct{ lines []string }

const mostHistory = 500 // lines

func (h *history) Add(line string) {
	if strings.TrimSpace(line) == "" || len(h.lines) > 0 && h.lines[len(h.lines)-1] == line {
		return
	}
	h.lines = append(h.lines[max(0, len(h.lines)+1-mostHistory):], line)
}

func (h *history) Len() int { return len(h.lines) }

func (h *history) At(i int) string { return h.lines[len(h.lines)-1-i] }

// newEditor returns an editor if a person can edit lines there, else nil. The caller must call
// close.
func newEditor(in, out *os.File) *editor {
	if !isTerminal(in) || !isTerminal(out) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	e := &editor{in: in, out: out}
	e.renew()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	done := make(chan struct{})
	e.stop = func() { signal.Stop(resized); close(done) }
	go func() {
		for {
			select {
			case <-resized:
				e.resize()
			case <-done:
				return
			}
		}
	}()
	return e
}

// renew forgets the line that is being edited.
func (e *editor) renew() {
	e.terminal = term.NewTerminal(e, "> ")
	e.terminal.History = &e.history
	e.resize()
}

func (e *editor) resize() {
	if width, height, err := term.GetSize(int(e.out.Fd())); err == nil && width > 0 {
		e.terminal.SetSize(width, height)
	}
}

// close restores the terminal.
func (e *editor) close() {
	e.stop()
	e.restore()
}

// restore gives the terminal back the mode in which Ctrl-C is a signal.
func (e *editor) restore() {
	if e.cooked != nil {
		e.terminal.SetBracketedPasteMode(false)
		term.Restore(int(e.in.Fd()), e.cooked)
		e.cooked = nil
	}
}

// line reads a text: a line, or several if they were pasted or end in a backslash. The error is
// io.EOF after Ctrl-D and errInterrupted after Ctrl-C, both on an empty line. Ctrl-C discards
// another line.
func (e *editor) line() (string, error) {
	cooked, err := term.MakeRaw(int(e.in.Fd()))
	if err != nil {
		return "", err
	}
	e.cooked = cooked
	defer e.restore()
	e.terminal.SetBracketedPasteMode(true)
	var held []string
	for {
		e.terminal.SetPrompt("> ")
		if held != nil {
			e.terminal.SetPrompt(". ")
		}
		line, err := e.terminal.ReadLine()
		var pasted bool
		switch {
		case errors.Is(err, term.ErrPasteIndicator):
			pasted = true
		case errors.Is(err, errDiscarded), e.ctrlC && held != nil:
			io.WriteString(e.out, "^C\r\n")
			held, e.ctrlC = nil, false
			e.renew()
			e.terminal.SetBracketedPasteMode(true)
			continue
		case err != nil && e.ctrlC:
			e.ctrlC = false
			e.renew()
			return "", errInterrupted
		case err != nil:
			e.renew()
			return "", err
		}
		rest, continued := strings.CutSuffix(line, `\`)
		if continued && !pasted {
			line = rest
		}
		held = append(held, line)
		if !pasted && !continued {
			return strings.Join(held, "\n"), nil
		}
	}
}

// send sends a text each time one is wanted. It ends with nil after Ctrl-C or Ctrl-D.
func (e *editor) send(wanted <-chan struct{}, lines chan<- input) error {
	for number := 1; ; number++ {
		<-wanted
		text, err := e.line()
		switch {
		case err == io.EOF, err == errInterrupted:
			return nil
		case err != nil:
			return err
		}
		lines <- input{text, number}
	}
}

// Read reads keys for the terminal. Ctrl-C becomes Ctrl-D, which ends an empty line, and an error,
// which ends another line.
func (e *editor) Read(keys []byte) (n int, err error) {
	if len(e.ahead) == 0 {
		if n, err = e.in.Read(keys); err != nil {
			return n, err
		}
		e.ahead = append(e.ahead, keys[:n]...)
	}
	if i := bytes.IndexByte(e.ahead[:min(len(keys), len(e.ahead))], 3); i >= 0 {
		copy(keys, e.ahead[:i])
		keys[i], e.ctrlC, e.ahead = 4, true, e.ahead[i+1:]
		return i + 1, errDiscarded
	}
	n = copy(keys, e.ahead)
	e.ahead = e.ahead[n:]
	return n, nil
}

// Write writes the terminal's output.
func (e *editor) Write(text []byte) (int, error) { return e.out.Write(text) }
