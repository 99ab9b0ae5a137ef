package dataset

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"conquer/text/tokenizer"
)

// labeledText returns the text that has loss, with | where loss stops.
func labeledText(tok *tokenizer.Tokenizer, s Sample) string {
	var b strings.Builder
	for i, l := range s.Labels {
		switch {
		case l != IgnoreLabel:
			b.WriteString(tok.Decode([]int32{l}, false))
		case i > 0 && s.Labels[i-1] != IgnoreLabel:
			b.WriteString("|")
		}
	}
	return b.String()
}

func TestLoad_InstructionsLabelOnlyTheAnswer(t *testing.T) {
	const file = `[
	{"instruction": "Add", "input": "1 2", "output": "3"},
	{"instruction": "Hi", "output": "Hello", "extra": 1}]`
	path := writeTestFile(t, "data.json", file)
	tok := chars(t, "")
	d := mustLoad(t, path, tok, Options{})
	for i, want := range []string{"3\x03", "Hello\x03"} {
		if got := labeledText(tok, d.Samples[i]); got != want {
			t.Errorf("alpaca sample %d learns %q, want %q", i, got, want)
		}
	}
	text := tok.Decode(d.Samples[0].IDs, false)
	if !strings.HasPrefix(text, "\x02Below is") ||
		!strings.HasSuffix(text, "### Input:\n1 2\n\n### Response:\n3\x03") {
		t.Errorf("alpaca prompt: %q", text)
	}
	tok = chars(t, chatML)
	d = mustLoad(t, path, tok, Options{})
	const want = "<user>Add\n\n1 2\x03\n<assistant>3\x03\n"
	if got := tok.Decode(d.Samples[0].IDs, false); got != want {
		t.Errorf("rendered %q, want %q", got, want)
	}
	if got, want := labeledText(tok, d.Samples[1]), "Hello\x03|"; got != want {
		t.Errorf("learns %q, want %q", got, want)
	}
}

func TestLoad_ChatsLabelEveryAssistantTurn(t *testing.T) {
	path := writeTestFile(t, "chat.jsonl",
		`{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},`+
			`{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant",`+
			`"content":"d"}]}`+"\n\n")
	tok := chars(t, chatML)
	d := mustLoad(t, path, tok, Options{})
	if got, want := labeledText(tok, d.Samples[0]), "b\x03|d\x03|"; len(d.Samples) != 1 ||
		got != want {
		t.Errorf("learns %q in %d samples, want %q in 1", got, len(d.Samples), want)
	}
}

// A template may render a turn differently once others follow it. Then that rendering counts.
func TestLoad_AnswersThatATemplateLeavesOutHaveNoLoss(t *testing.T) {
	const forgetful = "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' " +
		"and not loop.last %}..{% else %}{{ m['content'] }}{% endif %}\x03{% endfor %}{% if " +
		"add_generation_prompt %}<assistant>{% endif %}"
	path := writeTestFile(t, "chat.jsonl",
		`{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},`+
			`{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}`)
	tok := chars(t, forgetful)
	d := mustLoad(t, path, tok, Options{})
	if got := labeledText(tok, d.Samples[0]); len(d.Samples) != 1 || got != "d\x03" {
		t.Errorf("learns %q", got)
	}
	if d.Report.Unrendered != 1 || !strings.Contains(d.Report.String(), "1 answer left out by") {
		t.Error(d.Report)
	}
}

// A template renders the reasoning of some answers, of others not, or knows another name for it.
func TestLoad_CountsReasoningThatATemplateLeavesOut(t *testing.T) {
	const chat = `{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a",` +
		`"reasoning_content":"r"},{"role":"user","content":"q"},{"role":"assistant",` +
		`"content":"b","reasoning_content":"s"}]}`
	for _, c := range []struct {
		template, record string
		want             int
	}{
		{thinkTemplate, chat, 1}, // only after the last question
		{thinkTemplate, strings.ReplaceAll(chat, "reasoning_content", "thinking"), 2},
		{thinkTemplate, strings.ReplaceAll(chat, `"r"`, `" "`), 0},
		{imTemplate, chat, 2},
		{generationTemplate, chat, 2},
		{"{% for m in messages %}{{ m | tojson }}</s>{% endfor %}", chat, 0},
	} {
		d := mustLoad(t, writeTestFile(t, "a.jsonl", c.record), withSpecial(t, c.template),
			Options{})
		if d.Report.Unreasoned != c.want || d.Report.Unrendered != 0 {
			t.Errorf("%s with %s: %s, want %d", c.record, c.template, d.Report, c.want)
		}
	}
}

func TestLoad_TextContinuesInTheNextSample(t *testing.T) {
	tok := chars(t, "")
	path := writeTestFile(t, "a.txt", "abcdefg")
	for length := 2; length < 12; length++ {
		d := mustLoad(t, path, tok, Options{MaxLength: length})
		targets := []int32{d.Samples[0].IDs[0]}
		for _, s := range d.Samples {
			if len(s.IDs) > length || !slices.Equal(s.IDs, s.Labels) {
				t.Errorf("sample %v %v", s.IDs, s.Labels)
			}
			targets = append(targets, s.Labels[1:]...)
		}
		if got := tok.Decode(targets, false); got != "\x02abcdefg\x03" || d.Report.Truncated != 0 {
			t.Errorf("length %d: learned %q (%s)", length, got, d.Report)
		}
	}
}

func TestLoad_LongSamplesAreCutAndCounted(t *testing.T) {
	tok := chars(t, chatML)
	// "<user>a\x03\n<assistant>" is 20 tokens.
	path := writeTestFile(t, "d.jsonl", `{"instruction":"a","output":"0123456789"}
{"instruction":"a prompt that alone is longer than a sample may be","output":"x"}
{"instruction":"a","output":"b"}`)
	d := mustLoad(t, path, tok, Options{MaxLength: 25})
	if r := d.Report; r.Records != 3 || r.Truncated != 2 || r.Dropped != 1 || r.Samples != 2 ||
		r.Targets != 5+2 {
		t.Errorf("report: %s", r)
	}
}

func TestLoad_LongTextIsReadInBlocksAndLearnedOnce(t *testing.T) {
	tok := chars(t, "")
	draw := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for b.Len() < 3*blockBytes {
		fmt.Fprintf(&b, "%d", draw.Uint64())
		b.WriteString([]string{" ", "\n", "é", ""}[draw.IntN(4)])
	}
	long := strings.Repeat("ü", blockBytes) // no line or word ends in it
	for _, content := range []string{b.String(), long} {
		d := mustLoad(t, writeTestFile(t, "a.txt", content), tok, Options{MaxLength: 500})
		targets := []int32{d.Samples[0].IDs[0]}
		for _, s := range d.Samples {
			targets = append(targets, s.Labels[1:]...)
		}
		if got := tok.Decode(targets, false); got != "\x02"+content+"\x03" {
			t.Errorf("%d bytes are learned of %d", len(got), len(content))
		}
		if d.Report.Records != 1 {
			t.Errorf("report: %s", d.Report)
		}
	}
}
