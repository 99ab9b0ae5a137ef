package torch_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"conquer/torch"
)

// largest is the largest difference of two tensors, relative to the largest element of the second.
func largest(got, want torch.Tensor) float64 {
	return torch.Item[float64](got.Sub(want).Abs().Max()) / torch.Item[float64](want.Abs().Max())
}

// draw returns a tensor of normal numbers.
func draw(shape ...int) torch.Tensor {
	return torch.Empty(shape, torch.Float32, torch.CPU).Normal(0, 1)
}

func TestGroup_SortsRowsAndFindsThemBack(t *testing.T) {
	run(t, func() {
		for range 50 {
			n, count := 1+rand.IntN(40), 1+rand.IntN(9)
			index := make([]int64, n)
			for i := range index {
				index[i] = int64(rand.IntN(count))
			}
			groups, order, place := torch.Group(torch.From(index, n), count)
			sorted := torch.Values[int64](groups.Index)
			total := 0
			for _, size := range groups.Sizes() {
				total += size
			}
			if !slices.IsSorted(sorted) || total != n || len(groups.Sizes()) != count {
				t.Fatalf("%v: groups %v of sizes %v", index, sorted, groups.Sizes())
			}
			rows := torch.Values[int64](order)
			for i, row := range rows {
				if index[row] != sorted[i] || i > 0 && sorted[i] == sorted[i-1] && row < rows[i-1] {
					t.Fatalf("%v: row %d is %d, of group %d", index, i, row, sorted[i])
				}
			}
			for row, at := range torch.Values[int64](place) {
				if rows[at] != int64(row) {
					t.Fatalf("%v: row %d is not at %d", index, row, at)
				}
			}
		}
	})
}

// Both ways of computing agree with one product for each row, forward and backward. Groups without
// rows get zero gradients.
func TestGroupedLinear_IsOneProductForEachRow(t *testing.T) {
	run(t, func() {
		for _, size := range []struct{ n, count, in, out int }{{1, 1, 3, 2}, {2, 7, 16, 5},
			{30, 4, 8, 6}, {9, 12, 32, 16}, {64, 3, 5, 1}} {
			index := make([]int64, size.n)
			for i := range index {
				index[i] = int64(rand.IntN(size.count))
			}
			slices.Sort(index)
			groups, _, _ := torch.Group(torch.From(index, size.n), size.count)
			x := draw(size.n, size.in).RequireGrad(true)
			weight := draw(size.count*size.out, size.in).RequireGrad(true)
			gradient := draw(size.n, size.out)
			var want torch.Tensor
			var wantX, wantWeight torch.Tensor
			for _, way := range []func(x, weight torch.Tensor, g torch.Groups) torch.Tensor{
				func(x, weight torch.Tensor, _ torch.Groups) torch.Tensor {
					var rows []torch.Tensor
					for i, e := range index {
						part := weight.Narrow(0, int(e)*size.out, size.out)
						rows = append(rows, x.Narrow(0, i, 1).Matmul(part.Transpose(0, 1)))
					}
					return torch.Cat(0, rows...)
				}, torch.GroupedLinear, torch.GroupedOnDevice} {
				got := way(x, weight, groups)
				torch.Backward([]torch.Tensor{got}, []torch.Tensor{gradient})
				gotX, gotWeight := x.Grad().Clone(), weight.Grad().Clone()
				x.ClearGrad()
				weight.ClearGrad()
				if !want.Defined() {
					want, wantX, wantWeight = got, gotX, gotWeight
					continue
				}
				for what, d := range map[string]float64{"result": largest(got, want),
					"input": largest(gotX, wantX), "weight": largest(gotWeight, wantWeight)} {
					if !(d < 1e-5) {
						t.Errorf("%+v: %s is off by %g", size, what, d)
					}
				}
				torch.NoGrad(func() {
					if d := largest(way(x, weight, groups), want); !(d < 1e-5) {
						t.Errorf("%+v without gradients: off by %g", size, d)
					}
				})
			}
		}
	})
}

func TestTopK_LargestFirst(t *testing.T) {
	run(t, func() {
		values, indices := torch.From([]float32{1, 5, 3, 2, 9, -1, 0, 4}, 2, 4).TopK(2)
		if got := torch.Values[int64](indices); !slices.Equal(got, []int64{1, 2, 0, 3}) {
			t.Errorf("indices %v", got)
		}
		if got := torch.Values[float32](values); !slices.Equal(got, []float32{5, 3, 9, 4}) {
			t.Errorf("values %v", got)
		}
		x := torch.From([]float32{0, 1, -2}, 3).Sigmoid()
		for i, v := range torch.Values[float32](x) {
			want := 1 / (1 + math.Exp(-[]float64{0, 1, -2}[i]))
			if math.Abs(float64(v)-want) > 1e-6 {
				t.Errorf("sigmoid %d is %g, expected %g", i, v, want)
			}
		}
	})
}
