package tokenizer

import (
	"fmt"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"
	"strings"
	"unicode/utf8"
)

// bpe is the byte-pair encoding of a tokenizer.json. A word starts as one symbol
// per character, or per byte in byte-level files. While an adjacent pair is in
// the list of merges, the pair that is earliest in the list is joined, the
// leftmost of equal pairs first.
type bpe struct {
	ids    map[string]int32
	pairs  pairTable
	merged []int32 // by rank: id that the merge produces

	byteLevel    bool
	byteFallback bool
	ignoreMerges bool
	fuseUnk      bool
	unk          int32 // -1 if there is none

	// unit is the symbol of each byte (byte-level) or of each ASCII character, -1
	// if the vocabulary has none.
	unit [256]int32
	// fallback holds the ids of the tokens <0x00> … <0xFF>, -1 if missing.
	fallback [256]int32
	// whole maps the bytes of a word to its id, if ignoreMerges is set.
	whole map[string]int32
	// cutAtSpace is set if no merge joins a "▁" to the text before it. Then a long
	// text can be encoded word by word.
	cutAtSpace bool
}

const (
	noRank     = int32(1<<31 - 1)
	spaceMark  = "▁"     // U+2581, SentencePiece's space
	maxVocab   = 1 << 20 // far above any real vocabulary; limits the memory for a damaged file
	linearMax  = 96      // longest word in symbols that is merged without a heap
	cacheSlots = 1 << 13
)

// setMerges fills the tables from the list of merges, in order of priority.
func (m *bpe) setMerges(merges []mergePair) error {
	if len(merges) > maxVocab {
		return fmt.Errorf("%d merges, expected at most %d", len(merges), maxVocab)
	}
	m.merged = make([]int32, len(merges))
	m.pairs = newPairTable(len(merges))
	_, hasMark := m.ids[spaceMark]
	m.cutAtSpace = hasMark && !m.byteLevel && !m.ignoreMerges
	var joined []byte
	for rank, pair := range merges {
		left, ok := m.ids[pair[0]]
		right, ok2 := m.ids[pair[1]]
		if !ok || !ok2 {
			return fmt.Errorf("merge %d joins %q and %q, which are not both in the vocabulary",
				rank, pair[0], pair[1])
		}
		joined = append(append(joined[:0], pair[0]...), pair[1]...)
		id, ok := m.ids[string(joined)]
		if !ok {
			return fmt.Errorf("merge %d produces %q, which is not in the vocabulary", rank, joined)
		}
		m.merged[rank] = id
		m.pairs.put(left, right, int32(rank))
		if strings.HasPrefix(pair[1], spaceMark) && !strings.HasSuffix(pair[0], spaceMark) {
			m.cutAtSpace = false
		}
	}
	return nil
}

// setUnits fills the tables that map bytes and characters to first symbols.
func (m *bpe) setUnits() {
	for b := range 256 {
		m.unit[b], m.fallback[b] = -1, -1
		char := string(rune(b))
		if m.byteLevel {
			char = string(byteRune[b])
		}
		if id, ok := m.ids[char]; ok {
			m.unit[b] = id
		}
		if id, ok := m.ids[fmt.Sprintf("<0x%02X>", b)]; ok && m.byteFallback {
			m.fallback[b] = id
		}
	}
	if !m.ignoreMerges {
		return
	}
	m.whole = m.ids
	if m.byteLevel {
		m.whole = make(map[string]int32, len(m.ids))
		for token, id := range m.ids {
			if raw, ok := byteLevelBytes(token); ok {
				m.whole[raw] = id
			}
		}
	}
}

// maxScratch is the longest word, in characters, whose scratch memory is kept for other words.
const maxScratch = 1 << 20

// scratch is the working memory of one Encode call. Its cache of short words has
// no pointers, so a call allocates only its result.
type scratch struct {
	ids, ranks []int32
	prev, next []int32
	heap       []uint64
	seed       maphash.Seed
	cache      []cachedWord
}

// cachedWord is a short word and its ids.
type cachedWord struct {
	length, count uint8
	word          [22]byte
	ids           [8]int32
}

func newScratch() any {
	return &scratch{seed: maphash.MakeSeed(), cache: make([]cachedWord, cacheSlots)}
}

// encode appends the ids of one pre-token.
func (m *bpe) encode(out []int32, e *scratch, word string) []int32 {
	if !m.cutAtSpace {
		return m.encodeWord(out, e, word)
	}
	for len(word) > 0 {
		n := nextMarkedWord(word)
		out = m.encodeWord(out, e, word[:n])
		word = word[n:]
	}
	return out
}

// nextMarkedWord returns the index of the first "▁" that follows another
// character, or the length of s.
func nextMarkedWord(s string) int {
	i := 0
	for strings.HasPrefix(s[i:], spaceMark) {
		i += len(spaceMark)
	}
	if n := strings.Index(s[i:], spaceMark); n >= 0 {
		return i + n
	}
	return len(s)
}

// encodeWord appends the ids of a word, through the cache.
func (m *bpe) encodeWord(out []int32, e *scratch, word string) []int32 {
	if m.byteLevel && len(word) == 1 && m.unit[word[0]] >= 0 {
		return append(out, m.unit[word[0]])
	}
	var slot *cachedWord
	if len(word) <= len(slot.word) {
		slot = &e.cache[maphash.String(e.seed, word)%cacheSlots]
		if int(slot.length) == len(word) && string(slot.word[:slot.length]) == word {
			return append(out, slot.ids[:slot.count]...)
		}
	}
	start := len(out)
	if id, ok := m.whole[word]; ok {
		out = append(out, id)
	} else {
		e.ids = m.symbols(e.ids[:0], word)
		if len(e.ids) <= linearMax {
			out = append(out, m.mergeShort(e)...)
		} else {
			out = m.mergeLong(out, e)
		}
	}
	if ids := out[start:]; slot != nil && len(ids) <= len(slot.ids) {
		slot.length, slot.count = uint8(len(word)), uint8(len(ids))
		copy(slot.word[:], word)
		copy(slot.ids[:], ids)
	}
	return out
}

// symbols appends the initial symbols of a word. As in Hugging Face, byte tokens
// do not end a run of unknown characters, so they precede its unknown token.
func (m *bpe) symbols(ids []int32, word string) []int32 {
	pending := false // an unknown token is held back, to fuse it with the next one
	for i := 0; i < len(word); {
		b, size, id := word[i], 1, int32(-1)
		if m.byteLevel || b < utf8.RuneSelf {
			id = m.unit[b]
		} else {
			_, size = utf8.DecodeRuneInString(word[i:])
			if found, ok := m.ids[word[i:i+size]]; ok {
				id = found
			}
		}
		char := word[i : i+size]
		i += size
		if id >= 0 {
			if pending {
				ids, pending = append(ids, m.unk), false
			}
			ids = append(ids, id)
			continue
		}
		if m.byteFallback {
			if m.byteLevel {
				char = string(byteRune[b])
			}
			if with, ok := m.appendBytes(ids, char); ok {
				ids = with
				continue
			}
		}
		if m.unk >= 0 {
			if pending && !m.fuseUnk {
				ids = append(ids, m.unk)
			}
			pending = true
		}
	}
	if pending {
		ids = append(ids, m.unk)
	}
	return ids
}

// appendBytes appends the byte tokens of a character, if all exist.
func (m *bpe) appendBytes(ids []int32, char string) ([]int32, bool) {
	start := len(ids)
	for i := range len(char) {
		id := m.fallback[char[i]]
		if id < 0 {
			return ids[:start], false
		}
		ids = append(ids, id)
	}
	return ids, true
}

// mergeShort merges e.ids in place. It searches the best pair each time, which is
// faster than a heap for words of ordinary length.
func (m *bpe) mergeShort(e *scratch) []int32 {
	ids := e.ids
	ranks := e.ranks[:0]
	for i := 1; i < len(ids); i++ {
		ranks = append(ranks, m.pairs.get(ids[i-1], ids[i]))
	}
	e.ranks = ranks
	for len(ranks) > 0 {
		best, at := noRank, 0
		for i, r := range ranks {
			if r < best {
				best, at = r, i
			}
		}
		if best == noRank {
			break
		}
		ids[at] = m.merged[best]
		ids = append(ids[:at+1], ids[at+2:]...)
		ranks = append(ranks[:at], ranks[at+1:]...)
		if at > 0 {
			ranks[at-1] = m.pairs.get(ids[at-1], ids[at])
		}
		if at < len(ranks) {
			ranks[at] = m.pairs.get(ids[at], ids[at+1])
		}
	}
	return ids
}

// mergeLong merges e.ids with a heap ordered by rank, then position. An entry is
// outdated if its rank differs from the current rank at its position.
func (m *bpe) mergeLong(out []int32, e *scratch) []int32 {
	ids, n := e.ids, len(e.ids)
	e.ranks, e.prev, e.next = resize(e.ranks, n), resize(e.prev, n), resize(e.next, n)
	ranks, prev, next := e.ranks, e.prev, e.next
	h := e.heap[:0]
	for i := range n {
		prev[i], next[i], ranks[i] = int32(i-1), int32(i+1), noRank
		if i+1 < n {
			if ranks[i] = m.pairs.get(ids[i], ids[i+1]); ranks[i] != noRank {
				h = append(h, uint64(ranks[i])<<32|uint64(i))
			}
		}
	}
	for i := len(h)/2 - 1; i >= 0; i-- {
		siftDown(h, i)
	}
	for len(h) > 0 {
		top := h[0]
		h[0] = h[len(h)-1]
		h = h[:len(h)-1]
		siftDown(h, 0)
		at, rank := int32(uint32(top)), int32(top>>32)
		if ranks[at] != rank {
			continue
		}
		right := next[at]
		ids[at], ranks[right] = m.merged[rank], noRank
		next[at], ids[right] = next[right], -1
		update := func(left int32) {
			r := int32(noRank)
			if next[left] < int32(n) {
				r = m.pairs.get(ids[left], ids[next[left]])
			}
			if ranks[left] = r; r != noRank {
				h = siftUp(append(h, uint64(r)<<32|uint64(left)))
			}
		}
		if next[at] < int32(n) {
			prev[next[at]] = at
		}
		update(at)
		if prev[at] >= 0 {
			update(prev[at])
		}
	}
	e.heap = h
	for i := int32(0); i < int32(n); i = next[i] {
		out = append(out, ids[i])
	}
	return out
}

func resize(s []int32, n int) []int32 {
	if cap(s) < n {
		return make([]int32, n)
	}
	return s[:n]
}

func siftDown(h []uint64, i int) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h[c+1] < h[c] {
			c++
		}
		if h[i] <= h[c] {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

func siftUp(h []uint64) []uint64 {
	for i := len(h) - 1; i > 0; {
		p := (i - 1) / 2
		if h[p] <= h[i] {
			break
		}
		h[i], h[p] = h[p], h[i]
		i = p
	}
	return h
}

// pairTable maps a pair of ids to the rank of their merge, with open addressing.
// Most of the time of encoding goes into this lookup, and a Go map takes three
// times as long.
type pairTable struct {
	slots []pairSlot
	shift int
	// seed differs from table to table, so that a file cannot choose ids whose pairs collide.
	seed uint64
}

type pairSlot struct {
	left, right int32
	rank        int32 // noRank in an empty slot
}

func newPairTable(n int) pairTable {
	logSize := max(bits.Len(uint(2*n)), 4)
	t := pairTable{slots: make([]pairSlot, 1<<logSize), shift: 64 - logSize, seed: rand.Uint64()}
	for i := range t.slots {
		t.slots[i].rank = noRank
	}
	return t
}

func (t *pairTable) find(left, right int32) *pairSlot {
	key := uint64(uint32(left))<<32 | uint64(uint32(right))
	high, low := bits.Mul64(key^t.seed, 0x9E3779B97F4A7C15)
	i := int((high ^ low) * 0xD6E8FEB86659FD93 >> t.shift)
	for {
		s := &t.slots[i]
		if s.rank == noRank || s.left == left && s.right == right {
			return s
		}
		i = (i + 1) & (len(t.slots) - 1)
	}
}

func (t *pairTable) get(left, right int32) int32 { return t.find(left, right).rank }

// put keeps the last of two merges of the same pair, as Hugging Face does.
func (t *pairTable) put(left, right, rank int32) {
	*t.find(left, right) = pairSlot{left, right, rank}
}
