package report

import (
	"slices"
	"strings"

	"conquer/bench"
	"conquer/model/statespace"
)

// bucket is a range of prompt lengths that is shown as one point.
type bucket struct{ low, high int }

// holds reports whether a prompt of n tokens is in the range.
func (b bucket) holds(n int) bool { return b.low <= n && n <= b.high }

func (b bucket) String() string {
	if b.low == b.high {
		return count(float64(b.low))
	}
	return count(float64(b.low)) + " to " + count(float64(b.high))
}

// buckets groups the prompt lengths. Up to 12 lengths are separate buckets; otherwise a bucket
// holds the lengths up to 20 % above its shortest.
func buckets(rows []bench.ChunksRow) (list []bucket) {
	lengths := distinct(rows, func(r bench.ChunksRow) int { return r.PromptTokens })
	slices.Sort(lengths)
	for _, n := range lengths {
		if last := len(list) - 1; last >= 0 && len(lengths) > 12 &&
			float64(n) <= 1.2*float64(list[last].low) {
			list[last].high = n
		} else {
			list = append(list, bucket{n, n})
		}
	}
	return list
}

// usualWay returns the way to launch of most rows.
func usualWay(rows []bench.ChunksRow) string {
	return mostCommon(rows, func(r bench.ChunksRow) string { return r.Compile },
		[]string{"kernels", "both", "graph", "eager"})
}

// mostCommon returns the value that most rows have. If several are equally common, the first one
// in preferred wins.
func mostCommon[Row any, K comparable](rows []Row, key func(Row) K, preferred []K) (best K) {
	counts := map[K]int{}
	for _, r := range rows {
		counts[key(r)]++
	}
	most := 0
	for _, k := range append(slices.Clone(preferred), distinct(rows, key)...) {
		if counts[k] > most {
			best, most = k, counts[k]
		}
	}
	return best
}

// longest returns the rows of the greatest length.
func longest(rows []bench.SSDRow) []bench.SSDRow {
	most := 0
	for _, r := range rows {
		most = max(most, r.Length)
	}
	return where(rows, func(r bench.SSDRow) bool { return r.Length == most })
}

// inOrder sorts strategies by the number of chunks that they carry state across, then libtorch's
// operations before kernels. Registered strategies, also those that this program does not know,
// come before default.
func inOrder(names []string) []string {
	rank := func(name string) int {
		c, err := statespace.ParseChunking(name)
		switch {
		case err != nil || c.Strategy != statespace.Default && c.Reach() < 0:
			return 1 << 58
		case c.Reach() < 0:
			return 1 << 59
		}
		return c.Reach()
	}
	slices.SortStableFunc(names, func(a, b string) int {
		if x, y := rank(a), rank(b); x != y {
			return min(1, max(-1, x-y))
		}
		return strings.Compare(a, b)
	})
	return names
}

// distinct lists the different values of key over rows, in the order of their first appearance.
func distinct[Row any, K comparable](rows []Row, key func(Row) K) (list []K) {
	seen := map[K]bool{}
	for _, r := range rows {
		if k := key(r); !seen[k] {
			seen[k] = true
			list = append(list, k)
		}
	}
	return list
}

// where returns the rows that satisfy a condition.
func where[Row any](rows []Row, condition func(Row) bool) (list []Row) {
	for _, r := range rows {
		if condition(r) {
			list = append(list, r)
		}
	}
	return list
}
