package quant

import (
	"encoding/binary"
	"fmt"
)

// Codes is a matrix of integer codes, as GPTQ, AWQ and compressed-tensors store it in several
// tensors. The columns form groups. Number (r, c) is Scale[r, g] * (Code[r, c] - Zero[r, g]), where
// g is Group[c].
type Codes struct {
	Rows, Columns, Groups int

	Code  []uint8   // [Rows, Columns]
	Scale []float32 // [Rows, Groups]
	Zero  []uint8   // [Rows, Groups]
	Group []int32   // [Columns]
}

// rowShare is the number of rows that one goroutine unpacks before it takes more.
const rowShare = 64

// Values writes the numbers [Rows, Columns]. A scale of 16 bits gives exact products; the libraries
// round them to the scale's type.
func (c *Codes) Values(dst []float32) {
	share(c.Rows, rowShare, func(begin, end int) {
		for r := begin; r < end; r++ {
			scale, zero := c.Scale[r*c.Groups:], c.Zero[r*c.Groups:]
			out := dst[r*c.Columns : (r+1)*c.Columns]
			for i, code := range c.Code[r*c.Columns : (r+1)*c.Columns] {
				g := c.Group[i]
				out[i] = scale[g] * float32(int(code)-int(zero[g]))
			}
		}
	})
}

// GPTQ holds the tensors of a matrix that GPTQ quantized.
type GPTQ struct {
	Rows, Columns, Groups int
	Bits                  int    // 2, 3, 4 or 8
	GroupSize             int    // of columns that follow each other; used without Index
	Weight                []byte // int32 [Columns*Bits/32, Rows]: a stream of bits down each column
	Zeros                 []byte // int32 [Groups, Rows*Bits/32]: a stream of bits along each row
	Index                 []byte // int32 [Columns]: the group of each column, or nil
	Scales                []float32
	// Less says that the zero points are stored less 1, as in version 1 of the format.
	Less bool
}

// Codes unpacks the tensors. It fails if a column belongs to no group.
func (q GPTQ) Codes() (*Codes, error) {
	c := newCodes(q.Rows, q.Columns, q.Groups, q.Scales)
	for i := range c.Group {
		g := i / max(q.GroupSize, 1)
		if q.Index != nil {
			g = int(int32(word(q.Index, i)))
		}
		if g < 0 || g >= q.Groups {
			return nil, fmt.Errorf("column %d belongs to group %d of %d", i, g, q.Groups)
		}
		c.Group[i] = int32(g)
	}
	mask := uint32(1)<<q.Bits - 1
	share(q.Rows, rowShare, func(begin, end int) {
		for i := range q.Columns {
			at, shift := i*q.Bits/32*q.Rows, i*q.Bits%32
			for r := begin; r < end; r++ {
				v := word(q.Weight, at+r) >> shift
				if shift+q.Bits > 32 {
					v |= word(q.Weight, at+q.Rows+r) << (32 - shift)
				}
				c.Code[r*q.Columns+i] = uint8(v & mask)
			}
		}
	})
	// The libraries add 1 to all zero points of a word at once. Streams of 3 bits cross words, so
	// there they add to each.
	one, less := uint32(0), uint32(0)
	if q.Less && 32%q.Bits == 0 {
		one = ^uint32(0) / mask
	} else if q.Less {
		less = 1
	}
	words := q.Rows * q.Bits / 32
	for g := range q.Groups {
		for r := range q.Rows {
			at, shift := g*words+r*q.Bits/32, r*q.Bits%32
			v := (word(q.Zeros, at) + one) >> shift
			if shift+q.Bits > 32 {
				v |= word(q.Zeros, at+1) << (32 - shift)
			}
			c.Zero[r*q.Groups+g] = uint8((v + less) & mask)
		}
	}
	return c, nil
}

// AWQ holds the tensors of a matrix that AWQ quantized to 4 bits, in the layout called GEMM.
type AWQ struct {
	Rows, Columns, Groups int
	GroupSize             int
	Weight                []byte    // int32 [Columns, Rows/8]
	Zeros                 []byte    // int32 [Groups, Rows/8]
	Scales                []float32 // [Groups, Rows]
}

// awqPlace is the place in a word of each of eight rows.
var awqPlace = [8]int{0, 4, 1, 5, 2, 6, 3, 7}

// Codes unpacks the tensors.
func (q AWQ) Codes() *Codes {
	c := newCodes(q.Rows, q.Columns, q.Groups, q.Scales)
	for i := range c.Group {
		c.Group[i] = int32(i / q.GroupSize)
	}
	words := q.Rows / 8
	unpack := func(dst []uint8, from []byte, columns, begin, end int) {
		for i := range columns {
			for w := begin; w < end; w++ {
				v := word(from, i*words+w)
				for k, place := range awqPlace {
					dst[(8*w+k)*columns+i] = uint8(v >> (4 * place) & 15)
				}
			}
		}
	}
	share(words, rowShare/8, func(begin, end int) {
		unpack(c.Code, q.Weight, q.Columns, begin, end)
		unpack(c.Zero, q.Zeros, q.Groups, begin, end)
	})
	return c
}

// newCodes makes codes whose scales [groups, rows] are transposed.
func newCodes(rows, columns, groups int, scales []float32) *Codes {
	c := &Codes{Rows: rows, Columns: columns, Groups: groups, Code: make([]uint8, rows*columns),
		Scale: make([]float32, rows*groups), Zero: make([]uint8, rows*groups),
		Group: make([]int32, columns)}
	for g := range groups {
		for r := range rows {
			c.Scale[r*groups+g] = scales[g*rows+r]
		}
	}
	return c
}

// word returns the i-th word of 32 bits.
func word(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
