package eval

import (
	"slices"
)

// node is a run of tokens that texts share: what follows its parent's tokens. The root nodes begin
// texts.
type node struct {
	tokens   []int32
	start    int // number of tokens before it
	children []*node
	spans    []span
}

// span is a request's tokens to predict in one node: targets follow the node's tokens from first
// on.
type span struct {
	request int
	first   int // index in the node's tokens of the token before targets[0]
	targets []int32
}

// sequence is a text to be read, and how many of its last tokens are predicted. The tokens to read
// are all but the last.
type sequence struct {
	request   int
	tokens    []int32
	predicted int
}

// minShared is the least number of tokens that are worth a node of their own.
const minShared = 8

// maxNode is the most tokens of a node: longer runs are read one part after the other.
const maxNode = 2048

// grow makes the trees of sequences: their common beginnings, from minShared tokens on, are read
// once. The order of the trees is that of the tokens.
func grow(sequences []sequence) []*node {
	sorted := slices.Clone(sequences)
	slices.SortStableFunc(sorted, func(a, b sequence) int {
		return slices.Compare(a.tokens, b.tokens)
	})
	return branch(sorted, 0)
}

// branch makes the nodes of sorted sequences, whose first start tokens are the same and read.
func branch(sorted []sequence, start int) (nodes []*node) {
	for len(sorted) > 0 {
		first := sorted[0].inputs()
		// A node costs a pass of its own, so it must spare a good part of what it is shared by.
		least := start + max(minShared, (len(first)-start)/3)
		count, shared := 1, len(first)
		for count < len(sorted) {
			n := commonLength(first, sorted[count].inputs())
			if n < min(least, len(first)) {
				break
			}
			shared = min(shared, n)
			count++
		}
		shared = min(shared, start+maxNode)
		nodes = append(nodes, newNode(sorted[:count], start, shared))
		sorted = sorted[count:]
	}
	return nodes
}

func newNode(sorted []sequence, start, end int) *node {
	n := &node{tokens: sorted[0].tokens[start:end], start: start}
	var longer []sequence
	for _, s := range sorted {
		n.add(s)
		if len(s.inputs()) > end {
			longer = append(longer, s)
		}
	}
	if len(longer) > 0 {
		n.children = branch(longer, end)
	}
	return n
}

// add notes which of the predicted tokens of s follow tokens of the node.
func (n *node) add(s sequence) {
	end := n.start + len(n.tokens)
	from := max(len(s.tokens)-s.predicted, n.start+1) // index of the first target
	to := min(len(s.tokens), end+1)
	if from < to {
		n.spans = append(n.spans, span{s.request, from - 1 - n.start, s.tokens[from:to]})
	}
}

func (s sequence) inputs() []int32 { return s.tokens[:len(s.tokens)-1] }

func commonLength(a, b []int32) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}
