package torch_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"conquer/torch"
)

// run calls f inside torch.Run and checks that no tensor outlives it.
func run(t *testing.T, f func()) {
	t.Helper()
	before := torch.LiveTensors()
	if err := torch.Run(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
	if after := torch.LiveTensors(); after != before {
		t.Fatalf("%d tensors outlived their scope", after-before)
	}
}

func TestOperations_FreeTheirResults(t *testing.T) {
	run(t, func() {
		a := torch.From([]float32{1, 2, 3, 4, 5, 6}, 2, 3)
		b := torch.From([]float32{1, 0, 0, 1, 1, 1}, 3, 2)
		got := torch.Values[float32](a.Matmul(b).AddScalar(0.5))
		want := []float32{4.5, 5.5, 10.5, 11.5}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
	})
}

func TestKeep_MovesTensorToOuterScope(t *testing.T) {
	run(t, func() {
		base := torch.LiveTensors()
		kept := torch.Scoped1(func() torch.Tensor {
			x := torch.Ones([]int{4}, torch.Float32, torch.CPU)
			for range 10 {
				x = x.Add(x)
			}
			return x
		})
		if n := torch.LiveTensors() - base; n != 1 {
			t.Fatalf("%d tensors alive after the inner scope, want the kept one", n)
		}
		if v := torch.Values[float32](kept)[3]; v != 1024 {
			t.Fatalf("kept tensor holds %v", v)
		}
	})
}

func TestOwn_TensorLivesUntilFreed(t *testing.T) {
	before := torch.LiveTensors()
	var weight torch.Tensor
	if err := torch.Run(func() error {
		weight = torch.Ones([]int{2}, torch.Float32, torch.CPU).Own()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if torch.LiveTensors() != before+1 {
		t.Fatal("the owned tensor was freed with its scope")
	}
	weight.Free()
	if torch.LiveTensors() != before {
		t.Fatal("Free did not free")
	}
}

func TestError_NamesOperationAndShapes(t *testing.T) {
	before := torch.LiveTensors()
	err := torch.Run(func() error {
		torch.Scoped(func() {
			torch.Ones([]int{2, 3}, torch.Float32, torch.CPU).
				Matmul(torch.Ones([]int{4, 5}, torch.Float32, torch.CPU))
		})
		return nil
	})
	var torchErr *torch.Error
	if !errors.As(err, &torchErr) {
		t.Fatalf("got %v, want a *torch.Error", err)
	}
	for _, part := range []string{"matmul", "[2 3]", "[4 5]", "float32"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "Exception raised") {
		t.Errorf("C++ locations leak into %q", err)
	}
	if torch.LiveTensors() != before {
		t.Error("the failed operation left tensors behind")
	}
}

func TestRun_PassesOtherPanics(t *testing.T) {
	defer func() {
		if r := recover(); r != "mine" {
			t.Fatalf("recovered %v", r)
		}
	}()
	torch.Run(func() error { panic("mine") })
}

func TestRun_RestoresGradientRecordingAfterError(t *testing.T) {
	run(t, func() {
		torch.Run(func() error {
			torch.NoGrad(func() { torch.Ones([]int{2}, torch.Float32, torch.CPU).View(3) })
			return nil
		})
		if !torch.GradEnabled() {
			t.Fatal("gradient recording stayed off after an error inside NoGrad")
		}
	})
}

func TestBackward_ReachesChosenInputsOnly(t *testing.T) {
	run(t, func() {
		x := torch.From([]float32{1, 2, 3}, 3).RequireGrad(true)
		w := torch.From([]float32{4, 5, 6}, 3).RequireGrad(true)
		y := x.Mul(w)
		seed := torch.From([]float32{1, 10, 100}, 3)
		torch.Backward([]torch.Tensor{y}, []torch.Tensor{seed}, x)
		if got := torch.Values[float32](x.Grad()); got[0] != 4 || got[1] != 50 || got[2] != 600 {
			t.Fatalf("gradient %v", got)
		}
		if w.Grad().Defined() {
			t.Fatal("an input that was not named got a gradient")
		}
	})
}

func TestRNGState_SavesAndRestores(t *testing.T) {
	run(t, func() {
		torch.ManualSeed(7)
		state := torch.RNGState(torch.CPU)
		first := torch.Values[float32](torch.Randn([]int{8}, torch.Float32, torch.CPU))
		torch.SetRNGState(torch.CPU, state)
		second := torch.Values[float32](torch.Randn([]int{8}, torch.Float32, torch.CPU))
		for i := range first {
			if first[i] != second[i] {
				t.Fatalf("%v differs from %v", first, second)
			}
		}
	})
}

func TestDType_Conversions(t *testing.T) {
	run(t, func() {
		for _, dtype := range []torch.DType{
			torch.Float32, torch.BFloat16, torch.Float16, torch.Float64, torch.Int64, torch.Int32,
			torch.Uint8, torch.Bool,
		} {
			x := torch.From([]float32{0, 1, 1}, 3).To(dtype)
			if x.DType() != dtype || x.Bytes() != 3*dtype.Size() {
				t.Errorf("%v came out as %v of %d bytes", dtype, x.DType(), x.Bytes())
			}
			if got := torch.Values[float32](x); got[0] != 0 || got[2] != 1 {
				t.Errorf("%v: %v", dtype, got)
			}
		}
	})
}

func TestMapping_ViewsFileAndOutlivesClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, []byte{0, 0, 128, 63, 0, 0, 0, 64}, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, func() {
		m, err := torch.OpenMapping(path)
		if err != nil {
			t.Fatal(err)
		}
		x := m.Tensor(0, torch.Float32, []int{2})
		if &x.Data()[0] != &m.Bytes()[0] {
			t.Error("the view is a copy")
		}
		m.Close()
		if got := torch.Values[float32](x); got[0] != 1 || got[1] != 2 {
			t.Errorf("got %v", got)
		}
		x.Zero() // changes a private page, not the file
	})
	if data, _ := os.ReadFile(path); data[2] != 128 {
		t.Error("writing to a view reached the file")
	}
	run(t, func() {
		m, err := torch.OpenMapping(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		for name, f := range map[string]func(){
			"beyond the end": func() { m.Tensor(4, torch.Float32, []int{2}) },
			"overflowing":    func() { m.Tensor(0, torch.Float32, []int{math.MaxInt64, 8}) },
			"unaligned":      func() { m.Tensor(1, torch.Float32, []int{1}) },
		} {
			if torch.Run(func() error { f(); return nil }) == nil {
				t.Errorf("a view %s was granted", name)
			}
		}
	})
}

func TestScopes_MemoryIsConstantOverTenThousandSteps(t *testing.T) {
	run(t, func() {
		w := torch.Randn([]int{32, 32}, torch.Float32, torch.CPU).RequireGrad(true)
		x := torch.Randn([]int{8, 32}, torch.Float32, torch.CPU)
		step := func() {
			torch.Scoped(func() {
				x.Matmul(w).PowScalar(2).Mean().Backward()
				torch.NoGrad(func() { w.AddTo(w.Grad().MulScalar(-1e-3)) })
				w.ClearGrad()
			})
		}
		measure := func() (live int, resident int) {
			runtime.GC()
			return torch.LiveTensors(), residentBytes(t)
		}
		for range 1000 {
			step()
		}
		live, resident := measure()
		for range 10000 {
			step()
		}
		liveAfter, residentAfter := measure()
		if liveAfter != live {
			t.Errorf("live tensors went from %d to %d", live, liveAfter)
		}
		if grown := residentAfter - resident; grown > 8<<20 {
			t.Errorf("resident memory grew by %d KiB", grown>>10)
		}
	})
}

func residentBytes(t *testing.T) int {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("needs /proc: ", err)
	}
	fields := strings.Fields(string(data))
	pages := 0
	for _, c := range fields[1] {
		pages = pages*10 + int(c-'0')
	}
	return pages * os.Getpagesize()
}

// BenchmarkAdd measures an addition in its own scope from Go, and as go-ns/op the part that C++
// alone does not need. Both are measured in turns, so that a change in the machine's speed affects
// both.
func BenchmarkAdd(b *testing.B) {
	torch.Run(func() error {
		x := torch.Ones([]int{1}, torch.Float32, torch.CPU)
		b.ReportAllocs()
		const turn = 1000
		alone, added := 0.0, 0
		for b.Loop() {
			torch.Scoped(func() { x.Add(x) })
			if added++; added%turn == 0 {
				b.StopTimer()
				alone += torch.TimeAdd(x, x, turn)
				b.StartTimer()
			}
		}
		if added >= turn {
			b.ReportMetric(
				float64(b.Elapsed().Nanoseconds())/float64(added)-alone/float64(added/turn),
				"go-ns/op")
		}
		return nil
	})
}

// Both threads use libtorch before the number changes, since libtorch reads OpenMP's number once
// for each thread.
func TestThreads_SameNumberOnEveryThread(t *testing.T) {
	before := torch.Threads()
	defer torch.SetThreads(before)
	ask, answer := make(chan bool), make(chan int)
	go func() {
		runtime.LockOSThread()
		for range ask {
			torch.Run(func() error {
				torch.Arange(0, 4, torch.Float32, torch.CPU).Sum()
				answer <- torch.Threads()
				return nil
			})
		}
	}()
	defer close(ask)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, n := range []int{1, 3, 2} {
		ask <- true
		<-answer
		torch.SetThreads(n)
		ask <- true
		if other := <-answer; torch.Threads() != n || other != n {
			t.Errorf("%d threads gave %d here and %d on another thread", n, torch.Threads(), other)
		}
	}
}
