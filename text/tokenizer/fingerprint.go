package tokenizer

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"conquer/text/jinja"
)

// clockCall is a call of strftime_now whose format is a literal, and clockTest a test whether there
// is this function.
var (
	clockCall = regexp.MustCompile(`strftime_now\s*\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)`)
	clockTest = regexp.MustCompile(`strftime_now\s+is\s+(?:not\s+)?defined`)
)

var errNoClock = errors.New("the chat template shows the time, and the tokenizer has no fixed " +
	"one: set it with SetClock")

// Fingerprint returns a hash of all that decides how t encodes texts and renders chats: its files,
// its special tokens, its templates, and what of its time a template shows. So it changes with the
// day for a template that shows the date, and with each time that is set for one that shows the
// time in another way. It fails for a template that shows the time if SetClock has set none.
func (t *Tokenizer) Fingerprint() (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	add := func(parts ...string) {
		for _, p := range parts {
			binary.Write(h, binary.LittleEndian, int64(len(p)))
			h.Write([]byte(p))
		}
	}
	files, err := t.files()
	if err != nil {
		return sum, err
	}
	for _, f := range files {
		add(f.name, string(f.data))
	}
	binary.Write(h, binary.LittleEndian, slices.Concat(t.eos, []int32{t.bos, t.pad}))
	for _, name := range append(t.templateNames(), defaultTemplate) {
		source := t.ChatTemplates()[name]
		add(name, source)
		calls := clockCall.FindAllStringSubmatch(source, -1)
		uses := strings.Count(source, "strftime_now")
		if uses == len(clockTest.FindAllString(source, -1)) {
			continue
		}
		if t.template.clock.IsZero() {
			return sum, errNoClock
		}
		if uses != len(calls)+len(clockTest.FindAllString(source, -1)) {
			add(t.template.clock.Format(time.RFC3339Nano))
			continue
		}
		for _, c := range calls {
			add(jinja.Strftime(t.template.clock, c[1]+c[2]))
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}
