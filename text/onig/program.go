package onig

import (
	"errors"
	"fmt"
)

// program is a compiled pattern. Each instruction has one successor, the next one,
// unless it says otherwise.
type program struct {
	code   []instruction
	states int // the number of instructions that remember: opSplit and opOnce
}

type operation uint8

const (
	opChar   operation = iota // a character of set
	opSpan                    // min to max characters of set, as many as possible
	opSplit                   // continue at x or, if that fails, at y
	opOnce                    // where several ways meet: only the first goes on
	opJump                    // continue at x
	opAssert                  // assert holds
	opLook                    // sub matches here, or does not if negative
	opAtomic                  // the first match of sub
	opMatch
)

type instruction struct {
	op       operation
	assert   assertion
	negative bool
	behind   int // of opLook: the most characters before this position, 0 for look-ahead
	isBehind bool
	x, y     int
	index    int // of opSplit and opOnce: its number
	min, max int
	set      *set
	sub      *program
}

// maxCost limits the steps that a match may take for each byte of the text, and with them the
// instructions of a program. The patterns of tokenizers take some 200.
const maxCost = 2000

// maxNested limits how deep programs are nested in programs.
const maxNested = 6

var errTooLarge = fmt.Errorf("it expands to more than %d steps for each byte of a text", maxCost)

// compiler turns a pattern into programs.
type compiler struct {
	cost  int // the most steps at one position so far, in all programs
	reach int // characters of all look-behinds so far
	err   error
}

// compile makes the program of n. depth counts the programs around it. free is true if
// the match may end anywhere.
func (c *compiler) compile(n *node, depth int, free bool) *program {
	p := new(program)
	if depth > maxNested {
		c.err = fmt.Errorf("more than %d nested look-arounds or atomic groups", maxNested)
		return p
	}
	c.emit(p, n, depth, free)
	c.add(p, instruction{op: opMatch})
	return p
}

func (c *compiler) add(p *program, i instruction) int {
	c.spend(1)
	if i.op == opSpan { // see matcher.span
		c.spend(max(i.min, i.max))
	}
	if i.op == opSplit || i.op == opOnce {
		i.index = p.states
		p.states++
	}
	p.code = append(p.code, i)
	return len(p.code) - 1
}

// spend adds to the cost.
func (c *compiler) spend(n int) {
	if c.cost += n; c.cost > maxCost && c.err == nil {
		c.err = errTooLarge
	}
}

// emit appends the instructions of n. last is true if the match ends with n.
func (c *compiler) emit(p *program, n *node, depth int, last bool) {
	if c.err != nil {
		return
	}
	switch n.kind {
	case oneChar:
		c.add(p, instruction{op: opChar, set: n.set})
	case sequence:
		for i, part := range n.parts {
			c.emit(p, part, depth, last && i == len(n.parts)-1)
		}
	case alternatives:
		var ends []int
		for i, part := range n.parts {
			if i == len(n.parts)-1 {
				c.emit(p, part, depth, last)
				break
			}
			split := c.add(p, instruction{op: opSplit})
			p.code[split].x = len(p.code)
			c.emit(p, part, depth, last)
			ends = append(ends, c.add(p, instruction{op: opJump}))
			p.code[split].y = len(p.code)
		}
		for _, end := range ends {
			p.code[end].x = len(p.code)
		}
		if len(ends) > 0 {
			c.add(p, instruction{op: opOnce})
		}
	case repeat:
		c.emitRepeat(p, n, depth, last)
	case atomic:
		c.add(p, instruction{op: opAtomic, sub: c.compile(n.parts[0], depth+1, true)})
	case lookAround:
		behind := 0
		if n.behind {
			if behind = n.parts[0].longest(); behind < 0 {
				c.err = errors.New("a look-behind without a longest match is not supported")
				return
			}
		}
		before := c.cost
		c.reach += behind
		sub := c.compile(n.parts[0], depth+1, !n.behind)
		c.spend((c.cost - before) * behind) // it is tried at each start
		c.add(p, instruction{op: opLook, negative: n.negative, isBehind: n.behind, behind: behind,
			sub: sub})
	case simpleAssertion:
		c.add(p, instruction{op: opAssert, assert: n.assert})
	}
}

func (c *compiler) emitRepeat(p *program, n *node, depth int, last bool) {
	body := n.parts[0]
	if body.kind == oneChar && (n.greed == possessive || n.greed == greedy && last) {
		// Nothing after it can make it give characters back.
		c.add(p, instruction{op: opSpan, set: body.set, min: n.min, max: n.max})
		return
	}
	if n.greed == possessive {
		inner := *n
		inner.greed = greedy
		c.add(p, instruction{op: opAtomic, sub: c.compile(&inner, depth+1, true)})
		return
	}
	for range n.min {
		if c.emit(p, body, depth, false); c.err != nil {
			return
		}
	}
	split := func() int { return c.add(p, instruction{op: opSplit}) }
	to := func(at, in, out int) {
		if p.code[at].x, p.code[at].y = in, out; n.greed == lazy {
			p.code[at].x, p.code[at].y = out, in
		}
	}
	if n.max < 0 {
		// The test comes after the body, so that an empty iteration leaves the loop.
		first := split()
		start := len(p.code)
		c.emit(p, body, depth, false)
		again := split()
		to(again, start, len(p.code))
		to(first, start, len(p.code))
		return
	}
	var optional []int
	for range n.max - n.min {
		at := split()
		optional = append(optional, at)
		start := len(p.code)
		if c.emit(p, body, depth, false); c.err != nil {
			return
		}
		p.code[at].x = start
	}
	for _, at := range optional {
		to(at, p.code[at].x, len(p.code))
	}
	if len(optional) > 1 || len(optional) == 1 && body.kind != oneChar {
		c.add(p, instruction{op: opOnce})
	}
}

// longest returns the most characters that n can match, or -1 if there is no limit.
func (n *node) longest() int {
	switch n.kind {
	case oneChar:
		return 1
	case sequence:
		sum := 0
		for _, part := range n.parts {
			l := part.longest()
			if l < 0 || sum > maxCost {
				return -1
			}
			sum += l
		}
		return sum
	case alternatives:
		most := 0
		for _, part := range n.parts {
			l := part.longest()
			if l < 0 {
				return -1
			}
			most = max(most, l)
		}
		return most
	case repeat:
		l := n.parts[0].longest()
		if l == 0 {
			return 0
		}
		if l < 0 || n.max < 0 || n.max > maxCost/l {
			return -1
		}
		return n.max * l
	case atomic:
		return n.parts[0].longest()
	}
	return 0
}

// shortest returns the least characters that n can match.
func (n *node) shortest() int {
	switch n.kind {
	case oneChar:
		return 1
	case sequence, atomic:
		sum := 0
		for _, part := range n.parts {
			sum += part.shortest()
		}
		return sum
	case alternatives:
		least := n.parts[0].shortest()
		for _, part := range n.parts {
			least = min(least, part.shortest())
		}
		return least
	case repeat:
		return n.min * n.parts[0].shortest()
	}
	return 0
}

// canBeEmpty reports whether n can match without a character.
func (n *node) canBeEmpty() bool {
	switch n.kind {
	case oneChar:
		return false
	case sequence, atomic:
		for _, part := range n.parts {
			if !part.canBeEmpty() {
				return false
			}
		}
	case alternatives:
		for _, part := range n.parts {
			if part.canBeEmpty() {
				return true
			}
		}
		return false
	case repeat:
		return n.min == 0 || n.parts[0].canBeEmpty()
	}
	return true
}
