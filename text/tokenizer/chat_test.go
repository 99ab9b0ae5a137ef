package tokenizer

import (
	"strings"
	"testing"
)

func TestChat_MatchesTransformers(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		for _, c := range golden.Chats {
			got, err := tok.Chat(c.Messages, c.Generate)
			if (err != nil) != (c.Want == nil) || err == nil && got != *c.Want {
				t.Errorf("%v gives %q, %v", c.Messages, got, err)
			}
		}
	})
}

func TestChat_ErrorsNameTheTemplate(t *testing.T) {
	for template, want := range map[string]string{
		"{{ raise_exception('no such role') }}": "chat template: ",
		"{% if %}":                              "chat template: ",
		"":                                      ErrNoChatTemplate.Error(),
	} {
		tok := chars(t)
		tok.template.source = template
		if _, err := tok.Chat(nil, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", template, err, want)
		}
	}
}
