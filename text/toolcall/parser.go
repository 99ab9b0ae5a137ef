package toolcall

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Delta is a piece of an answer: reasoning, content, or a piece of a call.
type Delta struct {
	Reasoning, Content string
	Call               *Call
}

// Call is a call of a tool. In pieces, the first has the name and the others have arguments.
type Call struct {
	Index     int
	Name      string
	Arguments string // JSON
}

// Parser divides an answer that comes in pieces. What may be the beginning of a marker is held back
// until that is decided.
type Parser struct {
	format *Format
	tools  map[string]bool // nil: no calls
	most   int             // calls; 0: any number
	state  state
	held   string // not decided yet
	ended  bool
	out    []Delta
	quiet  bool   // white space that comes next is left out
	space  string // white space at the end of the content so far
	begun  bool   // there is content
	calls  int
	raw    strings.Builder // of a call whose name is not known yet
	object *object
	plain  *value // the arguments of a call that is not an object
	name   bool   // the current call's name was told
}

type state int

const (
	atStart state = iota
	inReasoning
	inContent
	atCall
	inCall
	afterCall
)

// Parser returns a parser of one answer. prompt is the text before it, which may have begun the
// reasoning. tools are the names of the tools; without any, calls are content. most is the most
// calls that are told, 0 for all.
func (f *Format) Parser(prompt string, tools []string, most int) *Parser {
	p := &Parser{format: f, most: most}
	if f.InReasoning(prompt) {
		p.state, p.quiet = inReasoning, true
	}
	for _, name := range tools {
		if p.tools == nil {
			p.tools = map[string]bool{}
		}
		p.tools[name] = true
	}
	return p
}

// InReasoning reports whether a prompt ends where reasoning has begun.
func (f *Format) InReasoning(prompt string) bool {
	return f.Think[0] != "" && strings.HasSuffix(strings.TrimRightFunc(prompt, unicode.IsSpace),
		f.Think[0])
}

// Next takes the next piece of the text and returns what is now certain.
func (p *Parser) Next(piece string) []Delta {
	p.held += piece
	for p.advance() {
	}
	out := p.out
	p.out = nil
	return out
}

// End returns what Next held back.
func (p *Parser) End() []Delta {
	p.ended = true
	out := p.Next("")
	if p.calls == 0 && p.space != "" {
		out = append(out, Delta{Content: p.space})
		p.space = ""
	}
	return out
}

// advance takes a part of the held text and reports whether there may be more to take.
func (p *Parser) advance() bool {
	switch p.state {
	case atStart:
		return p.start()
	case inReasoning:
		return p.reasoning()
	case inContent:
		return p.content()
	case atCall:
		return p.call()
	case inCall:
		return p.arguments()
	}
	return p.next()
}

// start finds out whether the answer begins with reasoning.
func (p *Parser) start() bool {
	open := p.format.Think[0]
	text := strings.TrimLeftFunc(p.held, unicode.IsSpace)
	switch {
	case open == "":
		p.state = inContent
	case strings.HasPrefix(text, open):
		p.held, p.state, p.quiet = text[len(open):], inReasoning, true
	case strings.HasPrefix(open, text) && !p.ended:
		return false
	default:
		p.state = inContent
	}
	return true
}

func (p *Parser) reasoning() bool {
	end := p.format.Think[1]
	text, rest, found := strings.Cut(p.held, end)
	if !found {
		n := len(text)
		if !p.ended {
			n -= undecided(text, end)
		}
		text, rest = text[:n], text[n:]
	}
	if p.quiet {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
	}
	kept := strings.TrimRightFunc(text, unicode.IsSpace)
	if !found { // white space may be before the end
		rest = text[len(kept):] + rest
	}
	if kept != "" {
		p.out, p.quiet = append(p.out, Delta{Reasoning: kept}), false
	}
	p.held = rest
	if found {
		p.state, p.quiet = inContent, true
	}
	return found
}

// undecided returns the length of the longest end of text that may begin marker.
func undecided(text, marker string) int {
	for n := min(len(marker)-1, len(text)); n > 0; n-- {
		if strings.HasSuffix(text, marker[:n]) {
			return n
		}
	}
	return 0
}

// open is the marker of calls, without brackets and white space.
func (f *Format) open() string { return strings.TrimRight(strings.TrimSpace(f.Before), "[ \t\n") }

func (p *Parser) content() bool {
	switch open := p.format.open(); {
	case p.held == "":
		return false
	case p.tools == nil:
		p.write(p.held)
		p.held = ""
	case open == "":
		return p.bare()
	default:
		before, rest, found := strings.Cut(p.held, open)
		if !found {
			n := len(before)
			if !p.ended {
				n -= undecided(before, open)
			}
			before, rest = before[:n], before[n:]
		}
		p.write(before)
		p.held = rest
		if !found {
			return false
		}
		p.raw.Reset()
		p.raw.WriteString(open)
		p.state = atCall
	}
	return true
}

// bare finds out whether the answer is an object, which may be a call without a marker.
func (p *Parser) bare() bool {
	text := strings.TrimLeftFunc(p.held, unicode.IsSpace)
	optional := p.format.Optional
	rest, tagged := strings.CutPrefix(text, optional)
	rest = strings.TrimLeftFunc(rest, unicode.IsSpace)
	switch {
	case p.begun || rest != "" && rest[0] != '{' && (tagged ||
		!strings.HasPrefix(optional, text)):
		if tagged && !p.begun {
			p.held = rest
		}
		p.write(p.held)
		p.held, p.begun = "", true
		return false
	case rest != "" && rest[0] == '{':
		p.raw.Reset()
		p.held, p.state = rest, atCall
		return true
	case p.ended:
		p.write(p.held)
		p.held = ""
	}
	return false
}

// write adds content.
func (p *Parser) write(text string) {
	if p.quiet {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
	}
	if text == "" {
		return
	}
	p.quiet = false
	text = p.space + text
	p.space = ""
	if p.tools != nil { // white space before a call is not content
		kept := strings.TrimRightFunc(text, unicode.IsSpace)
		text, p.space = kept, text[len(kept):]
	}
	if text != "" {
		p.out, p.begun = append(p.out, Delta{Content: text}), true
	}
}

// call begins a call after its marker.
func (p *Parser) call() bool {
	f := p.format
	if f.Arguments == "" {
		separator := strings.TrimSpace(f.Separator)
		name, rest, found := strings.Cut(p.held, separator)
		if !found && !p.ended && len(name) < maxName+len(separator) {
			return false
		}
		if !found || len(name) >= maxName {
			return p.noCall()
		}
		p.held, p.state, p.plain = rest, inCall, &value{}
		p.object = &object{name: strings.TrimSpace(name)}
		return true
	}
	text := strings.TrimLeft(p.held, " \t\r\n")
	text = strings.TrimLeft(strings.TrimPrefix(text, "["), " \t\r\n")
	if text == "" && !p.ended {
		return false
	}
	if text == "" || text[0] != '{' {
		return p.noCall()
	}
	p.held, p.state = text, inCall
	p.object = &object{arguments: f.Arguments}
	return true
}

// maxName is more than the bytes of any tool's name.
const maxName = 512

// noCall takes what looked like a call as content.
func (p *Parser) noCall() bool {
	p.state = inContent
	text := p.raw.String()
	p.raw.Reset()
	p.object, p.plain = nil, nil
	p.write(text)
	p.begun = true
	return true
}

// arguments reads a call.
func (p *Parser) arguments() bool {
	o, i := p.object, 0
	for ; i < len(p.held) && !o.done && !o.failed; i++ {
		if p.plain == nil {
			o.step(p.held[i])
		} else {
			if p.plain.step(p.held[i]); p.plain.kind != 0 {
				o.found.WriteByte(p.held[i])
			}
			o.done = p.plain.done
			o.failed = p.plain.kind != 0 && p.plain.kind != '{'
		}
		if !p.name && !o.failed && o.name != "" && (p.tools[o.name] || p.format.open() != "") {
			p.name = true
			p.tell(Call{Name: o.name})
		}
		if !p.name {
			p.raw.WriteByte(p.held[i])
		}
	}
	for ; i < len(p.held) && !utf8.RuneStart(p.held[i]); i++ { // the rest of a character
		p.raw.WriteByte(p.held[i])
	}
	p.held = p.held[i:]
	if p.name {
		if text := o.take(); text != "" {
			p.tell(Call{Arguments: text})
		}
	}
	switch {
	case !o.done && !o.failed && !p.ended:
		return false
	case !p.name:
		return p.noCall()
	}
	p.calls++
	p.name, p.state, p.object, p.plain = false, afterCall, nil, nil
	return true
}

// tell returns a piece of the current call, unless it is one too many.
func (p *Parser) tell(c Call) {
	if c.Index = p.calls; p.most == 0 || p.calls < p.most {
		p.out = append(p.out, Delta{Call: &c})
	}
}

// next finds what follows a call: another one, the end of the calls, or content.
func (p *Parser) next() bool {
	f := p.format
	another, more, maybe := match(p.held, f.Between)
	after, rest, maybeEnd := match(p.held, f.After)
	bare := f.open() == ""
	if bare { // some models separate objects in their own way
		rest = strings.TrimLeft(p.held, "; \t\r\n,")
		after, another = true, strings.HasPrefix(rest, "{")
		more, maybe = rest, rest == ""
	}
	switch {
	case another && (bare || strings.TrimSpace(f.Between) != ""):
		p.held, p.state = more, atCall
		p.raw.Reset()
		p.raw.WriteString(f.open())
	case (maybe || maybeEnd) && !p.ended:
		return false
	case (maybe || maybeEnd) && !after: // a marker that is cut off
		p.held = ""
		return false
	case after:
		p.held, p.state, p.quiet = rest, inContent, true
	default:
		p.state, p.quiet = inContent, true
	}
	return p.held != "" || !p.ended
}

// match finds a marker at the beginning of a text, where both may have white space anywhere. maybe
// says that the text is too short to tell.
func match(text, marker string) (found bool, rest string, maybe bool) {
	marker = strings.Join(strings.Fields(marker), "")
	for marker != "" {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
		if text == "" {
			return false, "", true
		}
		if text[0] != marker[0] {
			return false, "", false
		}
		text, marker = text[1:], marker[1:]
	}
	return true, text, false
}
