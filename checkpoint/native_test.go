package checkpoint

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/internal/budget"
	"conquer/torch"
)

// writeNative writes tensors of a few shapes, cut at random among ranks, and returns their values.
func writeNative(t testing.TB, dir string, ranks int, draw *rand.Rand) map[string][]float32 {
	t.Helper()
	values, tensors := map[string][]float32{}, map[string]NativeTensor{}
	parts := make([][]Fragment, ranks)
	err := torch.Run(func() error {
		for i, shape := range [][]int{{7, 5}, {1}, {64}, {2, 3, 4}, {0, 3}} {
			name := fmt.Sprintf("t%d.weight", i)
			list := make([]float32, numel(shape))
			for j := range list {
				list[j] = draw.Float32()
			}
			values[name], tensors[name] = list, TensorType(torch.Float32, shape)
			cuts := []int{0, len(list)}
			for range ranks - 1 {
				cuts = append(cuts, draw.IntN(len(list)+1))
			}
			slices.Sort(cuts)
			for r := range ranks {
				if part := list[cuts[r]:cuts[r+1]]; len(part) > 0 {
					parts[r] = append(parts[r], Fragment{Name: name, Start: cuts[r],
						Data: torch.From(part, len(part))})
				}
			}
		}
		// A matrix of which each rank holds some columns, or whole rows that another rank then
		// lacks.
		rows, columns := 6, 3*ranks
		matrix := torch.Randn([]int{rows, columns}, torch.Float32, torch.CPU)
		values["matrix.weight"], tensors["matrix.weight"] = torch.Values[float32](matrix),
			TensorType(torch.Float32, []int{rows, columns})
		top := draw.IntN(rows)
		for r := range ranks {
			for _, part := range [][2]int{{0, top}, {top, rows - 1}} {
				if first, end := part[0], part[1]; first < end {
					tile := matrix.Narrow(0, first, end-first).Narrow(1, 3*r, 3).Reshape(-1)
					parts[r] = append(parts[r], Fragment{Name: "matrix.weight",
						Start: first*columns + 3*r, Run: 3, Every: columns, Data: tile})
				}
			}
		}
		parts[0] = append(parts[0], Fragment{Name: "matrix.weight", Start: (rows - 1) * columns,
			Data: matrix.Select(0, rows-1)})
		var written []ProcessFile
		for r, list := range parts {
			part, err := WriteFragments(dir, r, ranks, list)
			if err != nil {
				return err
			}
			written = append(written, part)
		}
		return WriteNativeIndex(dir, written, tensors)
	})
	if err != nil {
		t.Fatal(err)
	}
	return values
}

func TestNative_RangesAreReadFromFragmentsOfAllRanks(t *testing.T) {
	draw := rand.New(rand.NewPCG(rand.Uint64(), 1))
	for _, ranks := range []int{1, 2, 5} {
		dir := t.TempDir()
		values := writeNative(t, dir, ranks, draw)
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		err = torch.Run(func() error {
			for name, want := range values {
				for range 20 {
					from := draw.IntN(len(want) + 1)
					to := from + draw.IntN(len(want)-from+1)
					got, err := c.Range(name, from, to-from)
					if err != nil {
						return err
					}
					if !slices.Equal(torch.Values[float32](got), want[from:to]) {
						t.Errorf("%d ranks: elements %d to %d of %s differ", ranks, from, to, name)
					}
				}
				whole, err := c.Tensor(name)
				if err != nil {
					return err
				}
				if info, _ := c.Info(name); !slices.Equal(whole.Shape(),
					info.Shape) || !slices.Equal(torch.Values[float32](whole), want) {
					t.Errorf("%d ranks: %s is %v, want shape %v", ranks, name, whole, info.Shape)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestNative_InconsistentIndexIsRefused(t *testing.T) {
	dir := t.TempDir()
	writeNative(t, dir, 2, rand.New(rand.NewPCG(3, 4)))
	path := filepath.Join(dir, NativeFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string][2]string{
		"expected 1":                 {`"version":1`, `"version":2`},
		"not the name of a file":     {`"name":"rank-00001`, `"name":"../rank-00001`},
		"impossible shape":           {`"shape":[7,5]`, `"shape":[7,-5]`},
		"a part is missing":          {`"shape":[7,5]`, `"shape":[8,5]`},
		"which it does not describe": {`"t3.weight":{`, `"t9.weight":{`},
		"do not cover it exactly":    {`"run":3,"every":6`, `"run":3,"every":5`},
		"one is missing":             {`"shape":[6,6]`, `"shape":[7,6]`},
		"or there twice":             {`"run":3,`, `"run":2,`},
	} {
		changed := strings.ReplaceAll(string(text), change[0], change[1])
		if changed == string(text) {
			t.Fatalf("%q is not in the index", change[0])
		}
		os.WriteFile(path, []byte(changed), 0o666)
		if c, err := Open(dir); err == nil {
			c.Close()
			t.Errorf("nothing refused what should give %q", want)
		} else if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// The index is fuzzed beside the small files that it names.
func FuzzNativeIndex(f *testing.F) {
	dir := f.TempDir()
	writeNative(f, dir, 2, rand.New(rand.NewPCG(5, 6)))
	text, err := os.ReadFile(filepath.Join(dir, NativeFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		o := &opener{budget: budget.New(budget.Model)}
		defer o.close()
		c, err := readNative(o, dir, text)
		if err != nil {
			return
		}
		for name, tensor := range c.native {
			elements := 0
			for _, s := range tensor.fragments {
				width := safetensorsTorch[s.dtype].Size()
				if end := s.offset + s.length*width; s.offset < 0 || s.length < 0 ||
					end > len(s.file.Bytes()) {
					t.Fatalf("%s: %+v ends at %d of %d bytes", name, s, end, len(s.file.Bytes()))
				}
				elements += s.length
			}
			if elements != numel(tensor.Shape) {
				t.Fatalf("%s has shape %v and %d elements", name, tensor.Shape, elements)
			}
		}
	})
}

// Each tile is compared with the others, so a file that claims very many must not be believed.
func TestNative_TilesOfATensorAreBounded(t *testing.T) {
	columns := func(n int) *nativeTensor {
		tensor := &nativeTensor{NativeTensor: NativeTensor{Shape: []int{2, n}}}
		for i := range n {
			tensor.fragments = append(tensor.fragments, nativeFragment{start: i, length: 2, run: 1,
				every: n})
		}
		return tensor
	}
	if !columns(maxTiles).tiled() {
		t.Error("a tensor in columns is refused")
	}
	if columns(maxTiles + 1).tiled() {
		t.Error("more tiles than are compared were accepted")
	}
}
