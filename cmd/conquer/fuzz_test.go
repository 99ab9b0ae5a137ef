package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"conquer/model/statespace"
)

// Every line of a prompts file must be a prompt or have an error.
func FuzzPromptLines(f *testing.F) {
	f.Add("a question\n\n  \nanother\r\n", 0)
	f.Add(`{"prompt":"a"}`+"\n"+`"b"`+"\n"+`{"messages":[{"role":"user","content":"c"}]}`, 1)
	f.Add(`{"messages":[{"role":"user","content":[{"type":"text","text":"c"}]}],"tools":[{}],`+
		`"documents":{},"chat_template_kwargs":{"a":null}}`, 1)
	f.Fuzz(func(t *testing.T, data string, kind int) {
		path := []string{"p.txt", "p.jsonl", "-"}[uint(kind)%3]
		last := 0
		for _, p := range promptLines(data, path) {
			if p.line <= last || p.line > strings.Count(data, "\n")+1 || p.name == "" {
				t.Fatalf("%q: %+v after line %d", data, p, last)
			}
			if last = p.line; p.err == nil && !utf8.ValidString(p.text) {
				t.Fatalf("%q: %q was accepted", data, p.text)
			}
		}
	})
}

// No arguments may crash a command before it runs, and an error is one line.
func FuzzFlags(f *testing.F) {
	var all []command
	for _, c := range commands() {
		if c.subcommands == nil {
			all = append(all, c)
		}
		all = append(all, c.subcommands...)
	}
	for i, args := range []string{"--learning_rate=1e-3 --batch-size 4", "--prompt a --stop b --",
		"--modle_path x -b 1", "--token_ids=1,2 --temperature -1", "--epochs", "-h", "--=",
		"--chunking windowed:2,default", "--lora_rank 8 --save_every=x"} {
		f.Add(i, args)
	}
	f.Fuzz(func(t *testing.T, which int, line string) {
		c := all[uint(which)%uint(len(all))]
		flags, _ := c.declare()
		err := flags.Parse(strings.Fields(line))
		if err == pflag.ErrHelp {
			var b bytes.Buffer
			c.help(&b, flags)
			if b.Len() == 0 {
				t.Fatal("the help is empty")
			}
		} else if err != nil {
			if message := parseMessage(err, flags); message == "" ||
				strings.Contains(message, "strconv") {
				t.Fatalf("%q: %q", line, message)
			}
		}
	})
}

// Values that have parsers of their own.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"5GB", "0.5KiB", "1e400", "1,2, 3", "windowed:2-optimized", "auto",
		"cuda:0", "bfloat16", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); (err == nil) != (n > 0) {
			t.Errorf("%q is %d bytes, %v", s, n, err)
		}
		if lists, err := parseIDs([]string{s}); err == nil {
			again, err := parseIDs([]string{joinIDs(lists[0])})
			if err != nil || joinIDs(again[0]) != joinIDs(lists[0]) {
				t.Errorf("%q is %v and then %v, %v", s, lists, again, err)
			}
		}
		if c, err := statespace.ParseChunking(s); err == nil {
			if again, err := statespace.ParseChunking(c.String()); err != nil || again != c {
				t.Errorf("%q is %+v and then %+v, %v", s, c, again, err)
			}
		}
		n, err := statespace.ParseChunkSize(s)
		if err == nil && n != statespace.Auto && (n < 16 || n > 256) {
			t.Errorf("chunk size %q is %d", s, n)
		}
		parseDType(s)
	})
}
