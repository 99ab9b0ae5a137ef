package quant

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// bits writes codes as a stream of bits, the lowest first.
type bits struct {
	data []byte
	at   int
}

func (b *bits) put(v uint32, n int) {
	for i := range n {
		if b.at%8 == 0 {
			b.data = append(b.data, 0)
		}
		b.data[b.at/8] |= byte(v>>i&1) << (b.at % 8)
		b.at++
	}
}

func randomScales(r *rand.Rand, n int) []float32 {
	scales := make([]float32, n)
	for i := range scales {
		scales[i] = float32(r.IntN(2047)-1023) * 0x1p-14 // of 11 bits
	}
	return scales
}

// Matrices are packed bit by bit and must unpack to scale * (code - zero).
func TestGPTQ_UnpacksEveryWidthAndGroup(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 1))
	for range 200 {
		width := []int{2, 3, 4, 8}[r.IntN(4)]
		rows, columns := 32*(1+r.IntN(4)), 32*(1+r.IntN(5))
		size := 1 + r.IntN(columns)
		if r.IntN(2) == 0 {
			size = 32 * (1 + r.IntN(columns/32))
		}
		groups := (columns + size - 1) / size
		q := GPTQ{Rows: rows, Columns: columns, Groups: groups, Bits: width, GroupSize: size,
			Scales: randomScales(r, rows*groups), Less: r.IntN(2) == 0}
		group := make([]int, columns)
		for i := range group {
			group[i] = i / size
		}
		if r.IntN(2) == 0 {
			r.Shuffle(columns, func(i, j int) { group[i], group[j] = group[j], group[i] })
			q.GroupSize = 0
			for _, g := range group {
				q.Index = binary.LittleEndian.AppendUint32(q.Index, uint32(g))
			}
		}
		code, zero := make([]uint32, rows*columns), make([]uint32, rows*groups)
		for i := range code {
			code[i] = r.Uint32N(1 << width)
		}
		for i := range zero {
			zero[i] = r.Uint32N(1 << width)
			if q.Less { // 0 would borrow from its neighbour
				zero[i] = 1 + r.Uint32N(1<<width-1)
			}
		}
		down := make([]bits, rows)
		for i := range code {
			down[i/columns].put(code[i], width)
		}
		for w := range columns * width / 32 {
			for row := range rows {
				q.Weight = append(q.Weight, down[row].data[4*w:4*w+4]...)
			}
		}
		for g := range groups {
			var along bits
			for row := range rows {
				v := zero[row*groups+g]
				if q.Less {
					v--
				}
				along.put(v, width)
			}
			q.Zeros = append(q.Zeros, along.data...)
		}
		c, err := q.Codes()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, rows*columns)
		c.Values(got)
		sameInBlocks(t, c, got)
		for i, x := range got {
			row, g := i/columns, group[i%columns]
			want := q.Scales[g*rows+row] * float32(int(code[i])-int(zero[row*groups+g]))
			if x != want {
				t.Fatalf("%d bits, number %d is %g, expected %g", width, i, x, want)
			}
		}
	}
}

func TestGPTQ_ColumnsOutsideOfGroupsAreRefused(t *testing.T) {
	for _, g := range []uint32{2, 1 << 31, math.MaxUint32} {
		q := GPTQ{Rows: 8, Columns: 8, Groups: 2, Bits: 4, Scales: make([]float32, 16),
			Weight: make([]byte, 32), Zeros: make([]byte, 8), Index: make([]byte, 32)}
		binary.LittleEndian.PutUint32(q.Index[12:], g)
		if _, err := q.Codes(); err == nil {
			t.Errorf("group %d was accepted", g)
		}
	}
}

// The order of eight rows in a word is that of AWQ's kernels: 0, 2, 4, 6, 1, 3, 5, 7.
func TestAWQ_UnpacksItsOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 2))
	const rows, columns, size = 24, 12, 4
	const groups = columns / size
	q := AWQ{Rows: rows, Columns: columns, Groups: groups, GroupSize: size,
		Scales: randomScales(r, rows*groups)}
	pack := func(n int) (code []uint32, data []byte) {
		code = make([]uint32, n*rows)
		for i := range code {
			code[i] = r.Uint32N(16)
		}
		for i := 0; i < len(code); i += 8 {
			word := uint32(0)
			for place, row := range []int{0, 2, 4, 6, 1, 3, 5, 7} {
				word |= code[i+row] << (4 * place)
			}
			data = binary.LittleEndian.AppendUint32(data, word)
		}
		return code, data
	}
	var code, zero []uint32
	code, q.Weight = pack(columns)
	zero, q.Zeros = pack(groups)
	got := make([]float32, rows*columns)
	q.Codes().Values(got)
	for i, x := range got {
		row, column := i/columns, i%columns
		g := column / size
		want := q.Scales[g*rows+row] *
			float32(int(code[column*rows+row])-int(zero[g*rows+row]))
		if x != want {
			t.Fatalf("number %d is %g, expected %g", i, x, want)
		}
	}
}

// The values are those of the format's definition, in tiles that the matrix cuts off.
func TestFloat8_ScalesTiles(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 3))
	for _, size := range [][4]int{{5, 300, 128, 128}, {130, 129, 128, 128}, {7, 9, 1, 9},
		{7, 9, 7, 9}, {6, 8, 2, 4}} {
		rows, columns, down, across := size[0], size[1], size[2], size[3]
		n := (columns + across - 1) / across
		f := Float8{Rows: rows, Columns: columns, TileRows: down, TileColumns: across,
			Data:   make([]byte, rows*columns),
			Scales: randomScales(r, (rows+down-1)/down*n)}
		for i := range f.Data {
			f.Data[i] = byte(r.Uint32())
		}
		got := make([]float32, rows*columns)
		f.Values(got)
		for i, x := range got {
			b := f.Data[i]
			value := math.Ldexp(8+float64(b&7), int(b>>3&15)-10)
			if b>>3&15 == 0 {
				value = math.Ldexp(float64(b&7), -9)
			}
			if b >= 0x80 {
				value = -value
			}
			want := float32(value) * f.Scales[i/columns/down*n+i%columns/across]
			if b&0x7f == 0x7f && x == x || b&0x7f != 0x7f && x != want {
				t.Fatalf("%v: number %d (%#x) is %g, expected %g", size, i, b, x, want)
			}
		}
	}
}

func TestExponents_ArePowersOfTwo(t *testing.T) {
	got := make([]float32, 4)
	Exponents(got, []byte{127, 120, 0, 254})
	if want := []float32{1, 1.0 / 128, 0x1p-127, 0x1p127}; !slices.Equal(got, want) {
		t.Errorf("%v, expected %v", got, want)
	}
}

// sameInBlocks compares the values of codes in blocks, if their groups permit them, with values.
func sameInBlocks(t *testing.T, c *Codes, values []float32) {
	t.Helper()
	b, why := c.Blocks()
	if why != "" {
		return
	}
	data := make([]byte, c.Rows*b.RowBytes())
	b.Write(data)
	row := make([]float32, c.Columns)
	for r := range c.Rows {
		Unpack(row, b.Kind.Name, data[r*b.RowBytes():(r+1)*b.RowBytes()])
		for i, x := range row {
			column := i
			if b.Order != nil {
				column = int(b.Order[i])
			}
			if want := values[r*c.Columns+column]; x != want {
				t.Fatalf("%s: number (%d, %d) is %g, expected %g", b.Kind.Name, r, column, x, want)
			}
		}
	}
}

func TestCodes_SomeHaveNoBlocks(t *testing.T) {
	make := func(size int, scale float32) *Codes {
		q := GPTQ{Rows: 32, Columns: 96, Groups: 96 / size, Bits: 4, GroupSize: size,
			Scales: slices.Repeat([]float32{scale}, 32*96/size),
			Weight: make([]byte, 32*96/2), Zeros: make([]byte, 16*96/size)}
		c, err := q.Codes()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		codes *Codes
		want  string
	}{{make(32, 1), ""}, {make(96, 0x1p-20), ""}, {make(16, 1), "multiples of 32"},
		{make(32, 1+0x1p-16), "significant bits"}} {
		if _, why := c.codes.Blocks(); (why == "") != (c.want == "") ||
			!strings.Contains(why, c.want) {
			t.Errorf("%q, expected %q", why, c.want)
		}
	}
}
