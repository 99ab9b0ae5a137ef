package onig

import (
	"slices"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
)

// set is a set of characters.
type set struct {
	ranges [][2]rune // sorted and apart after done
	folded rune      // the case folding of a single character that matches in any case
	ascii  [2]uint64 // a bit per character below 128
	table  []uint64  // a bit per character below 65536, for sets of many ranges
}

func newSet(lo, hi rune) *set { return &set{ranges: [][2]rune{{lo, hi}}} }

func (s *set) add(lo, hi rune) { s.ranges = append(s.ranges, [2]rune{lo, hi}) }

func (s *set) addTable(t *unicode.RangeTable) {
	for _, r := range t.R16 {
		s.addStride(rune(r.Lo), rune(r.Hi), rune(r.Stride))
	}
	for _, r := range t.R32 {
		s.addStride(rune(r.Lo), rune(r.Hi), rune(r.Stride))
	}
}

func (s *set) addStride(lo, hi, stride rune) {
	if stride == 1 {
		s.add(lo, hi)
		return
	}
	for r := lo; r <= hi; r += stride {
		s.add(r, r)
	}
}

func (s *set) union(o *set) { s.ranges = append(s.ranges, o.ranges...) }

// normalize sorts the ranges and joins those that touch.
func (s *set) normalize() {
	slices.SortFunc(s.ranges, func(a, b [2]rune) int { return int(a[0] - b[0]) })
	out := s.ranges[:0]
	for _, r := range s.ranges {
		if n := len(out); n > 0 && r[0] <= out[n-1][1]+1 {
			out[n-1][1] = max(out[n-1][1], r[1])
			continue
		}
		out = append(out, r)
	}
	s.ranges = out
}

func (s *set) negate() {
	s.normalize()
	var out [][2]rune
	next := rune(0)
	for _, r := range s.ranges {
		if r[0] > next {
			out = append(out, [2]rune{next, r[0] - 1})
		}
		next = r[1] + 1
	}
	if next <= unicode.MaxRune {
		out = append(out, [2]rune{next, unicode.MaxRune})
	}
	s.ranges = out
}

func (s *set) intersect(o *set) {
	a, b := &set{ranges: slices.Clone(s.ranges)}, &set{ranges: slices.Clone(o.ranges)}
	a.negate()
	b.negate()
	a.union(b)
	a.negate()
	s.ranges = a.ranges
}

func (s *set) remove(lo, hi rune) {
	o := newSet(lo, hi)
	o.negate()
	s.intersect(o)
}

// done prepares the set for has.
func (s *set) done() *set {
	s.normalize()
	for r := range rune(128) {
		if s.search(r) {
			s.ascii[r/64] |= 1 << (r % 64)
		}
	}
	if len(s.ranges) > 8 {
		s.table = make([]uint64, 1<<16/64)
		for _, r := range s.ranges {
			for c := r[0]; c <= min(r[1], 0xffff); c++ {
				s.table[c/64] |= 1 << (c % 64)
			}
		}
	}
	return s
}

func (s *set) has(r rune) bool {
	switch {
	case r < utf8.RuneSelf:
		return s.ascii[r/64]>>(r%64)&1 != 0
	case s.table != nil && r <= 0xffff:
		return s.table[r/64]>>(r%64)&1 != 0
	}
	return s.search(r)
}

func (s *set) search(r rune) bool {
	lo, hi := 0, len(s.ranges)
	for lo < hi {
		mid := (lo + hi) / 2
		if s.ranges[mid][1] < r {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo < len(s.ranges) && s.ranges[lo][0] <= r
}

// addFolds adds the other cases of the characters.
func (s *set) addFolds() {
	s.normalize()
	var more [][2]rune
	for _, r := range s.ranges {
		if r[1]-r[0] > 0x20000 {
			continue // it has all that the folds of a character of it could add
		}
		for _, c := range casedIn(r[0], r[1]) {
			for f := unicode.SimpleFold(c); f != c; f = unicode.SimpleFold(f) {
				more = append(more, [2]rune{f, f})
			}
		}
	}
	s.ranges = append(s.ranges, more...)
	s.normalize()
}

// cased are the characters that have another case, sorted.
var cased = sync.OnceValue(func() (list []rune) {
	for c := rune(0); c < 0x20000; c++ {
		if unicode.SimpleFold(c) != c {
			list = append(list, c)
		}
	}
	return list
})

// casedIn returns the characters from lo to hi that have another case.
func casedIn(lo, hi rune) []rune {
	list := cased()
	from, _ := slices.BinarySearch(list, lo)
	to, _ := slices.BinarySearch(list, hi+1)
	return list[from:to]
}

// folds holds the characters whose case folding has several characters, and these
// foldings.
var folds = sync.OnceValue(func() (m struct {
	single map[rune]bool
	texts  []string
}) {
	m.single = map[rune]bool{}
	fold := cases.Fold()
	for c := rune(0x80); c < 0x20000; c++ {
		if !unicode.IsLetter(c) {
			continue
		}
		if text := fold.String(string(c)); utf8.RuneCountInString(text) > 1 {
			m.single[c] = true
			m.texts = append(m.texts, text)
		}
	}
	return m
})

func foldsToSeveral(r rune) bool { return r >= 0x80 && folds().single[r] }

// firstFoldingToSeveral returns a character of the set for which foldsToSeveral
// holds, or -1.
func (s *set) firstFoldingToSeveral() rune {
	s.normalize()
	first := rune(-1)
	for c := range folds().single {
		if s.search(c) && (first < 0 || c < first) {
			first = c
		}
	}
	return first
}

// foldOf returns the smallest character that differs from r only in case.
func foldOf(r rune) rune {
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return least
}

// joinsFold returns the case folding of a single character at the end of folded, or
// "".
func joinsFold(folded []rune) string {
	for _, text := range folds().texts {
		runes := []rune(text)
		if len(runes) > len(folded) {
			continue
		}
		same := true
		for i, r := range folded[len(folded)-len(runes):] {
			same = same && r == foldOf(runes[i])
		}
		if same {
			return text
		}
	}
	return ""
}

// wordSet is wordAlone, ready for has.
var wordSet = sync.OnceValue(func() *set { return wordAlone().done() })
