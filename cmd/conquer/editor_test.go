package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is both ends of a pseudo terminal.
type pseudoTerminal struct {
	keyboard, program *os.File
	mutex             sync.Mutex
	shown             strings.Builder
}

func newPseudoTerminal(t *testing.T) *pseudoTerminal {
	t.Helper()
	t.Setenv("TERM", "xterm")
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { program.Close() })
	p := &pseudoTerminal{keyboard: keyboard, program: program}
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := keyboard.Read(buffer)
			if err != nil {
				return
			}
			p.mutex.Lock()
			p.shown.Write(buffer[:n])
			p.mutex.Unlock()
		}
	}()
	return p
}

// press waits until the terminal has shown text after that of the last call, then sends keys.
func (p *pseudoTerminal) press(t *testing.T, text, keys string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		p.mutex.Lock()
		shown := p.shown.String()
		if _, rest, ok := strings.Cut(shown, text); ok {
			p.shown.Reset()
			p.shown.WriteString(rest)
			p.mutex.Unlock()
			break
		}
		p.mutex.Unlock()
		if time.Since(began) > 20*time.Second {
			t.Fatalf("waited for %q, shown %q", text, shown)
		}
	}
	if _, err := io.WriteString(p.keyboard, keys); err != nil {
		t.Fatal(err)
	}
}

func TestEditor_EditsRecallsAndPastes(t *testing.T) {
	const left, up, down = "\x1b[D", "\x1b[A", "\x1b[B"
	p := newPseudoTerminal(t)
	e := newEditor(p.program, p.program)
	if e == nil {
		t.Fatal("there is no editor on a terminal")
	}
	defer e.close()
	for _, c := range []struct {
		keys, want string
		err        error
	}{
		{"helo" + left + "l\r", "hello", nil},
		{"größe 世\x7f界\r", "größe 界", nil},
		{up + up + "\r", "hello", nil},
		{up + up + down + "!\r", "hello!", nil},
		{"\x1b[200~one\rtwo \\\rthree\x1b[201~\r", "one\ntwo \\\nthree", nil},
		{"\x1b[200~one\ntwo\n\x1b[201~\r", "one\ntwo\n", nil},
		{"say: \x1b[200~" + strings.Repeat("x", 5000) + "\x1b[201~\r",
			"say: " + strings.Repeat("x", 5000), nil},
		{"first \\\rsecond\r", "first \nsecond", nil},
		{"wrong\x03right\r", "right", nil},
		{"\x1b[200~wrong\rlines\r\x1b[201~\x03right\r", "right", nil},
		{"\x04", "", io.EOF},
		{"\x03", "", errInterrupted},
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			got, err := e.line()
			if got != c.want || err != c.err {
				t.Errorf("%.60q: %.60q, %v, want %.60q, %v", c.keys, got, err, c.want, c.err)
			}
		}()
		p.press(t, "\x1b[?2004h> ", c.keys)
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("%.60q: no line", c.keys)
		}
		p.press(t, "\x1b[?2004l", "") // the terminal is restored
	}
}

func TestChat_EditsLinesOnATerminal(t *testing.T) {
	dir := writeModel(t, 704, true)
	p := newPseudoTerminal(t)
	stdin, stdout := os.Stdin, os.Stdout
	os.Stdin, os.Stdout = p.program, p.program
	defer func() { os.Stdin, os.Stdout = stdin, stdout }()
	code := make(chan int)
	go func() {
		code <- run([]string{"chat", "--model_path", dir, "--max_new_tokens", "4", "--temperature",
			"0"}, os.Stdout, os.Stderr)
	}()
	p.press(t, "\n\x1b[?2004h> ", "/hlp\x1b[De\r")
	p.press(t, "recall earlier ones", "")
	p.press(t, "> ", "hello\r")
	p.press(t, "\x1b[?2004h> ", "\x04")
	select {
	case c := <-code:
		if c != 0 {
			t.Errorf("exit %d", c)
		}
	case <-time.After(20 * time.Second):
		t.Error("Ctrl-D does not end the chat")
	}
}
