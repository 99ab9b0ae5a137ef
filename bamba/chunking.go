package bamba

import (
	"fmt"
	"strconv"
	"strings"

	"conquer/torch"
)

// The strategies by which a sequence's chunks share their states. They are one family: state is carried across no chunk, k
// chunks, or all of them.
const (
	Default     = "default"     // across all chunks: what the model was trained to do
	Independent = "independent" // across none: every chunk starts from a zero state
	Windowed    = "windowed"    // across the Window chunks before a token's own
)

// Auto is the chunk size that is picked by shape.
const Auto = -1

// Chunking is how the state-space layers cut a sequence into chunks and which code scans them.
//
// It is about passes over many tokens: training, scoring and reading a prompt. The state that such a pass begins with counts
// as the chunk before its first, and the state it ends with is what its last token's own chunk sees; tokens that are then
// generated one by one extend that chunk. So a prompt may be read in any pieces with the same result under Default, whereas
// under the other strategies each piece begins a new chunk.
type Chunking struct {
	Strategy string
	Window   int // for Windowed alone
	// ChunkSize is a power of two from 16 to 256, or Auto, or 0 for the model's own. Under Default it does not change the
	// result, only what the plain page costs.
	ChunkSize int
	// Optimized selects the project's kernels over the plain page of ssd.go; the results are the same.
	Optimized bool
}

// ParseChunking reads a strategy by its name: default, independent or windowed:k, for the plain page, and the same with
// -optimized appended (default-optimized, independent-optimized, windowed:2-optimized) for the kernels. windowed:0 is
// independent by another name.
func ParseChunking(name string) (Chunking, error) {
	var c Chunking
	base, optimized := strings.CutSuffix(name, "-optimized")
	c.Optimized = optimized
	strategy, window, given := strings.Cut(base, ":")
	c.Strategy = strategy
	switch {
	case strategy == Default || strategy == Independent:
		if given {
			return c, fmt.Errorf("chunking %q: %s takes no number; windowed:k does", name, strategy)
		}
	case strategy == Windowed:
		k, err := strconv.Atoi(window)
		if err != nil || k < 0 {
			return c, fmt.Errorf("chunking %q: expected windowed:k with the number of chunks that state is carried across, 0 or more, as in windowed:2", name)
		}
		c.Window = k
	default:
		return c, fmt.Errorf("unknown chunking %q: choose default, independent or windowed:k, with -optimized appended for the kernels", name)
	}
	return c, nil
}

// ParseChunkSize reads a chunk size: a power of two from 16 to 256, or "auto".
func ParseChunkSize(text string) (int, error) {
	if text == "auto" {
		return Auto, nil
	}
	size, err := strconv.Atoi(text)
	if err != nil || !validChunk(size) {
		return 0, fmt.Errorf("chunk size %q: expected a power of two from 16 to 256, or auto", text)
	}
	return size, nil
}

func validChunk(size int) bool { return size >= 16 && size <= 256 && size&(size-1) == 0 }

// Check reports what is wrong with c, if anything.
func (c Chunking) Check() error {
	if _, err := ParseChunking(c.String()); err != nil {
		return err
	}
	if c.ChunkSize != 0 && c.ChunkSize != Auto && !validChunk(c.ChunkSize) {
		return fmt.Errorf("chunk size %d: expected a power of two from 16 to 256", c.ChunkSize)
	}
	return nil
}

// String is the name that ParseChunking reads.
func (c Chunking) String() string {
	name := c.Strategy
	if name == Windowed {
		name += ":" + strconv.Itoa(c.Window)
	}
	if c.Optimized {
		name += "-optimized"
	}
	return name
}

// Reach is the number of chunks that state is carried across: negative for all.
func (c Chunking) Reach() int {
	switch c.Strategy {
	case Independent:
		return 0
	case Windowed:
		return c.Window
	}
	return -1
}

// Size is the chunk size for heads of headDim dimensions and state elements each. Auto is where the products within a
// chunk, chunk·(P+N) a token, cost about as much as those that make and read its state, 2·P·N. It does not look at the
// length: under Independent and Windowed a chunk's size is part of the result, and a longer prompt must not change it.
func (c Chunking) Size(headDim, state int) int {
	if c.ChunkSize > 0 {
		return c.ChunkSize
	}
	size := 16
	for size < 256 && 2*size*(headDim+state) <= 2*headDim*state {
		size *= 2
	}
	return size
}

// Scan runs the state-space recurrence of in by this strategy: y [B,L,H,P] of x's dtype, and the state after the last token
// as its own chunk sees it, [B,H,P,N] float32.
func (c Chunking) Scan(in torch.SSDInput) (y, final torch.Tensor) {
	size := c.Size(in.X.Size(3), in.B.Size(3))
	if c.Optimized {
		return torch.SSDScan(in, size, c.Reach())
	}
	return SSD(in, size, c.Reach())
}
