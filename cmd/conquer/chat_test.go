package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"conquer/generate"
	"conquer/text/tokenizer"
)

// newConversation returns a conversation with a tiny model whose context has 256 tokens.
func newConversation(t *testing.T, system string) (*conversation, *strings.Builder) {
	t.Helper()
	f := modelFlags{path: writeModel(t, 704, true), device: "cpu"}
	o, err := f.open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	var printed strings.Builder
	c := &conversation{
		opened:        o,
		samplingFlags: &samplingFlags{options: generate.Options{MaxNewTokens: 8, IgnoreEOS: true}},
		system:        systemMessage(system),
		out:           &printed,
	}
	c.session = generate.NewSession(o.model, o.tokenizer)
	t.Cleanup(c.session.Close)
	c.reset()
	return c, &printed
}

// A question that is too long prints an error and the conversation continues. The oldest turns are
// dropped to make room.
func TestChat_ContinuesAfterTooLongQuestion(t *testing.T) {
	c, printed := newConversation(t, "")
	c.person = true
	questions := "hello\n" + strings.Repeat("to and fro ", 200) + "\n"
	for range 20 { // more than the context holds
		questions += "and the sea, and the lamp?\n"
	}
	if err := c.run(strings.NewReader(questions)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(printed.String(), "\n> "); n != 23 {
		t.Errorf("asked %d times, expected 23:\n%s", n, printed.String())
	}
	if n := len(c.messages); n < 4 || n >= 42 || n%2 != 0 || c.messages[0].Content == "hello" ||
		c.messages[n-2].Content != "and the sea, and the lamp?" {
		t.Errorf("%d messages are remembered: %v", n, c.messages)
	}
}

// A question from a file that does not fit fails alone and is named by its line.
func TestChat_QuestionsOfAFileFailAlone(t *testing.T) {
	dir := writeModel(t, 704, true)
	stdout, stderr, code := invoke(t, "\ufeffhello \\\nagain\n\n"+
		strings.Repeat("to and fro ", 200)+"\r\nhello\n", "chat", "--model_path", dir,
		"--max_new_tokens", "4", "--temperature", "0")
	if code != 1 || strings.Count(stdout, "\n") < 2 ||
		!strings.HasPrefix(stderr, "standard input:4: the question has ") ||
		!strings.HasSuffix(stderr, "conquer chat: 1 of 3 questions failed\n") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
}

// When the context is full, half of it is freed at once. Reading the rest again costs a bounded
// share: each token of the conversation is read less than four times in all.
func TestChat_FullContextIsReadAgainSeldom(t *testing.T) {
	c, _ := newConversation(t, "Be brief.")
	said, drops := 0, 0
	before := 0
	for turn := range 150 {
		question := fmt.Sprintf("number %d of the sea?", turn)
		messages, prompt, err := c.fit(question)
		if err != nil {
			t.Fatal(err)
		}
		if messages[0] != (tokenizer.Message{Role: "system", Content: "Be brief."}) ||
			messages[len(messages)-1].Content != question || len(messages)%2 != 0 {
			t.Fatalf("turn %d: %v", turn, messages)
		}
		if len(messages) < len(c.messages)+1 {
			if drops++; len(prompt) > 128 {
				t.Errorf("turn %d: %d tokens are left of 256", turn, len(prompt))
			}
		}
		if _, err := c.answer(messages, prompt, nil); err != nil {
			t.Fatal(err)
		}
		alone, err := c.encode(messages[len(messages)-1:])
		if err != nil {
			t.Fatal(err)
		}
		said += len(alone) + 8
		if turn == 10 {
			before = c.read
		}
	}
	if drops < 10 || drops > 75 || c.read-before > 4*said || c.read < said/4 {
		t.Errorf("%d drops in 150 turns; read %d tokens, said %d", drops, c.read, said)
	}
}
