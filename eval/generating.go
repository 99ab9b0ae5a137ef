package eval

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"conquer/generate"
	"conquer/text/tokenizer"
)

// Generate implements [Model].
func (l *LM) Generate(ctx context.Context, prompts []Prompt, done func(n int)) ([]string, error) {
	type encoded struct {
		place int
		ids   []int32
	}
	// Prompts that differ in more than their text are not continued together.
	groups := map[string][]encoded{}
	var order []string
	for i, p := range prompts {
		room := l.MaxLength - p.MaxTokens
		if room < 1 {
			return nil, fmt.Errorf("%d new tokens are wanted, and the model reads %d: a prompt "+
				"needs at least one, so ask for fewer with max_gen_toks", p.MaxTokens, l.MaxLength)
		}
		ids := l.encode(p.Text)
		if len(ids) == 0 {
			ids = []int32{l.prefix}
		}
		ids = ids[max(0, len(ids)-room):]
		p.Text = ""
		key := fmt.Sprint(p)
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], encoded{i, ids})
	}
	texts := make([]string, len(prompts))
	for _, key := range order {
		list := groups[key]
		slices.SortStableFunc(list, func(a, b encoded) int {
			return cmp.Compare(len(b.ids), len(a.ids))
		})
		for rows := range slices.Chunk(list, l.BatchRows) {
			ids := make([][]int32, len(rows))
			for k, row := range rows {
				ids[k] = row.ids
			}
			results, _, err := generate.Generate(ctx, l.model, l.tok, ids,
				l.options(prompts[rows[0].place]), nil)
			if err != nil {
				return nil, err
			}
			for k, row := range rows {
				if err := results[k].Err; err != nil {
					return nil, err
				}
				texts[row.place] = cut(results[k].Text, prompts[row.place].Until)
			}
			if done != nil {
				done(len(rows))
			}
		}
	}
	return texts, nil
}

// options are those of a prompt. A text in Until that is the spelling of a special token, which the
// decoded text does not show, ends the text as a token.
func (l *LM) options(p Prompt) generate.Options {
	o := generate.Options{MaxNewTokens: p.MaxTokens, Temperature: p.Temperature, TopK: p.TopK,
		TopP: p.TopP, MinP: p.MinP, NoCache: l.Whole, EOS: generate.EOS(l.model, l.tok)}
	for _, text := range p.Until {
		if id, ok := l.tok.ID(text); ok && l.tok.IsSpecial(id) {
			o.EOS = append(slices.Clone(o.EOS), id)
		} else if text != "" {
			o.Stop = append(o.Stop, text)
		}
	}
	return o
}

// cut ends a text before the first of several strings.
func cut(text string, until []string) string {
	for _, stop := range until {
		if stop != "" {
			text, _, _ = strings.Cut(text, stop)
		}
	}
	return text
}

// openEnd marks the end of a message that the answer continues, so that it can be found in the
// rendered text.
const openEnd = "CONTINUED-HERE "

// Chat implements [Model]. If the template refuses a system message, it is left out, as lm-eval
// does.
func (l *LM) Chat(messages []Message, open bool) (string, error) {
	text, err := l.render(messages, open)
	if err != nil && slices.ContainsFunc(messages, isSystem) {
		if other, failed := l.render(slices.DeleteFunc(slices.Clone(messages), isSystem),
			open); failed == nil {
			return other, nil
		}
	}
	return text, err
}

func isSystem(m Message) bool { return m.Role == "system" }

func (l *LM) render(messages []Message, open bool) (string, error) {
	list := make([]tokenizer.Message, len(messages))
	for i, m := range messages {
		list[i] = tokenizer.Message{Role: m.Role, Content: m.Content}
	}
	if !open {
		return l.tok.Chat(list, true)
	}
	list[len(list)-1].Content += openEnd
	text, err := l.tok.Chat(list, false)
	if err != nil {
		return "", err
	}
	at := strings.LastIndex(text, strings.TrimSpace(openEnd))
	if at < 0 {
		return "", fmt.Errorf("the chat template leaves out the end of the last message, which "+
			"gen_prefix opens: %.60q", messages[len(messages)-1].Content)
	}
	if strings.HasPrefix(text[at:], openEnd) {
		return text[:at], nil
	}
	return trimSpaceRight(text[:at]), nil
}
