package statespace

import (
	"fmt"
	"strconv"
	"strings"

	"conquer/torch"
)

// The strategies by which a sequence's chunks share their states: state is carried across no chunk,
// k chunks, or all of them.
const (
	Default     = "default"     // across all chunks, as the model was trained
	Independent = "independent" // across none: every chunk starts from a zero state
	Windowed    = "windowed"    // across the Window chunks before a token's own
)

// Auto is a chunk size that depends on the shape of the heads; see [Chunking.Size].
const Auto = -1

// Chunking says how the state-space layers divide a sequence into chunks, and whether kernels or
// the reference scan them.
//
// It applies to passes over several tokens: training, scoring and reading a prompt. The initial
// state of a pass counts as the chunk before its first, and the final state is the one that the
// last token's chunk sees. Tokens that are then generated one by one extend that chunk. So under
// Default a prompt may be read in parts of any sizes with the same result; under the other
// strategies each part begins a new chunk.
type Chunking struct {
	Strategy string // Default, Independent, Windowed, or one of RegisterStrategy
	Window   int    // for Windowed only
	Argument string // for a strategy of RegisterStrategy only: what follows its name and a colon
	// ChunkSize is a power of two from 16 to 256, or Auto, or 0 for the model's own. Under Default
	// it changes the speed of the reference, not the result.
	ChunkSize int
	// Optimized selects the project's kernels instead of the reference [SSD]. The results are the
	// same.
	Optimized bool
	// StateDType is the dtype of the states in caches made from now on: torch.Float32 (also if it
	// is 0) or torch.BFloat16, with which the state of a long text drifts but is read in half the
	// time.
	StateDType torch.DType
}

func (c *Chunking) stateDType() torch.DType {
	if c.StateDType == 0 {
		return torch.Float32
	}
	return c.StateDType
}

// ParseChunking reads the name of a strategy: default, independent or windowed:k for the reference,
// and the same with -optimized appended (windowed:2-optimized) for the kernels. windowed:0 equals
// independent. Strategies of [RegisterStrategy] are read by their names, with what follows a colon.
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
			return c, fmt.Errorf("chunking %q: expected windowed:k with a number of chunks of 0 "+
				"or more, such as windowed:2", name)
		}
		c.Window = k
	default:
		c.Argument = window
		_, known, err := strategyOf(strategy, window)
		switch {
		case !known:
			return c, fmt.Errorf("unknown chunking %q: choose %s, with -optimized appended for "+
				"the kernels", name, choices())
		case err != nil:
			return c, fmt.Errorf("chunking %q: %w", name, err)
		case given && window == "":
			return c, fmt.Errorf("chunking %q: nothing follows the colon", name)
		}
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

// Check returns an error if c is invalid.
func (c Chunking) Check() error {
	if _, err := ParseChunking(c.String()); err != nil {
		return err
	}
	switch c.StateDType {
	case 0, torch.Float32, torch.BFloat16:
	default:
		return fmt.Errorf("state dtype %s: expected float32 or bfloat16", c.StateDType)
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
	} else if c.Argument != "" {
		name += ":" + c.Argument
	}
	if c.Optimized {
		name += "-optimized"
	}
	return name
}

// Reach is the number of chunks across which state is carried; negative for all. A strategy of
// [RegisterStrategy] may carry state across all of them, too.
func (c Chunking) Reach() int {
	switch c.Strategy {
	case Independent:
		return 0
	case Windowed:
		return c.Window
	}
	return -1
}

// Size is the chunk size for heads of headDim (P) dimensions and state (N) elements. Auto is the
// size at which the GEMMs within a chunk, chunk·(P+N) operations per token, cost about as much as
// those that write and read its state, 2·P·N. It does not depend on the length: under Independent
// and Windowed the chunk size changes the result, and a longer prompt must not.
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

// Scan runs the state-space recurrence of in by this strategy. It returns y [B,L,H,P] of x's dtype,
// and the state after the last token as that token's chunk sees it, [B,H,P,N] float32.
func (c Chunking) Scan(in torch.SSDInput) (y, final torch.Tensor) {
	size := c.Size(in.X.Size(3), in.B.Size(3))
	if s, known, err := strategyOf(c.Strategy, c.Argument); err != nil {
		panic(&torch.Error{Message: err.Error()})
	} else if known {
		return c.scanBy(s, in, size)
	}
	if c.Optimized {
		return torch.SSDScan(in, size, c.Reach())
	}
	return SSD(in, size, c.Reach())
}
