package dataset

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"conquer/text/jinja"
	"conquer/text/tokenizer"
)

// turns finds the tokens of a rendered conversation that the assistant wrote.
//
// The whole conversation is rendered and encoded once. Where an answer lies in the
// text is known from the template's {% generation %} blocks, or else from the
// bytes that stem from the message. An answer begins where the generation prompt
// ends, and includes the token that ends the turn.
type turns struct {
	tok          *tokenizer.Tokenizer
	conversation tokenizer.Conversation
	trace        jinja.Trace
	prompts      *promptCache

	ids    []int32 // of the whole text
	prompt *string // the generation prompt, once it is needed
}

// tokenRange is a half-open range [from, to) of tokens.
type tokenRange struct{ from, to int }

// answer is the place of an answer in the text.
type answer struct {
	begin int        // where the labels begin
	body  jinja.Span // the message's own text
	end   int        // where the turn ends at the latest
	// textEnd is where the turn's text ends without the white space after it.
	textEnd int
	open    bool // nothing follows the turn but what the template puts after all turns
}

// learned returns the tokens of the messages that learn selects. unrendered counts
// those messages that the template leaves out.
func (t *turns) learned(learn func(i int) bool) (ranges []tokenRange, unrendered int, err error) {
	if t.trace.Generation != nil {
		return t.generated(learn)
	}
	var answers []answer
	var offsets []int
	for i := range t.conversation.Messages {
		if !learn(i) {
			continue
		}
		a, found, err := t.find(i)
		if err != nil {
			return nil, 0, fmt.Errorf("message %d: %w", i, err)
		}
		if !found {
			unrendered++
			continue
		}
		rest := strings.TrimRight(t.trace.Text[a.body.End:a.end], " \t\r\n")
		a.textEnd = a.body.End + len(rest)
		answers = append(answers, a)
		offsets = append(offsets, a.begin, max(a.body.End-1, a.begin), max(a.end-1, 0),
			max(a.textEnd-1, 0))
	}
	var at []int
	t.ids, at = t.tok.EncodeAt(t.trace.Text, false, offsets)
	for k, a := range answers {
		from, last, limit := t.opening(at[4*k], a.begin), at[4*k+1], at[4*k+2]+1
		if a.body.End > a.begin {
			last++
		}
		to := t.turnEnd(last, limit)
		if to == last && a.open {
			to = t.turnEnd(last, len(t.ids))
		}
		if to == last && a.textEnd > a.body.End { // no special token ends the turn
			to = at[4*k+3] + 1
		}
		ranges = append(ranges, tokenRange{from, to})
	}
	return ranges, unrendered, nil
}

// generated returns the tokens of the {% generation %} blocks of messages that
// learn selects, or of all blocks if it selects every answer.
func (t *turns) generated(learn func(i int) bool) (ranges []tokenRange, unrendered int, err error) {
	every := true
	for i, m := range t.conversation.Messages {
		every = every && (learn(i) || !isAnswer(m))
	}
	var offsets []int
	for _, block := range t.trace.Generation {
		if block.Start == block.End {
			continue
		}
		if !every {
			i, err := t.messageOf(block)
			if err != nil {
				return nil, 0, err
			}
			if !learn(i) {
				continue
			}
		}
		offsets = append(offsets, block.Start, block.End-1)
	}
	ids, at := t.tok.EncodeAt(t.trace.Text, false, offsets)
	t.ids = ids
	for k := 0; k < len(at); k += 2 {
		ranges = append(ranges, tokenRange{t.opening(at[k], offsets[k]),
			min(at[k+1]+1, len(ids))})
	}
	return ranges, 0, nil
}

// opening returns the first token of what begins at a byte of the text. Token i holds that byte.
// A space that the tokenizer put before the byte, as Llama-2's does after a special token, is the
// token before.
func (t *turns) opening(i, at int) int {
	if i == 0 || strings.HasSuffix(t.trace.Text[:at], " ") {
		return i
	}
	if space := t.tok.Token(t.ids[i-1]); space == "▁" || space == "Ġ" {
		return i - 1
	}
	return i
}

// messageOf returns the message that a {% generation %} block belongs to.
func (t *turns) messageOf(block jinja.Span) (message int, err error) {
	message = -1
	for _, m := range t.trace.Marks {
		inside := m.Start < block.End && m.End > block.Start
		if m.Kind == jinja.Turn {
			inside = m.Start <= block.Start && m.End >= block.End
		}
		if !inside || m.Kind == jinja.Header || m.Message < 0 {
			continue
		}
		if message >= 0 && message != m.Message {
			return 0, fmt.Errorf("the generation block at byte %d of the chat holds text of "+
				"messages %d and %d, so they cannot be learned "+
				"apart", block.Start, message, m.Message)
		}
		message = m.Message
	}
	if message < 0 {
		return 0, fmt.Errorf("the generation block at byte %d of the chat holds no text of a "+
			"message, so it cannot be told whether to learn it", block.Start)
	}
	return message, nil
}

// find returns the place of message i in the text. found is false if the template
// leaves out its content or its tool calls.
func (t *turns) find(i int) (a answer, found bool, err error) {
	text := t.trace.Text
	home, hasHome, err := t.home(i)
	if err != nil {
		return a, false, err
	}
	a.body = jinja.Span{Start: len(text) + 1}
	first, members := "", map[string]bool{}
	for _, m := range t.trace.Marks {
		inside := m.Message == i && m.Kind >= jinja.Body && m.Start >= home.Start &&
			m.End <= home.End
		if !inside {
			continue
		}
		members[m.Member] = true
		if m.Start < a.body.Start {
			a.body.Start, first = m.Start, m.Member
		}
		a.body.End = max(a.body.End, m.End)
	}
	message := t.conversation.Messages[i]
	calls := hasCalls(message)
	whole := members[""] // the message as a whole, such as its JSON
	if calls && !members["tool_calls"] && !whole || len(members) == 0 && message.Fields != "" ||
		len(members) == 0 && strings.TrimSpace(message.Content) != "" {
		for _, m := range t.trace.Marks {
			if m.Message == jinja.Unclear {
				err = t.mixed(i)
			}
		}
		return a, false, err
	}
	prompt := t.generationPrompt()
	if len(members) == 0 { // an empty answer
		at, ok := t.emptyAnswer(i, home, prompt)
		if !hasHome || !ok {
			return a, false, nil
		}
		a.body = jinja.Span{Start: at, End: at}
	}
	for _, m := range t.trace.Marks {
		if m.Kind >= jinja.Body && m.Message != i && m.Start < a.body.End && m.End > a.body.Start {
			if m.Message == jinja.Unclear {
				return a, false, t.mixed(i)
			}
			return a, false, fmt.Errorf("the chat template renders its text %.40q around that of "+
				"message %d", message.Content, m.Message)
		}
	}
	if !hasHome {
		home = t.between(i, a.body)
	}
	a.end = home.End
	a.open = t.last(i, home.End)
	a.begin = t.start(i, home, a.body, first, prompt)
	return a, true, nil
}

// hasCalls reports whether a message has tool calls.
func hasCalls(message tokenizer.Message) bool {
	var fields struct {
		Calls []json.RawMessage `json:"tool_calls"`
	}
	return strings.Contains(message.Fields, `"tool_calls"`) &&
		json.Unmarshal([]byte(message.Fields), &fields) == nil && len(fields.Calls) > 0
}

// reasoningFields are the fields of a message that hold its reasoning.
var reasoningFields = []string{"reasoning_content", "reasoning", "thinking"}

// withoutReasoning counts the messages that learn selects whose reasoning the template leaves out.
func (t *turns) withoutReasoning(learn func(i int) bool) (n int) {
	for i, m := range t.conversation.Messages {
		if !learn(i) || !hasReasoning(m) {
			continue
		}
		rendered := slices.ContainsFunc(t.trace.Marks, func(m jinja.Mark) bool {
			return m.Kind >= jinja.Body && m.Message == i &&
				(m.Member == "" || slices.Contains(reasoningFields, m.Member))
		})
		if !rendered {
			n++
		}
	}
	return n
}

func hasReasoning(message tokenizer.Message) bool {
	if !strings.Contains(message.Fields, `"reasoning`) &&
		!strings.Contains(message.Fields, `"thinking"`) {
		return false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(message.Fields), &fields) != nil {
		return false
	}
	return slices.ContainsFunc(reasoningFields, func(name string) bool {
		return strings.TrimSpace(textOf(fields[name])) != ""
	})
}

func (t *turns) mixed(i int) error {
	return fmt.Errorf("the chat template mixes its text %.40q with other text in a way that "+
		"cannot be followed", t.conversation.Messages[i].Content)
}

// home returns what a loop over the messages wrote for message i. If none did,
// that is the whole text.
func (t *turns) home(i int) (home jinja.Span, found bool, err error) {
	holds := func(turn jinja.Mark) bool {
		for _, m := range t.trace.Marks {
			if m.Message == i && m.Kind >= jinja.Body && m.Start >= turn.Start &&
				m.End <= turn.End {
				return true
			}
		}
		return false
	}
	filled := false
	for _, m := range t.trace.Marks {
		if m.Kind != jinja.Turn || m.Message != i {
			continue
		}
		switch h := holds(m); {
		case found && filled && h:
			return home, false, fmt.Errorf("the chat template renders its text %.40q twice",
				t.conversation.Messages[i].Content)
		case !found || h:
			home, found, filled = m.Span, true, h
		}
	}
	if !found || !filled && t.hasBody(i) {
		return jinja.Span{End: len(t.trace.Text)}, false, nil
	}
	return home, true, nil
}

func (t *turns) hasBody(i int) bool {
	for _, m := range t.trace.Marks {
		if m.Message == i && m.Kind >= jinja.Body {
			return true
		}
	}
	return false
}

// between returns the range around body without text of other messages.
func (t *turns) between(i int, body jinja.Span) jinja.Span {
	around := jinja.Span{End: len(t.trace.Text)}
	for _, m := range t.trace.Marks {
		if m.Message == i || m.Kind == jinja.Turn {
			continue
		}
		if m.End <= body.Start {
			around.Start = max(around.Start, m.End)
		}
		if m.Start >= body.End {
			around.End = min(around.End, m.Start)
		}
	}
	return around
}

// last reports whether no text of another message follows a place.
func (t *turns) last(i, at int) bool {
	for _, m := range t.trace.Marks {
		if m.Message != i && m.End > at {
			return false
		}
	}
	return true
}

// start returns where the answer in home begins: after the generation prompt if
// the template writes it there, else with the message's own text. What the
// template writes before reasoning or tool calls belongs to the answer.
func (t *turns) start(i int, home, body jinja.Span, member, prompt string) int {
	if at, ok := t.promptEnd(jinja.Span{Start: home.Start, End: body.Start}, prompt); ok {
		return at
	}
	if member == "content" || member == "" {
		return body.Start
	}
	for _, m := range t.trace.Marks {
		if m.Kind == jinja.Header && m.Start >= home.Start && m.End <= body.Start {
			return body.Start
		}
	}
	return home.Start
}

// promptEnd returns where the generation prompt ends in a range of the text. The prompt may end
// with a reasoning block that the range lacks. ok is false if the range does not hold the prompt.
func (t *turns) promptEnd(in jinja.Span, prompt string) (at int, ok bool) {
	for n := len(prompt); n > 0; n-- {
		rest := strings.TrimLeft(prompt[n:], " \t\r\n")
		if rest != "" && rest[0] != '<' && rest[0] != '[' || strings.HasPrefix(rest, "</") {
			continue
		}
		if at := strings.LastIndex(t.trace.Text[in.Start:in.End], prompt[:n]); at >= 0 &&
			strings.TrimSpace(prompt[:n]) != "" {
			return in.Start + at + n, true
		}
	}
	return 0, false
}

// emptyAnswer returns where the tokens that end an answer without text begin in home: after the
// generation prompt, or else after the header if a token that ends a turn follows it.
func (t *turns) emptyAnswer(i int, home jinja.Span, prompt string) (at int, ok bool) {
	if at, ok := t.promptEnd(home, prompt); ok {
		return at, true
	}
	at = home.Start
	for _, m := range t.trace.Marks {
		if m.Message == i && m.Kind == jinja.Header && m.End <= home.End {
			at = max(at, m.End)
		}
	}
	rest := t.trace.Text[at:home.End]
	text := strings.TrimLeft(rest, " \t\r\n")
	ids := t.tok.Encode(text, false)
	return at + len(rest) - len(text), len(ids) > 0 && t.endsTurn(ids[0])
}

// endsTurn reports whether a token may end a turn.
func (t *turns) endsTurn(id int32) bool {
	bos, hasBOS := t.tok.BOS()
	return t.tok.IsEOS(id) || t.tok.IsSpecial(id) && !(hasBOS && id == bos) &&
		!strings.HasPrefix(t.generationPrompt(), t.tok.Token(id))
}

// turnEnd returns the end of the tokens that end a turn whose text ends before
// token from: the first run of special tokens, or the first that holds a token of
// the model's end-of-text tokens. It returns from if there is none before to.
func (t *turns) turnEnd(from, to int) int {
	to = min(to, len(t.ids))
	first := from
	for i := from; i < to; {
		if !t.endsTurn(t.ids[i]) {
			i++
			continue
		}
		final := false
		for ; i < to && t.endsTurn(t.ids[i]); i++ {
			final = final || t.tok.IsEOS(t.ids[i])
		}
		if final {
			return i
		}
		if first == from {
			first = i
		}
	}
	return first
}

// generationPrompt is what the template writes before an answer, as it shows
// after a message of the user; "" if it writes nothing or is not known.
func (t *turns) generationPrompt() string {
	if t.prompt == nil {
		prompt := t.prompts.of(t.tok, t.conversation.ChatInputs)
		t.prompt = &prompt
	}
	return *t.prompt
}

// promptCache keeps generation prompts by the inputs of their chat template, since most records
// have the same.
type promptCache struct {
	mu     sync.Mutex
	byText map[string]string
}

// maxPrompts bounds a promptCache.
const maxPrompts = 1024

func (c *promptCache) of(tok *tokenizer.Tokenizer, inputs tokenizer.ChatInputs) string {
	key := string(inputs.Tools) + "\x00" + string(inputs.Documents) + "\x00" + string(inputs.Kwargs)
	c.mu.Lock()
	prompt, known := c.byText[key]
	c.mu.Unlock()
	if known {
		return prompt
	}
	prompt = promptOf(tok, inputs)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byText == nil || len(c.byText) >= maxPrompts {
		c.byText = map[string]string{}
	}
	c.byText[key] = prompt
	return prompt
}

func promptOf(tok *tokenizer.Tokenizer, inputs tokenizer.ChatInputs) string {
	question := tokenizer.Conversation{ChatInputs: inputs,
		Messages: []tokenizer.Message{{Role: "user", Content: "?"}}}
	var rest [2]string
	for i, prompt := range []bool{false, true} {
		trace, err := tok.Trace(question, prompt)
		if err != nil {
			return ""
		}
		end := 0
		for _, m := range trace.Marks {
			if m.Kind >= jinja.Body {
				end = max(end, m.End)
			}
		}
		rest[i] = trace.Text[end:]
	}
	if prompt, ok := strings.CutPrefix(rest[1], rest[0]); ok {
		return prompt
	}
	// Without the prompt the text ends with something else. Tokens show where they part.
	ids := tok.Encode(rest[1], false)
	n := tokenizer.CommonPrefix(tok.Encode(rest[0], false), ids)
	var offsets []int
	for i := range len(rest[1]) {
		offsets = append(offsets, i)
	}
	_, at := tok.EncodeAt(rest[1], false, offsets)
	for i := range offsets {
		if at[i] >= n {
			return rest[1][i:]
		}
	}
	return ""
}
