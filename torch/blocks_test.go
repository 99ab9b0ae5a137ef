package torch_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"

	"conquer/quant"
	"conquer/torch"
)

// blockKinds lists the kinds that kernels compute on.
func blockKinds() (kinds []quant.Kind) {
	for _, k := range quant.Kinds {
		if quant.Unpacks(k.Name) && !k.Plain() {
			kinds = append(kinds, k)
		}
	}
	return append(kinds, quant.CodeKinds()...)
}

// halfs are the byte offsets of float16 scales in a block.
var halfs = map[string][]int{"Q4_0": {0}, "Q4_1": {0, 2}, "Q5_0": {0}, "Q5_1": {0, 2},
	"Q8_0": {0}, "Q2_K": {80, 82}, "Q3_K": {108}, "Q4_K": {0, 2}, "Q5_K": {0, 2}, "Q6_K": {208},
	"IQ4_NL": {0}, "IQ4_XS": {0}}

// randomBlocks makes rows of blocks of any bits, whose scales are near 2^-8, and their values.
func randomBlocks(r *rand.Rand, k quant.Kind, rows, columns int) (data []byte, values []float32) {
	data = make([]byte, rows*columns/k.Block*k.Bytes)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	for at := 0; at < len(data); at += k.Bytes {
		for _, offset := range halfs[k.Name] {
			data[at+offset+1] = 0x18 | byte(r.Uint32())&0x83 // an exponent of -9 or -8
		}
		switch {
		case k.Name == "MXFP4":
			data[at] = byte(118 + r.IntN(6))
		case k.Number >= 256: // a float32 whose lowest byte is a zero point
			data[at+3], data[at+2] = 0x3b|data[at+3]&0x80, data[at+2]&0x7f
		}
	}
	values = make([]float32, rows*columns)
	quant.Unpack(values, k.Name, data)
	return data, values
}

// rounded is a row in blocks of 32 numbers of 8 bits, as the kernels round it.
func rounded(x []float32) []float64 {
	y := make([]float64, len(x))
	for at := 0; at < len(x); at += 32 {
		most := float32(0)
		for _, v := range x[at : at+32] {
			most = max(most, float32(math.Abs(float64(v))))
		}
		if most == 0 {
			continue
		}
		for i, v := range x[at : at+32] {
			level := math.RoundToEven(float64(v * (127 / most)))
			y[at+i] = float64(most/127) * level
		}
	}
	return y
}

func inTorch(t *testing.T, f func()) {
	t.Helper()
	if err := torch.Run(func() error { torch.NoGrad(f); return nil }); err != nil {
		t.Fatal(err)
	}
}

func inTorchWithGrad(t *testing.T, f func()) { inTorch(t, func() { torch.WithGrad(f) }) }

func normal(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// activations are numbers that round to the same levels however a product is rounded.
func activations(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for at := 0; at < n; at += 32 {
		scale := float32(math.Exp2(float64(r.IntN(5) - 7)))
		for i := range x[at : at+32] {
			x[at+i] = scale * (float32(r.IntN(251)-125) + 0.6*r.Float32() - 0.3)
		}
		x[at+r.IntN(32)] = -127 * scale
	}
	return x
}

// products are x [m,d] times w [n,d] transposed, and the sums of the products' magnitudes.
func products(x, w []float64, d int) (y, size []float64) {
	for a := 0; a < len(x); a += d {
		for b := 0; b < len(w); b += d {
			sum, all := 0.0, 0.0
			for i := range d {
				sum += x[a+i] * w[b+i]
				all += math.Abs(x[a+i] * w[b+i])
			}
			y, size = append(y, sum), append(size, all)
		}
	}
	return y, size
}

func wide(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

func near(t *testing.T, what string, got []float32, want, size []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, expected %d", what, len(got), len(want))
	}
	for i, g := range got {
		if !(math.Abs(float64(g)-want[i]) <= 2e-6*size[i]+1e-12) {
			t.Fatalf("%s: number %d is %g, expected %g (of terms of %g)", what, i, g, want[i],
				size[i])
		}
	}
}

// The kernels of every instruction set of this processor are held against sums in float64.
func TestBlocks_KernelsOfEveryInstructionSet(t *testing.T) {
	for _, set := range []string{"portable", "avx2", "avx512", ""} {
		t.Run("set="+set, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run", "^TestBlocks_(Products|Values|Columns)")
			cmd.Env = append(os.Environ(), "CONQUER_CPU="+set)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestBlocks_ProductsWithRowsOf8Bits(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 1))
	inTorch(t, func() {
		for _, k := range blockKinds() {
			for _, rows := range []int{1, 2, 3, 8, 9, 15 + r.IntN(6)} {
				n, d := 1+r.IntN(70), k.Block*(1+r.IntN(2560/k.Block/4))
				data, values := randomBlocks(r, k, n, d)
				x := activations(r, rows*d)
				weight := torch.Blocks(d, part(k, data, n))
				bias := normal(r, n)
				got := torch.Linear(torch.From(x, rows, 1, d), weight, torch.From(bias, n))
				exact := rows > 16 && os.Getenv("CONQUER_CPU") != "" // a product of floats
				var in []float64
				for i := 0; i < len(x); i += d {
					in = append(in, rounded(x[i:i+d])...)
				}
				if exact {
					in = wide(x)
				}
				want, size := products(in, wide(values), d)
				for i := range want {
					want[i] += float64(bias[i%n])
					size[i] += math.Abs(float64(bias[i%n]))
				}
				if !slices.Equal(got.Shape(), []int{rows, 1, n}) {
					t.Fatalf("shape %v", got.Shape())
				}
				near(t, fmt.Sprintf("%s, %d rows of %d, %d of the weight", k.Name, rows, d, n),
					torch.Values[float32](got), want, size)
			}
		}
	})
}

func TestBlocks_ValuesAreThoseOfPackageQuant(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 2))
	inTorch(t, func() {
		for _, k := range blockKinds() {
			n, d := 3+r.IntN(9), k.Block*(1+r.IntN(9))
			data, values := randomBlocks(r, k, n, d)
			w := torch.Blocks(d, part(k, data, n))
			if got := torch.Values[float32](w.UnpackRows(2, n-2, torch.Float32)); !slices.Equal(got,
				values[2*d:]) {
				t.Errorf("%s differs", k.Name)
			}
			if w.BlockBytes() != len(data) || !w.InBlocks() || w.DType() != torch.Float32 ||
				!slices.Equal(w.Shape(), []int{n, d}) {
				t.Errorf("%s: %d bytes, %v", k.Name, w.BlockBytes(), w)
			}
		}
	})
}

func part(k quant.Kind, data []byte, rows int) torch.BlockPart {
	return torch.BlockPart{Kind: k.Number,
		Data: torch.FromBytes(data, torch.Uint8, []int{rows, len(data) / rows})}
}

// mixed is a weight of three parts, the last of which is not quantized, and its values.
func mixed(r *rand.Rand, d int) (w, values torch.Tensor) {
	var all []float32
	var parts []torch.BlockPart
	for _, name := range []string{"Q4_K", "Q6_K"} {
		k, _ := quant.ByName(name)
		data, v := randomBlocks(r, k, 40, d)
		parts, all = append(parts, part(k, data, 40)), append(all, v...)
	}
	plain := normal(r, 8*d)
	parts = append(parts, torch.BlockPart{Kind: torch.FloatRows, Data: torch.From(plain, 8, d)})
	all = append(all, plain...)
	return torch.Blocks(d, parts...), torch.From(all, 88, d)
}

func TestBlocks_GradientIsThatOfTheValues(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 3))
	const d = 512
	inTorchWithGrad(t, func() {
		w, values := mixed(r, d)
		x, dy := normal(r, 5*d), torch.From(normal(r, 5*88), 5, 88)
		var grads, outs [2]torch.Tensor
		for i, weight := range []torch.Tensor{w, values} {
			in := torch.From(x, 5, d).RequireGrad(true)
			outs[i] = torch.Linear(in, weight, torch.Tensor{})
			torch.Backward([]torch.Tensor{outs[i]}, []torch.Tensor{dy})
			grads[i] = in.Grad()
		}
		for _, pair := range [][2]torch.Tensor{grads, outs} {
			near(t, "gradient or output", torch.Values[float32](pair[0]),
				wide(torch.Values[float32](pair[1])),
				slices.Repeat([]float64{float64(d)}, pair[1].Numel()))
		}
	})
}

func TestBlocks_PartsHeadAndEmbedding(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 4))
	const d = 256
	inTorch(t, func() {
		w, values := mixed(r, d)
		ids := torch.From([]int64{0, 39, 40, 87, 41, 80}, 2, 3)
		if got, want := torch.Embedding(w, ids), torch.Embedding(values, ids); !slices.Equal(
			torch.Values[float32](got), torch.Values[float32](want)) {
			t.Error("the rows of an embedding differ")
		}
		for _, rows := range []int{1, 20} {
			x := torch.From(normal(r, rows*d), rows, d).MulScalar(0.1)
			got, want := torch.Linear(x, w, torch.Tensor{}), torch.Linear(x, values, torch.Tensor{})
			difference := got.Sub(want)
			if off := rms(difference) / rms(want); off > 0.01 || off == 0 {
				t.Errorf("%d rows: 8-bit activations change the result by %g", rows, off)
			}
			labels := torch.From(make([]int64, rows), rows)
			grad := [2]torch.Tensor{}
			for i, weight := range []torch.Tensor{w, values} {
				torch.WithGrad(func() {
					in := x.Detach().Clone().RequireGrad(true)
					loss, _ := torch.HeadCrossEntropy(in, weight, labels, torch.Loss{})
					loss.Backward()
					grad[i] = in.Grad()
				})
			}
			if off := rms(grad[0].Sub(grad[1])) / rms(grad[1]); off > 1e-5 {
				t.Errorf("%d rows: the gradient of the head's loss is off by %g", rows, off)
			}
			a, _ := torch.HeadCrossEntropy(x, w, labels, torch.Loss{})
			b, _ := torch.HeadCrossEntropy(x, values, labels, torch.Loss{})
			mean, exact := torch.Item[float64](a), torch.Item[float64](b)
			if math.Abs(mean-exact) > 0.02*exact {
				t.Errorf("%d rows: loss %g, expected near %g", rows, mean, exact)
			}
		}
	})
}

func rms(x torch.Tensor) float64 {
	return math.Sqrt(torch.Item[float64](x.Mul(x).Sum()) / float64(x.Numel()))
}

// float8Part makes rows of any bits but NaN in tiles of down × across, and their values.
func float8Part(r *rand.Rand, rows, d, down, across int) (torch.BlockPart, []float32) {
	f := quant.Float8{Rows: rows, Columns: d, TileRows: down, TileColumns: across,
		Data: make([]byte, rows*d)}
	for i := range f.Data {
		if f.Data[i] = byte(r.Uint32()); f.Data[i]&0x7f == 0x7f {
			f.Data[i] = 9
		}
	}
	n, m := (rows+down-1)/down, (d+across-1)/across
	for range n * m {
		f.Scales = append(f.Scales, 0.01*r.Float32())
	}
	values := make([]float32, rows*d)
	f.Values(values)
	return torch.BlockPart{Kind: torch.Float8Rows,
		Data:   torch.FromBytes(f.Data, torch.Uint8, []int{rows, d}),
		Scales: torch.From(f.Scales, n, m), TileRows: down, TileColumns: across}, values
}

func TestBlocks_ProductsOf8BitFloats(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 5))
	inTorch(t, func() {
		for _, size := range [][4]int{{40, 300, 128, 128}, {17, 256, 1, 256}, {9, 77, 9, 77},
			{130, 384, 128, 32}, {5, 24, 2, 8}} {
			n, d := size[0], size[1]
			part, values := float8Part(r, n, d, size[2], size[3])
			w := torch.Blocks(d, part)
			if got := torch.Values[float32](w.UnpackRows(1, n-1,
				torch.Float32)); !slices.Equal(got, values[d:]) {
				t.Errorf("%v: the values differ", size)
			}
			for _, rows := range []int{1, 2, 3, 5, 8, 11} {
				x := normal(r, rows*d)
				want, all := products(wide(x), wide(values), d)
				y := torch.Linear(torch.From(x, rows, d), w, torch.Tensor{})
				near(t, fmt.Sprint(size, rows), torch.Values[float32](y), want, all)
				y = torch.Linear(torch.From(x, rows, d), w.WeightRows(2, n-2), torch.Tensor{})
				want, all = products(wide(x), wide(values[2*d:]), d)
				near(t, fmt.Sprint(size, rows), torch.Values[float32](y), want, all)
			}
		}
	})
}

// Parts whose columns lie in another order stand for the weight in its own order.
func TestBlocks_ColumnsInAnotherOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 6))
	const d = 256
	inTorch(t, func() {
		k := quant.CodeKinds()[0]
		var parts []torch.BlockPart
		var all []float32
		orders := [][]int64{permutation(r, d), permutation(r, d), nil}
		for i, which := range []int{0, 0, 1, 2, 0} {
			data, values := randomBlocks(r, k, 7+i, d)
			p := part(k, data, 7+i)
			own := slices.Clone(values)
			if order := orders[which]; order != nil {
				p.Order = torch.From(order, d)
				for j := range own {
					own[j/d*d+int(order[j%d])] = values[j]
				}
			}
			parts, all = append(parts, p), append(all, own...)
		}
		n := len(all) / d
		w := torch.Blocks(d, parts...)
		if got := torch.Values[float32](w.UnpackRows(0, n, torch.Float32)); !slices.Equal(got,
			all) {
			t.Error("the values differ")
		}
		row := torch.Embedding(w, torch.From([]int64{8}, 1))
		if got := torch.Values[float32](row); !slices.Equal(got, all[8*d:9*d]) {
			t.Error("a row of an embedding differs")
		}
		for _, rows := range []int{1, 4, 12} {
			x := make([]float32, rows*d) // that rounds to itself in any order
			for i := range x {
				x[i] = float32(127 * (r.IntN(3) - 1))
			}
			want, size := products(wide(x), wide(all), d)
			for _, f := range []func(func()){torch.NoGrad, torch.WithGrad} {
				f(func() {
					y := torch.Linear(torch.From(x, rows, d), w, torch.Tensor{})
					near(t, fmt.Sprint(rows), torch.Values[float32](y), want, size)
				})
			}
		}
	})
}

func permutation(r *rand.Rand, n int) []int64 {
	order := make([]int64, n)
	for i, j := range r.Perm(n) {
		order[i] = int64(j)
	}
	return order
}

// The rows of each group are multiplied by rows of the blocks.
func TestBlocks_GroupedLinear(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 7))
	const d, experts = 512, 11
	inTorch(t, func() {
		w, values := mixed(r, d) // 88 rows: experts of 8, whose borders are not those of parts
		groups, order, _ := torch.Group(torch.From([]int64{3, 4, 4, 10, 5, 3, 0, 4}, 8), experts)
		x := torch.From(activations(r, 8*d), 8, d).IndexSelect(0, order)
		for _, f := range []func(func()){torch.NoGrad, torch.WithGrad} {
			f(func() {
				got, want := torch.GroupedLinear(x, w, groups), torch.GroupedLinear(x, values,
					groups)
				if off := rms(got.Sub(want)) / rms(want); off > 0.01 {
					t.Errorf("off by %g", off)
				}
			})
		}
	})
}

func TestBlocks_BadPartsAndOperationsFail(t *testing.T) {
	for name, f := range map[string]func(){ // 12 is Q4_K
		"kind":    func() { torch.Blocks(256, torch.BlockPart{Kind: 99, Data: bytesOf(1, 144)}) },
		"size":    func() { torch.Blocks(256, torch.BlockPart{Kind: 12, Data: bytesOf(1, 143)}) },
		"columns": func() { torch.Blocks(128, torch.BlockPart{Kind: 12, Data: bytesOf(1, 72)}) },
		"order": func() {
			torch.Blocks(256, torch.BlockPart{Kind: 12, Data: bytesOf(1, 144),
				Order: torch.From(make([]int64, 256), 256)})
		},
		"scales": func() {
			torch.Blocks(8, torch.BlockPart{Kind: torch.Float8Rows, Data: bytesOf(1, 8),
				Scales: torch.From([]float32{1}, 1, 1), TileRows: 1, TileColumns: 4})
		},
		"no scales": func() {
			torch.Blocks(8, torch.BlockPart{Kind: torch.Float8Rows, Data: bytesOf(1, 8)})
		},
		"none": func() { torch.Blocks(256, torch.BlockPart{Kind: 12, Data: bytesOf(0, 144)}) },
		"width": func() {
			w := torch.Blocks(256, torch.BlockPart{Kind: 12, Data: bytesOf(1, 144)})
			torch.Linear(torch.Zeros([]int{1, 255}, torch.Float32, torch.CPU), w, torch.Tensor{})
		},
		"id": func() {
			w := torch.Blocks(256, torch.BlockPart{Kind: 12, Data: bytesOf(1, 144)})
			torch.Embedding(w, torch.From([]int64{1}, 1))
		},
		"rows": func() {
			w := torch.Blocks(256, torch.BlockPart{Kind: 12, Data: bytesOf(1, 144)})
			w.UnpackRows(1, 1, torch.Float32)
		},
		"sum": func() {
			w := torch.Blocks(256, torch.BlockPart{Kind: 12, Data: bytesOf(1, 144)})
			w.Add(w)
		},
	} {
		if err := torch.Run(func() error { f(); return nil }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func bytesOf(rows, size int) torch.Tensor {
	return torch.Zeros([]int{rows, size}, torch.Uint8, torch.CPU)
}
