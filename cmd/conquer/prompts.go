package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"conquer/generate"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
)

// prompt is one prompt of conquer generate.
type prompt struct {
	text string  // empty for --token_ids
	ids  []int32 // set by encodeAll for a text
	name string  // where it was given, such as questions.txt:10 or --prompt 2
	line int     // in the file of --prompts_file, from 1; 0 for a flag
	err  error   // why it cannot be continued
}

// readPrompts collects --prompt, --prompts_file and --token_ids. A line that is no prompt becomes a
// prompt with an error.
func (f *generateFlags) readPrompts() ([]*prompt, error) {
	var prompts []*prompt
	for i, text := range f.prompts {
		prompts = append(prompts, &prompt{text: text, name: fmt.Sprintf("--prompt %d", i+1)})
	}
	lists, err := parseIDs(f.tokenIDs)
	if err != nil {
		return nil, err
	}
	for i, ids := range lists {
		prompts = append(prompts, &prompt{ids: ids, name: fmt.Sprintf("--token_ids %d", i+1)})
	}
	if f.promptsFile == "" {
		return prompts, nil
	}
	data, err := dataset.ReadFile(f.promptsFile)
	if err != nil {
		return nil, fmt.Errorf("--prompts_file: %w", err)
	}
	lines := promptLines(string(data), f.promptsFile)
	if len(lines) == 0 {
		return nil, fmt.Errorf("--prompts_file: %s holds no prompt", inputName(f.promptsFile))
	}
	return append(prompts, lines...), nil
}

// promptLines returns the prompts in a file: one for each line that is not blank.
func promptLines(data, path string) (prompts []*prompt) {
	objects := strings.EqualFold(filepath.Ext(path), ".jsonl")
	for i, line := range strings.Split(data, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if strings.TrimSpace(line) == "" {
			continue
		}
		p := &prompt{text: line, name: fmt.Sprintf("%s:%d", inputName(path), i+1), line: i + 1}
		if path == dataset.Stdin && len(prompts) == 0 { // has no extension
			_, err := promptOf(line)
			objects = err == nil
		}
		if !utf8.ValidString(line) {
			p.err = errors.New("the line is not valid UTF-8")
		} else if objects {
			p.text, p.err = promptOf(line)
		}
		prompts = append(prompts, p)
	}
	return prompts
}

// promptOf reads a line of a .jsonl file.
func promptOf(line string) (string, error) {
	var prompt string
	if json.Unmarshal([]byte(line), &prompt) == nil {
		return prompt, nil
	}
	var object struct {
		Prompt *string `json:"prompt"`
	}
	if err := json.Unmarshal([]byte(line), &object); err != nil || object.Prompt == nil {
		return "", errors.New(`expected a JSON string, or an object with the field "prompt"`)
	}
	return *object.Prompt, nil
}

// checkStdin refuses standard input as a file if several processes would read it.
func checkStdin(flag, path string, processes int) error {
	if path == dataset.Stdin && processes > 1 {
		return usagef("--%s - works in one process only: with --nproc give a file", flag)
	}
	return nil
}

// inputName returns the name of an input file for messages.
func inputName(path string) string {
	if path == dataset.Stdin {
		return "standard input"
	}
	return path
}

// encodeAll sets the ids or the error of each prompt. The error that it returns concerns all of
// them, or the only one.
func (f *generateFlags) encodeAll(o *opened, prompts []*prompt) error {
	texts := len(f.tokenIDs) == 0
	if f.chat {
		if err := checkChat(o); err != nil {
			return err
		}
	} else if texts && o.tokenizer == nil {
		return o.noTokenizer("give one with --tokenizer, or the prompt as --token_ids")
	}
	for _, p := range prompts {
		if p.err == nil && texts {
			p.ids, p.err = f.encode(o, p.text)
		}
		if p.err == nil {
			p.err = generate.CheckPrompt(o.model, p.ids)
		}
	}
	if only := prompts[0]; len(prompts) == 1 && only.err != nil && only.line == 0 {
		return only.err
	}
	return nil
}

// encode turns a prompt into ids.
func (f *generateFlags) encode(o *opened, text string) ([]int32, error) {
	if f.chat {
		return encodeChat(o, append(systemMessage(f.system),
			tokenizer.Message{Role: "user", Content: text}))
	}
	ids := o.tokenizer.Encode(text, true)
	if bos, ok := o.tokenizer.BOS(); ok && len(ids) == 0 {
		ids = []int32{bos} // an empty prompt becomes the start token
	}
	if len(ids) == 0 {
		return nil, usagef("the prompt is empty, and the tokenizer has no start token")
	}
	return ids, nil
}

// printFailures prints why prompts failed.
func printFailures(prompts []*prompt) {
	for _, p := range prompts {
		if p.err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, p.err)
		}
	}
}

// failures returns the error that counts the failed prompts, or nil.
func failures(prompts []*prompt) error {
	n := 0
	for _, p := range prompts {
		if p.err != nil {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d of %s failed", n, dataset.Count(len(prompts), "prompt"))
}
