package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"conquer/text/tokenizer"
)

// chatInputs are the flags for what a chat template gets beside the messages.
type chatInputs struct {
	tools, documents, kwargs string
	inputs                   tokenizer.ChatInputs
}

func (f *chatInputs) declare(flags *pflag.FlagSet) {
	flags.StringVar(&f.tools, "tools", "",
		"a JSON list of tools for the chat template, or a `file` that holds it")
	flags.StringVar(&f.documents, "documents", "",
		"a JSON list of documents for the chat template, or a `file` that holds it")
	flags.StringVar(&f.kwargs, "chat_template_kwargs", "",
		"further variables of the chat template: a JSON object such as "+
			`'{"enable_thinking": false}', or a `+"`file` that holds it")
}

// readInputs reads the flags.
func (f *chatInputs) readInputs(ctx context.Context) error {
	for _, flag := range []struct {
		name, value string
		to          *json.RawMessage
	}{
		{"tools", f.tools, &f.inputs.Tools},
		{"documents", f.documents, &f.inputs.Documents},
		{"chat_template_kwargs", f.kwargs, &f.inputs.Kwargs},
	} {
		text := strings.TrimSpace(flag.value)
		if text == "" {
			continue
		}
		if text[0] != '[' && text[0] != '{' {
			data, err := readInput(ctx, flag.value)
			if err != nil {
				return fmt.Errorf("--%s: %w", flag.name, err)
			}
			text = strings.TrimSpace(string(data))
		}
		if !json.Valid([]byte(text)) {
			return usagef("--%s: %.60q is not JSON", flag.name, text)
		}
		*flag.to = json.RawMessage(text)
	}
	if err := f.inputs.Check(); err != nil {
		return usagef("--%w", err)
	}
	return nil
}

// given reports whether one of the flags was.
func (f *chatInputs) given() bool { return f.tools != "" || f.documents != "" || f.kwargs != "" }
