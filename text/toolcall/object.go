package toolcall

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// value reads a JSON value byte by byte.
type value struct {
	kind            byte // its first byte; 0 before it
	depth           int
	inText, escaped bool
	done            bool
}

// step takes a byte. It reports whether the byte belongs to the value.
func (v *value) step(b byte) bool {
	switch {
	case v.done:
		return false
	case v.kind == 0:
		if isSpace(b) {
			return true
		}
		v.kind = b
	case v.kind != '{' && v.kind != '[' && v.kind != '"': // a number or a word
		if b == ',' || b == '}' || b == ']' || isSpace(b) {
			v.done = true
			return false
		}
		return true
	}
	switch {
	case v.escaped:
		v.escaped = false
	case v.inText && b == '\\':
		v.escaped = true
	case b == '"':
		v.inText = !v.inText
		v.done = !v.inText && v.depth == 0
	case v.inText:
	case b == '{' || b == '[':
		v.depth++
	case b == '}' || b == ']':
		v.depth--
		v.done = v.depth == 0
	}
	return true
}

func isSpace(b byte) bool { return b == ' ' || b == '\n' || b == '\t' || b == '\r' }

// object reads the JSON object of a call byte by byte.
type object struct {
	arguments    string // the member that holds them
	begun        bool
	key          *value // being read; nil between members
	member       *value // likewise, after the key and a colon
	text         strings.Builder
	keyName      string
	name         string
	found        strings.Builder // arguments that were not taken
	done, failed bool
}

// isArguments reports whether the current member holds the arguments.
func (o *object) isArguments() bool {
	return o.keyName == o.arguments || o.keyName == "arguments" || o.keyName == "parameters"
}

// step takes a byte.
func (o *object) step(b byte) {
	switch {
	case !o.begun:
		o.begun, o.failed = b == '{', b != '{'
	case o.member != nil:
		o.valueByte(b)
	case o.key != nil:
		o.keyByte(b)
	case isSpace(b) || b == ',':
	case b == '}':
		o.done = true
	case b == '"':
		o.key = &value{}
		o.keyByte(b)
	default:
		o.failed = true
	}
}

// keyByte takes a byte of a key or of what is between it and its value.
func (o *object) keyByte(b byte) {
	switch {
	case !o.key.done:
		o.key.step(b)
		o.text.WriteByte(b)
		if o.key.done {
			o.failed = json.Unmarshal([]byte(o.text.String()), &o.keyName) != nil
			o.text.Reset()
		}
	case isSpace(b):
	case b == ':':
		o.member = &value{}
	default:
		o.failed = true
	}
}

// valueByte takes a byte of a member's value.
func (o *object) valueByte(b byte) {
	mine := o.member.step(b)
	if mine && o.member.kind != 0 {
		if o.isArguments() && o.member.kind != '"' {
			o.found.WriteByte(b)
		} else {
			o.text.WriteByte(b)
		}
	}
	if !o.member.done {
		return
	}
	var text string
	if o.member.kind == '"' && json.Unmarshal([]byte(o.text.String()), &text) == nil {
		if o.isArguments() {
			o.found.WriteString(text) // arguments as a text that holds JSON
		} else if o.keyName == "name" {
			o.name = text
		}
	}
	o.text.Reset()
	o.key, o.member = nil, nil
	if !mine {
		o.step(b)
	}
}

// take returns the arguments that were not taken so far, up to the last whole character.
func (o *object) take() string {
	text := o.found.String()
	n := len(text)
	for n > 0 && len(text)-n < utf8.UTFMax && !utf8.ValidString(text[:n]) {
		n--
	}
	o.found.Reset()
	o.found.WriteString(text[n:])
	return text[:n]
}
