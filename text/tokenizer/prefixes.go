package tokenizer

import (
	"slices"
	"sort"
)

// prefixes finds the strings of a set that a text begins with. It takes no memory beside them.
type prefixes struct {
	sorted []string
	first  [257]int32 // index of the first string that begins with a byte, or a larger one
}

// newPrefixes sorts a list of strings without double and empty ones.
func newPrefixes(list []string) *prefixes {
	slices.Sort(list)
	list = slices.Compact(list)
	if len(list) > 0 && list[0] == "" {
		list = list[1:]
	}
	p := &prefixes{sorted: list}
	i := 0
	for b := range p.first {
		for i < len(list) && int(list[i][0]) < b {
			i++
		}
		p.first[b] = int32(i)
	}
	return p
}

// each calls yield with the index and length of each string that s begins with, shortest first.
func (p *prefixes) each(s string, yield func(index, length int)) {
	if s == "" {
		return
	}
	lo, hi := int(p.first[s[0]]), int(p.first[int(s[0])+1])
	for n := 1; lo < hi; n++ {
		if len(p.sorted[lo]) == n {
			yield(lo, n)
			lo++
		}
		if n == len(s) || lo == hi {
			return
		}
		b := s[n]
		if p.sorted[lo][n] != b {
			lo += sort.Search(hi-lo, func(i int) bool { return p.sorted[lo+i][n] >= b })
		}
		if lo < hi && p.sorted[hi-1][n] != b {
			hi = lo + sort.Search(hi-lo, func(i int) bool { return p.sorted[lo+i][n] > b })
		}
	}
}
