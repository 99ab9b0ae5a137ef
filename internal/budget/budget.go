// Package budget bounds the memory that a program takes for what the files of a foreign model say:
// names, numbers, lists and texts, not weights. A few bytes of a file can ask for many in memory,
// so a reader takes what it is about to use from the budget of the model that it opens. Because
// each step of a reader takes some bytes, a budget bounds the number of steps, too.
package budget

import "fmt"

// Model is the budget of a model's description, in bytes.
const Model = 128 << 20

// A Budget is a number of bytes that may still be taken. It belongs to one goroutine.
type Budget struct{ limit, left int }

// New makes a budget.
func New(bytes int) *Budget { return &Budget{bytes, bytes} }

// Take takes bytes for what a reader is about to use. It fails if fewer are left.
func (b *Budget) Take(bytes int) error {
	if bytes < 0 || bytes > b.left {
		b.left = 0
		return fmt.Errorf("reading it takes more than the %d MB of memory that are allowed for "+
			"the description of a model", b.limit>>20)
	}
	b.left -= bytes
	return nil
}

// JSON takes what encoding/json makes of a text that is decoded to an any, before it is decoded.
func (b *Budget) JSON(text []byte) error {
	c := Count(text)
	return b.Take(320*c.Objects + 64*c.Arrays + 40*c.Values + 4*c.StringBytes)
}

// Counts are upper limits of the number of values in a JSON text, whether it is valid or not.
type Counts struct {
	Values      int // of any kind; keys count, too
	Objects     int
	Arrays      int
	StringBytes int
}

// Count counts the values in a JSON text.
func Count(text []byte) (c Counts) {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{':
			c.Objects++
			c.Values++
		case '[':
			c.Arrays++
			c.Values++
		case ',', ':':
			c.Values++
		case '"':
			start := i + 1
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			c.StringBytes += min(i, len(text)) - start
		}
	}
	return c
}
