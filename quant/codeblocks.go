package quant

import (
	"encoding/binary"
	"math"
	"slices"
)

// The kinds of blocks of integer codes, which csrc/cpu/blocks.h describes. Files do not have them:
// [Codes.Blocks] makes them.
var codeKinds = []Kind{
	{"Codes4x32", 256, 32, 20},
	{"Codes4x128", 257, 128, 68},
	{"Codes8x32", 258, 32, 36},
	{"Codes8x128", 259, 128, 132},
}

// CodeKinds lists the kinds of [Codes.Blocks].
func CodeKinds() []Kind { return slices.Clone(codeKinds) }

// CodeBlocks is a matrix of integer codes in blocks.
type CodeBlocks struct {
	Kind Kind
	// Order says that column i of the blocks is column Order[i] of the matrix; nil for the same
	// order.
	Order []int64

	codes *Codes
}

// Blocks arranges the codes in blocks, without copying them yet. If it cannot, it says why.
func (c *Codes) Blocks() (b CodeBlocks, why string) {
	b.codes = c
	sizes := make([]int, c.Groups)
	sorted := true
	for i, g := range c.Group {
		sizes[g]++
		sorted = sorted && (i == 0 || c.Group[i-1] <= g)
	}
	numbers := 128
	for _, n := range sizes {
		if n%128 != 0 {
			numbers = 32
		}
		if n%32 != 0 {
			return b, "groups of their columns are no multiples of 32"
		}
	}
	for _, s := range c.Scale {
		if bits := math.Float32bits(s); bits&255 != 0 {
			return b, "scales have more than 16 significant bits"
		}
	}
	bits := 4
	if slices.Max(c.Code) > 15 || slices.Max(c.Zero) > 15 {
		bits = 8
	}
	for _, k := range codeKinds {
		if k.Block == numbers && k.Bytes == 4+numbers*bits/8 {
			b.Kind = k
		}
	}
	if !sorted {
		b.Order = make([]int64, c.Columns)
		for i := range b.Order {
			b.Order[i] = int64(i)
		}
		slices.SortStableFunc(b.Order, func(i, j int64) int {
			return int(c.Group[i]) - int(c.Group[j])
		})
	}
	return b, ""
}

// RowBytes is the size of a row.
func (b CodeBlocks) RowBytes() int { return b.codes.Columns / b.Kind.Block * b.Kind.Bytes }

// Write writes all rows.
func (b CodeBlocks) Write(dst []byte) {
	c, size := b.codes, b.RowBytes()
	share(c.Rows, rowShare, func(begin, end int) {
		row := make([]uint8, c.Columns)
		for r := begin; r < end; r++ {
			code := c.Code[r*c.Columns : (r+1)*c.Columns]
			if b.Order != nil {
				for i, from := range b.Order {
					row[i] = code[from]
				}
				code = row
			}
			out := dst[r*size : (r+1)*size]
			for first := 0; first < c.Columns; first += b.Kind.Block {
				column := int64(first)
				if b.Order != nil {
					column = b.Order[first]
				}
				at := r*c.Groups + int(c.Group[column])
				word := math.Float32bits(c.Scale[at]) | uint32(c.Zero[at])
				binary.LittleEndian.PutUint32(out, word)
				b.Kind.putCodes(out[4:b.Kind.Bytes], code[first:first+b.Kind.Block])
				out = out[b.Kind.Bytes:]
			}
		}
	})
}

// putCodes writes the codes of a block. Of 4 bits, a byte holds those of two columns that are 16
// apart in blocks of 32, and 32 apart in blocks of 128.
func (k Kind) putCodes(dst []byte, code []uint8) {
	if len(dst) == len(code) {
		copy(dst, code)
		return
	}
	half := 16
	if k.Block > 32 {
		half = 32
	}
	for ; len(code) > 0; code, dst = code[2*half:], dst[half:] {
		low, high := code[:half], code[half:2*half]
		for i := range low {
			dst[i] = low[i] | high[i]<<4
		}
	}
}

// decodeCodes unpacks whole blocks of codes of a kind.
func (k Kind) decodeCodes(dst []float32, src []byte) {
	for ; len(src) >= k.Bytes; dst, src = dst[k.Block:], src[k.Bytes:] {
		word := binary.LittleEndian.Uint32(src)
		scale, zero := math.Float32frombits(word&^255), int(word&255)
		code := src[4:k.Bytes]
		for i := range k.Block {
			var q int
			switch {
			case len(code) == k.Block:
				q = int(code[i])
			case k.Block == 32:
				q = int(code[i%16] >> (i / 16 * 4) & 15)
			default:
				q = int(code[i/64*32+i%32] >> (i / 32 % 2 * 4) & 15)
			}
			dst[i] = scale * float32(q-zero)
		}
	}
}

func init() {
	for _, k := range codeKinds {
		decoders[k.Name] = k.decodeCodes
	}
}
