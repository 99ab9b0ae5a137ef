package tokenizer

import (
	"encoding/json"
	"fmt"

	"conquer/internal/wrongfile"
)

// A tokenizer comes with a foreign model, so its cost is bounded: the size of its files, the
// lengths of its lists, and how much longer its stages can make a text.
const (
	maxFile      = 64 << 20  // bytes of a tokenizer.json
	maxModel     = 16 << 20  // bytes of a tokenizer.model
	maxSmallFile = 32 << 20  // bytes of another file
	maxTemplates = 100       // files of chat templates
	maxAdded     = 1 << 18   // added tokens
	maxFixed     = 1024      // tokens that a post-processor adds
	maxStage     = 1 << 20   // bytes of a normalizer, pre-tokenizer, post-processor or decoder
	maxStages    = 100       // stages of one of these
	maxNesting   = 16        // Sequences inside each other
	maxGrowth    = 128       // how many times longer the stages can make a text
	maxCost      = 2000      // steps of regular expressions for each byte of a text
	maxSpelled   = 256 << 20 // bytes of the vocabulary, as stages may write it
	maxSteps     = 1 << 28   // steps of regular expressions on the vocabulary
)

// readFile reads a file of at most the given size.
func readFile(path string, most int64) ([]byte, error) { return wrongfile.Read(path, most) }

// budget sums what the stages of a tokenizer may take.
type budget struct {
	growth int // a text can become so many times longer
	cost   int // of regular expressions, for each byte of the text
}

// grow counts a stage that can make a text factor times longer.
func (b *budget) grow(factor int) {
	b.growth = min(max(b.growth, 1)*max(factor, 1), 1<<20)
}

// match counts a regular expression of the given cost. Each also takes time for each piece of text.
func (b *budget) match(cost int) { b.cost += (cost + 20) * max(b.growth, 1) }

// then returns the budget of b followed by the stages of next.
func (b *budget) then(next budget) budget {
	sum := *b
	sum.cost += next.cost * max(sum.growth, 1)
	sum.grow(next.growth)
	return sum
}

func (b *budget) check() error {
	switch {
	case b.growth > maxGrowth:
		return fmt.Errorf("the stages can make a text more than %d times longer", maxGrowth)
	case b.cost > maxCost:
		return fmt.Errorf("its regular expressions take up to %d steps for each byte of a text, "+
			"expected at most %d", b.cost, maxCost)
	}
	return nil
}

// checkOn returns an error if the stages take too long, or too much memory, for size bytes of what.
func (b *budget) checkOn(size int, what string) error {
	if size*max(b.growth, 1) > maxSpelled || size*b.cost > maxSteps {
		return fmt.Errorf("its stages take too much time and memory for the %d bytes of %s", size,
			what)
	}
	return nil
}

// members returns the number of members of a JSON list or object, which is valid.
func members(raw json.RawMessage) (n int) {
	depth, inString := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
			if depth == 1 && n == 0 {
				n = 1
			}
		case inString || c == ' ' || c == '\n' || c == '\t' || c == '\r':
		case c == '[' || c == '{':
			if depth++; depth == 2 && n == 0 {
				n = 1
			}
		case c == ']' || c == '}':
			depth--
		case c == ',' && depth == 1:
			n++
		case depth == 1 && n == 0:
			n = 1
		}
	}
	return n
}

// checkMembers returns an error if a list or object is too long.
func checkMembers(raw json.RawMessage, most int, what string) error {
	if n := members(raw); n > most {
		return fmt.Errorf("%d %s, expected at most %d", n, what, most)
	}
	return nil
}
