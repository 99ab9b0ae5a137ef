package main

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"conquer/internal/wrongfile"
	"conquer/text/tokenizer"
)

// addFlags are the flags of tokens that a run adds.
type addFlags struct {
	added []string
	dir   string // of the files of the tokenizer that has them
	ids   []int
}

func (f *addFlags) declare(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.added, "add_tokens", nil,
		"`tokens` to add to the tokenizer, or a file with one in each line; the embedding and the "+
			"head get rows for them, which begin as the mean of the others; with LoRA these rows "+
			"are trained beside the adapter")
}

// extend returns the tokenizer with the tokens of the flags.
func (f *addFlags) extend(t *tokenizer.Tokenizer) (*tokenizer.Tokenizer, error) {
	tokens := f.added
	if info, err := os.Stat(tokens[0]); len(tokens) == 1 && err == nil && info.Mode().IsRegular() {
		text, err := wrongfile.Read(tokens[0], 16<<20)
		if err != nil {
			return nil, err
		}
		tokens = nil
		for line := range strings.Lines(string(text)) {
			if token := strings.TrimRight(line, "\r\n"); token != "" {
				tokens = append(tokens, token)
			}
		}
		if len(tokens) == 0 {
			return nil, usagef("--add_tokens: %s has no tokens", f.added[0])
		}
	}
	dir, err := os.MkdirTemp("", "conquer-tokenizer-")
	if err != nil {
		return nil, err
	}
	f.dir = dir
	extended, ids, err := t.Extend(dir, tokens)
	if err != nil {
		return nil, usagef("--add_tokens: %w", err)
	}
	for _, id := range ids {
		if !slices.Contains(f.ids, int(id)) {
			f.ids = append(f.ids, int(id))
		}
	}
	return extended, nil
}

// remove removes the files of the tokenizer.
func (f *addFlags) remove() {
	if f.dir != "" {
		os.RemoveAll(f.dir)
	}
}
