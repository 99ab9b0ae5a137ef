package grammar

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
)

// Vocabulary holds the bytes of every token, as a tree.
type Vocabulary struct {
	size  int
	nodes []node
}

// node is a beginning of tokens. Its children are nodes[first:first+count], in the order of their
// bytes.
type node struct {
	first, count int32
	byte         byte
	ids          []int32 // tokens that end here
}

// NewVocabulary makes the tree of a vocabulary of a size. The bytes of a token are what it adds to
// a text; a token without bytes is never allowed.
func NewVocabulary(size int, bytes func(id int32) []byte) *Vocabulary {
	type entry struct {
		bytes string
		id    int32
	}
	var entries []entry
	for id := range size {
		if b := bytes(int32(id)); len(b) > 0 {
			entries = append(entries, entry{string(b), int32(id)})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		if a.bytes < b.bytes {
			return -1
		} else if a.bytes > b.bytes {
			return 1
		}
		return int(a.id - b.id)
	})
	v := &Vocabulary{size: size, nodes: []node{{}}}
	type span struct {
		node        int32
		from, to, d int
	}
	for queue := []span{{0, 0, len(entries), 0}}; len(queue) > 0; queue = queue[1:] {
		s := queue[0]
		for s.from < s.to && len(entries[s.from].bytes) == s.d {
			v.nodes[s.node].ids = append(v.nodes[s.node].ids, entries[s.from].id)
			s.from++
		}
		v.nodes[s.node].first = int32(len(v.nodes))
		for at := s.from; at < s.to; {
			b, end := entries[at].bytes[s.d], at
			for end < s.to && entries[end].bytes[s.d] == b {
				end++
			}
			queue = append(queue, span{int32(len(v.nodes)), at, end, s.d + 1})
			v.nodes = append(v.nodes, node{byte: b})
			v.nodes[s.node].count++
			at = end
		}
	}
	return v
}

// Mask says which tokens of a vocabulary a grammar allows. Several goroutines may use it.
type Mask struct {
	grammar    *Grammar
	vocabulary *Vocabulary
	bytes      func(id int32) []byte

	mutex   sync.Mutex
	states  map[string]*State
	stacks  map[stackKey]*stack
	numbers int32 // of stacks so far
	start   *State
	work    int // threads followed for the current token
}

const (
	// maxStates bounds the states that are kept. Beyond, all but those in use are made anew.
	maxStates = 4000
	// maxWork bounds what one token costs, a fraction of a second.
	maxWork = 4_000_000
)

// ErrTooComplex says that a grammar has too many possibilities at some place.
var ErrTooComplex = errors.New("the grammar has too many possibilities at this place of the " +
	"text: use smaller counts and lengths")

// State is the set of places in a grammar that a text may have reached.
type State struct {
	threads []thread
	accepts bool
	next    *[256]*State // by byte, once computed; dead if there is none
	allowed []uint64     // by token, once computed
}

// dead is the state after a byte that is not allowed.
var dead = &State{}

// thread is a place: an instruction that reads a byte, and the rules that are open.
type thread struct {
	at    int32
	stack *stack
}

// stack is a list of the instructions after open rules; equal ones are the same pointer.
type stack struct {
	number, depth int32
	back          int32
	below         *stack
}

type stackKey struct {
	back  int32
	below *stack
}

// NewMask prepares a grammar for a vocabulary, whose tokens have the given bytes. The error is
// ErrTooComplex.
func NewMask(g *Grammar, v *Vocabulary, bytes func(id int32) []byte) (m *Mask, err error) {
	m = &Mask{grammar: g, vocabulary: v, bytes: bytes}
	m.forget()
	defer recovered(&err)
	m.start = m.closed([]thread{{at: g.start}})
	return m, nil
}

// forget drops all states but those that others hold.
func (m *Mask) forget() {
	m.states, m.stacks = map[string]*State{}, map[stackKey]*stack{}
	if m.start != nil {
		m.start.next = nil // all states can be reached from here
	}
}

// Start is the state of an empty text.
func (m *Mask) Start() *State { return m.start }

// Accepts reports whether the text may end here.
func (s *State) Accepts() bool { return s.accepts }

// Allowed returns the tokens that may follow, as bits. Bit id%64 of element id/64 is that of a
// token. The caller does not change it. The error is ErrTooComplex.
func (m *Mask) Allowed(s *State) (allowed []uint64, err error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if s.allowed != nil {
		return s.allowed, nil
	}
	if len(m.states) > maxStates {
		m.forget()
	}
	m.work = 0
	defer recovered(&err)
	allowed = make([]uint64, (m.vocabulary.size+63)/64)
	m.walk(s, &m.vocabulary.nodes[0], allowed)
	s.allowed = allowed
	return allowed, nil
}

// recovered turns the panic of too much work into an error.
func recovered(err *error) {
	if r := recover(); r == ErrTooComplex {
		*err = ErrTooComplex
	} else if r != nil {
		panic(r)
	}
}

// walk allows the tokens below a node of the vocabulary.
func (m *Mask) walk(s *State, n *node, allowed []uint64) {
	for i := n.first; i < n.first+n.count; i++ {
		child := &m.vocabulary.nodes[i]
		next := m.step(s, child.byte)
		if next == dead {
			continue
		}
		for _, id := range child.ids {
			allowed[id/64] |= 1 << (id % 64)
		}
		m.walk(next, child, allowed)
	}
}

// Next returns the state after a token, nil if it is not allowed.
func (m *Mask) Next(s *State, id int32) (next *State, err error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.work = 0
	defer recovered(&err)
	bytes := m.bytes(id)
	if len(bytes) == 0 {
		return nil, nil
	}
	for _, b := range bytes {
		if s = m.step(s, b); s == dead {
			return nil, nil
		}
	}
	return s, nil
}

// step returns the state after a byte.
func (m *Mask) step(s *State, b byte) *State {
	if s.next == nil {
		s.next = new([256]*State)
	}
	if next := s.next[b]; next != nil {
		return next
	}
	var threads []thread
	for _, t := range s.threads {
		if i := &m.grammar.program[t.at]; i.lo <= b && b <= i.hi {
			threads = append(threads, thread{i.next, t.stack})
		}
	}
	s.next[b] = m.closed(threads)
	return s.next[b]
}

// closed follows the instructions of threads that read nothing.
func (m *Mask) closed(threads []thread) *State {
	s := &State{}
	seen := map[thread]bool{}
	m.work++
	for len(threads) > 0 {
		t := threads[len(threads)-1]
		threads = threads[:len(threads)-1]
		if seen[t] {
			continue
		}
		seen[t] = true
		if m.work++; m.work > maxWork {
			panic(ErrTooComplex)
		}
		switch i := m.grammar.program[t.at]; i.op {
		case opByte:
			s.threads = append(s.threads, t)
		case opSplit:
			threads = append(threads, thread{i.next, t.stack}, thread{i.other, t.stack})
		case opCall:
			if t.stack == nil || t.stack.depth < maxDepth {
				threads = append(threads, thread{i.other, m.push(i.next, t.stack)})
			}
		case opReturn:
			threads = append(threads, thread{t.stack.back, t.stack.below})
		case opMatch:
			s.accepts = true
		}
	}
	if len(s.threads) == 0 && !s.accepts {
		return dead
	}
	return m.same(s)
}

// push returns the stack with another open rule. A call right before a return leaves nothing open.
func (m *Mask) push(back int32, below *stack) *stack {
	for below != nil && m.grammar.program[back].op == opReturn {
		back, below = below.back, below.below
	}
	key := stackKey{back, below}
	if m.stacks[key] == nil {
		m.numbers++
		made := &stack{number: m.numbers, back: back, below: below, depth: 1}
		if below != nil {
			made.depth = below.depth + 1
		}
		m.stacks[key] = made
	}
	return m.stacks[key]
}

// same returns the known state with the same places, or s.
func (m *Mask) same(s *State) *State {
	slices.SortFunc(s.threads, func(a, b thread) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		return int(a.stack.id() - b.stack.id())
	})
	key := make([]byte, 0, 8*len(s.threads)+1)
	for _, t := range s.threads {
		key = binary.LittleEndian.AppendUint32(key, uint32(t.at))
		key = binary.LittleEndian.AppendUint32(key, uint32(t.stack.id()))
	}
	if s.accepts {
		key = append(key, 1)
	}
	if known := m.states[string(key)]; known != nil {
		return known
	}
	m.states[string(key)] = s
	return s
}

func (s *stack) id() int32 {
	if s == nil {
		return 0
	}
	return s.number
}
