package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	// messages are a conversation given instead of a text. inputs belong to it or to the text.
	messages []tokenizer.Message
	inputs   tokenizer.ChatInputs
	rendered string // text of ids
	name     string // where it was given, such as questions.txt:10 or --prompt 2
	line     int    // in the file of --prompts_file, from 1; 0 for a flag
	err      error  // why it cannot be continued
}

// readPrompts collects --prompt, --prompts_file and --token_ids. A line that is no prompt becomes a
// prompt with an error.
func (f *generateFlags) readPrompts(ctx context.Context) ([]*prompt, error) {
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
	data, err := readInput(ctx, f.promptsFile)
	if err != nil {
		return nil, fmt.Errorf("--prompts_file: %w", err)
	}
	if filepath.Ext(f.promptsFile) == ".json" && json.Unmarshal(data, new([]any)) == nil {
		return nil, fmt.Errorf("--prompts_file: %s is a JSON list, expected one prompt per line: "+
			"convert it with `jq -c .[] %[1]s > prompts.jsonl`", f.promptsFile)
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
			objects = new(prompt).parse(line) == nil
		}
		if !utf8.ValidString(line) {
			p.err = errors.New("the line is not valid UTF-8")
		} else if objects {
			p.err = p.parse(line)
		}
		prompts = append(prompts, p)
	}
	return prompts
}

// parse reads a line of a .jsonl file.
func (p *prompt) parse(line string) error {
	var text string
	if json.Unmarshal([]byte(line), &text) == nil {
		p.text = text
		return nil
	}
	var object struct {
		Prompt    *string             `json:"prompt"`
		Messages  []tokenizer.Message `json:"messages"`
		Tools     json.RawMessage     `json:"tools"`
		Documents json.RawMessage     `json:"documents"`
		Kwargs    json.RawMessage     `json:"chat_template_kwargs"`
	}
	err := json.Unmarshal([]byte(line), &object)
	switch {
	case err == nil && object.Prompt != nil:
		p.text = *object.Prompt
	case err == nil && len(object.Messages) > 0:
		p.text, p.messages = object.Messages[len(object.Messages)-1].Content, object.Messages
	default:
		expected := errors.New(`expected a JSON string, or an object with the field "prompt" or ` +
			`"messages"`)
		if _, wrongType := errors.AsType[*json.UnmarshalTypeError](err); err == nil || wrongType {
			return expected
		}
		return fmt.Errorf("%w: %w", expected, err)
	}
	p.inputs = tokenizer.ChatInputs{Tools: object.Tools, Documents: object.Documents,
		Kwargs: object.Kwargs}
	return p.inputs.Check()
}

// checkStdin refuses standard input as a file if several processes would read it.
func checkStdin(flag, path string, processes int) error {
	if path == dataset.Stdin && processes > 1 {
		return usagef("--%s - works in one process only: with --nproc give a file", flag)
	}
	return nil
}

// readInput is dataset.ReadFile. A signal ends the wait for a pipe that nobody writes to.
func readInput(ctx context.Context, path string) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		data, err := dataset.ReadFile(path)
		read <- result{data, err}
	}()
	select {
	case r := <-read:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
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
			p.err = f.encode(o, p)
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

// encode sets the ids of a prompt.
func (f *generateFlags) encode(o *opened, p *prompt) (err error) {
	if f.chat {
		messages := p.messages
		if messages == nil {
			messages = []tokenizer.Message{{Role: "user", Content: p.text}}
		}
		if messages[0].Role != "system" {
			messages = append(systemMessage(f.system), messages...)
		}
		p.rendered, p.ids, err = encodeChat(o, tokenizer.Conversation{Messages: messages,
			ChatInputs: p.inputs.Over(f.inputs)})
		return err
	}
	if p.messages != nil {
		return usagef("messages need --chat")
	}
	p.rendered, p.ids = p.text, o.tokenizer.Encode(p.text, true)
	if bos, ok := o.tokenizer.BOS(); ok && len(p.ids) == 0 {
		p.ids = []int32{bos} // an empty prompt becomes the start token
	}
	if len(p.ids) == 0 {
		return usagef("the prompt is empty, and the tokenizer has no start token")
	}
	return nil
}

// printFailures prints why prompts failed.
func printFailures(prompts []*prompt) {
	for _, p := range prompts {
		if p.err != nil {
			note("%s: %v\n", p.name, p.err)
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
