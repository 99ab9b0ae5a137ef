// Package grammar restricts a text to a regular expression, a choice or a JSON schema, token by
// token. A [Grammar] is compiled once. A [Mask] says, for one vocabulary, which tokens may follow a
// [State].
package grammar

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// expr is a set of texts.
type expr interface{}

type (
	literal string   // one text
	class   []rune   // one character in the ranges [lo, hi, lo, hi, …]
	cat     []expr   // one after the other
	alt     []expr   // one of them
	repeat  struct { // least to most times; most -1: any number
		of          expr
		least, most int
	}
	rule struct{ name string } // a named set, which may contain itself
)

// maxProgram bounds the instructions of a grammar, and maxDepth how deep its rules nest in a text.
const (
	maxProgram = 200_000
	maxDepth   = 100
)

var errTooLarge = errors.New("it is too large: use smaller counts, lengths or fewer parts")

type op uint8

const (
	opByte  op = iota // a byte from lo to hi, then next
	opSplit           // next or other
	opCall            // the rule at other, then next
	opReturn
	opMatch
)

type instruction struct {
	op          op
	lo, hi      byte
	next, other int32
}

// Grammar is a compiled set of texts.
type Grammar struct {
	program []instruction
	start   int32
}

// compiler translates expressions to a program. Each is compiled before what follows it is known to
// it as the index of an instruction.
type compiler struct {
	program []instruction
	rules   map[string]expr
	entries map[string]int32 // -1: being compiled
	calls   map[int32]string // instructions whose rule is not compiled yet
}

// compile makes the program of an expression.
func compile(e expr, rules map[string]expr) (g *Grammar, err error) {
	if err := productive(e, rules); err != nil {
		return nil, err
	}
	c := &compiler{rules: rules, entries: map[string]int32{}, calls: map[int32]string{}}
	defer func() {
		if r := recover(); r != nil {
			failed, ok := r.(error)
			if !ok || !errors.Is(failed, errTooLarge) {
				panic(r)
			}
			g, err = nil, errTooLarge
		}
	}()
	start := c.add(e, c.emit(instruction{op: opMatch}))
	for len(c.calls) > 0 {
		for at, name := range c.calls {
			entry, known := c.entries[name]
			if !known {
				entry = c.add(rules[name], c.emit(instruction{op: opReturn}))
				c.entries[name] = entry
			}
			c.program[at].other = entry
			delete(c.calls, at)
		}
	}
	return &Grammar{program: c.program, start: start}, nil
}

func (c *compiler) emit(i instruction) int32 {
	if len(c.program) >= maxProgram {
		panic(errTooLarge)
	}
	c.program = append(c.program, i)
	return int32(len(c.program) - 1)
}

func (c *compiler) split(a, b int32) int32 {
	return c.emit(instruction{op: opSplit, next: a, other: b})
}

// add compiles e before the instruction next and returns where it begins.
func (c *compiler) add(e expr, next int32) int32 {
	switch e := e.(type) {
	case literal:
		for i := len(e) - 1; i >= 0; i-- {
			next = c.emit(instruction{op: opByte, lo: e[i], hi: e[i], next: next})
		}
		return next
	case class:
		return c.class(e, next)
	case cat:
		for i := len(e) - 1; i >= 0; i-- {
			next = c.add(e[i], next)
		}
		return next
	case alt:
		start := c.add(e[len(e)-1], next)
		for i := len(e) - 2; i >= 0; i-- {
			start = c.split(c.add(e[i], next), start)
		}
		return start
	case repeat:
		return c.repeat(e, next)
	case rule:
		at := c.emit(instruction{op: opCall, next: next})
		c.calls[at] = e.name
		return at
	}
	panic(fmt.Sprintf("no expression: %T", e))
}

func (c *compiler) repeat(r repeat, next int32) int32 {
	if r.most < 0 {
		loop := c.split(0, next)
		c.program[loop].next = c.add(r.of, loop)
		next = loop
	} else {
		end := next
		for range r.most - r.least {
			next = c.split(c.add(r.of, next), end)
		}
	}
	for range r.least {
		next = c.add(r.of, next)
	}
	return next
}

// class compiles ranges of characters as alternatives of bytes. An empty class matches nothing.
func (c *compiler) class(ranges class, next int32) int32 {
	start := int32(-1)
	for i := 0; i+1 < len(ranges); i += 2 {
		utf8Ranges(ranges[i], ranges[i+1], func(bytes [][2]byte) {
			at := next
			for k := len(bytes) - 1; k >= 0; k-- {
				at = c.emit(instruction{op: opByte, lo: bytes[k][0], hi: bytes[k][1], next: at})
			}
			if start >= 0 {
				at = c.split(at, start)
			}
			start = at
		})
	}
	if start < 0 {
		return c.emit(instruction{op: opByte, lo: 1, hi: 0})
	}
	return start
}

// utf8Ranges divides a range of characters into sequences of ranges of bytes.
func utf8Ranges(lo, hi rune, emit func([][2]byte)) {
	for _, gap := range [][2]rune{{0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF},
		{0x10000, utf8.MaxRune}} {
		if a, b := max(lo, gap[0]), min(hi, gap[1]); a <= b {
			sameLength(a, b, emit)
		}
	}
}

// sameLength is utf8Ranges of characters that all have as many bytes.
func sameLength(lo, hi rune, emit func([][2]byte)) {
	for i := 1; i < utf8.RuneLen(lo); i++ {
		mask := rune(1)<<(6*i) - 1 // of the last i bytes
		if lo&^mask == hi&^mask {
			continue
		}
		if lo&mask != 0 {
			sameLength(lo, lo|mask, emit)
			sameLength((lo|mask)+1, hi, emit)
			return
		}
		if hi&mask != mask {
			sameLength(lo, hi&^mask-1, emit)
			sameLength(hi&^mask, hi, emit)
			return
		}
	}
	a, b := utf8.AppendRune(nil, lo), utf8.AppendRune(nil, hi)
	bytes := make([][2]byte, len(a))
	for i := range a {
		bytes[i] = [2]byte{a[i], b[i]}
	}
	emit(bytes)
}

// productive returns an error for a rule of which no text can end.
func productive(e expr, rules map[string]expr) error {
	ends := map[string]bool{}
	var can func(e expr) bool
	can = func(e expr) bool {
		switch e := e.(type) {
		case class:
			return len(e) > 0
		case cat:
			for _, part := range e {
				if !can(part) {
					return false
				}
			}
		case alt:
			for _, part := range e {
				if can(part) {
					return true
				}
			}
			return false
		case repeat:
			return e.least == 0 || can(e.of)
		case rule:
			return ends[e.name]
		}
		return true
	}
	for changed := true; changed; {
		changed = false
		for name, e := range rules {
			if !ends[name] && can(e) {
				ends[name], changed = true, true
			}
		}
	}
	if !can(e) {
		return errors.New("no text can satisfy it")
	}
	return nil
}
