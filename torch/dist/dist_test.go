package dist

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"conquer/torch"
)

// The scenario that a child process runs.
const scenarioVariable = "CONQUER_DIST_TEST_SCENARIO"

// If it is set, the child's tensors are on a GPU.
const deviceVariable = "CONQUER_DIST_TEST_GPU"

// scenarios are run by the processes of a test, which checks their output.
var scenarios = map[string]func(w *World) error{
	"operations": operations,
	"mesh":       mesh,
	"laggard": func(w *World) error { // the last rank skips an operation
		w.All.Barrier()
		w.At("step %d", 3)
		if w.Rank == w.Size-1 {
			w.At("asleep")
			time.Sleep(time.Hour)
		}
		w.All.AllReduce(torch.Ones([]int{4}, torch.Float32, torch.CPU), Sum).Wait()
		return nil
	},
	"laggard backward": func(w *World) error { // in a backward pass
		x := torch.Ones([]int{4}, torch.Float32, torch.CPU).RequireGrad(true)
		loss := w.All.Spread(x).Sum()
		w.At("step %d", 3)
		if w.Rank == w.Size-1 {
			w.At("asleep")
			time.Sleep(time.Hour)
		}
		loss.Backward()
		return nil
	},
	"sharded": sharded,
	"death": func(w *World) error {
		w.All.Barrier()
		if w.Rank == 1 {
			os.Exit(7)
		}
		w.At("step %d", 5)
		w.All.AllReduce(torch.Ones([]int{4}, torch.Float32, torch.CPU), Sum).Wait()
		return nil
	},
}

func TestMain(m *testing.M) {
	torch.SetThreads(1)
	name := os.Getenv(scenarioVariable)
	if name == "" {
		os.Exit(m.Run())
	}
	timeout := time.Minute
	if strings.HasPrefix(name, "laggard") {
		timeout = 4 * time.Second
	}
	place, err := FromEnvironment()
	device := torch.CPU
	if err == nil && os.Getenv(deviceVariable) != "" {
		err = torch.LoadCUDA()
		device = torch.CUDA(place.LocalRank)
	}
	if err == nil {
		var w *World
		if w, err = Join(place, device, timeout); err == nil {
			err = torch.Run(func() error { return scenarios[name](w) })
			w.Leave()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// outcome is how a child process ended.
type outcome struct {
	code           int
	stdout, stderr string
}

// play runs a scenario in a world of n processes. After a failure the others get some time to end
// by themselves.
func play(t *testing.T, scenario string, n int) []outcome {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a world of several processes: left out by -short")
	}
	store, err := OpenStore("127.0.0.1", 0, true, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ends := make([]outcome, n)
	var ending sync.WaitGroup
	children := make([]*exec.Cmd, n)
	output := make([]struct{ stdout, stderr bytes.Buffer }, n)
	for rank := range n {
		child := exec.Command(os.Args[0], "-test.run=none")
		child.Env = append(os.Environ(), scenarioVariable+"="+scenario, fmt.Sprint("RANK=", rank),
			fmt.Sprint("WORLD_SIZE=", n), fmt.Sprint("LOCAL_RANK=", rank),
			fmt.Sprint("LOCAL_WORLD_SIZE=", n), "MASTER_ADDR=127.0.0.1",
			fmt.Sprint("MASTER_PORT=", store.Port()), "TORCHELASTIC_USE_AGENT_STORE=True",
			"OMP_NUM_THREADS=1")
		child.Stdout, child.Stderr = &output[rank].stdout, &output[rank].stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children[rank] = child
	}
	for rank, child := range children { // all have started: the first to end kills the last
		ending.Go(func() {
			child.Wait()
			ends[rank] = outcome{child.ProcessState.ExitCode(), output[rank].stdout.String(),
				output[rank].stderr.String()}
			if strings.HasPrefix(scenario, "laggard") && rank == 0 {
				children[n-1].Process.Kill()
			}
		})
	}
	ending.Wait()
	return ends
}

func operations(w *World) error {
	g, n := w.All, w.Size
	draw := func(rank int, sizes ...int) torch.Tensor { // what a rank contributes
		r := rand.New(rand.NewPCG(uint64(os.Getppid()), uint64(rank)))
		total := 1
		for _, s := range sizes {
			total *= s
		}
		values := make([]float32, total)
		for i := range values {
			values[i] = float32(r.IntN(64)) // sums are exact, even in bfloat16
		}
		return torch.From(values, sizes...).ToDevice(w.Device())
	}
	equal := func(what string, got, want torch.Tensor) error {
		a, b := torch.Values[float32](got), torch.Values[float32](want)
		for i := range b {
			if a[i] != b[i] {
				return fmt.Errorf("%s: element %d is %v, want %v", what, i, a[i], b[i])
			}
		}
		return nil
	}
	sum := draw(0, n, 3)
	for r := 1; r < n; r++ {
		sum = sum.Add(draw(r, n, 3))
	}
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		mine := draw(w.Rank, n, 3).To(dtype)
		reduced := mine.Clone()
		g.AllReduce(reduced, Sum).Wait()
		if err := equal("all-reduce", reduced, sum); err != nil {
			return err
		}
		part := torch.Empty([]int{1, 3}, dtype, w.Device())
		g.ReduceScatter(part, mine, Sum).Wait()
		if err := equal("reduce-scatter", part, sum.Narrow(0, w.Rank, 1)); err != nil {
			return err
		}
		overwritten := mine.Clone() // in place
		part = overwritten.Narrow(0, w.Rank, 1)
		g.ReduceScatter(part, overwritten, Sum).Wait()
		if err := equal("reduce-scatter in place", part, sum.Narrow(0, w.Rank, 1)); err != nil {
			return err
		}
		all := torch.Empty([]int{n, n, 3}, dtype, w.Device())
		works := []*Work{g.AllGather(all, mine)}
		copied := mine.Clone()
		works = append(works, g.Broadcast(copied, n-1)) // two at a time
		for _, work := range works {
			work.Wait()
		}
		for r := range n {
			if err := equal("all-gather", all.Select(0, r), draw(r, n, 3)); err != nil {
				return err
			}
		}
		if err := equal("broadcast", copied, draw(n-1, n, 3)); err != nil {
			return err
		}
		if n > 1 { // around a ring
			got := torch.Empty([]int{n, 3}, dtype, w.Device())
			receive := func() { g.Receive(got, (w.Rank+n-1)%n, 1).Wait() }
			if w.Rank%2 == 1 {
				receive()
			}
			sent := g.Send(mine, (w.Rank+1)%n, 1)
			if w.Rank%2 == 0 {
				receive()
			}
			sent.Wait()
			if err := equal("receive", got, draw((w.Rank+n-1)%n, n, 3)); err != nil {
				return err
			}
		}
	}
	largest := torch.From([]float32{float32(w.Rank)}, 1).ToDevice(w.Device())
	g.AllReduce(largest, Max).Wait()
	if got := torch.Item[float32](largest); got != float32(n-1) {
		return fmt.Errorf("the largest rank is %v, want %d", got, n-1)
	}
	if sums := g.Sums(1, float64(w.Rank)); sums[0] != float64(n) || sums[1] != float64(n*(n-1)/2) {
		return fmt.Errorf("sums %v of %d ranks", sums, n)
	}
	return nil
}

func mesh(w *World) error {
	m, err := w.NewMesh(2)
	if err != nil {
		return err
	}
	row, column := m.Row.Sums(float64(w.Rank))[0], m.Column.Sums(float64(w.Rank))[0]
	fmt.Printf("row %v column %v", row, column)
	return nil
}

func TestCollectives_CombineEveryRank(t *testing.T) {
	for _, n := range []int{1, 2, 4} {
		for rank, end := range play(t, "operations", n) {
			if end.code != 0 {
				t.Errorf("rank %d of %d ended with %d: %s", rank, n, end.code, end.stderr)
			}
		}
	}
}

// Over NCCL, in a world of all of this machine's GPUs.
func TestCollectives_CombineEveryRankOnGPU(t *testing.T) {
	if err := torch.LoadCUDA(); err != nil {
		t.Skip(err)
	}
	t.Setenv(deviceVariable, "1")
	for rank, end := range play(t, "operations", len(torch.Devices())) {
		if end.code != 0 {
			t.Errorf("rank %d ended with %d: %s", rank, end.code, end.stderr)
		}
	}
}

func TestMesh_HasRowsAndColumns(t *testing.T) {
	want := []string{"row 1 column 2", "row 1 column 4", "row 5 column 2", "row 5 column 4"}
	for rank, end := range play(t, "mesh", 4) {
		if end.stdout != want[rank] {
			t.Errorf("rank %d: %q, want %q (%s)", rank, end.stdout, want[rank], end.stderr)
		}
	}
}

func TestCollectives_NameRankThatDoesNotJoin(t *testing.T) {
	for scenario, wanted := range map[string][]string{
		"laggard": {
			"all-reduce 2 of group world (step 3)", "rank 2 is behind, after all-reduce 1 (asleep)",
		},
		"laggard backward": {
			"all-reduce 1 of group world (step 3)",
			"rank 2 has not begun any operation of it (asleep)",
		},
	} {
		ends := play(t, scenario, 3)
		message := ends[0].stderr
		for _, want := range wanted {
			if ends[0].code != 1 || !strings.Contains(message, want) ||
				strings.Count(message, "\n") != 1 {
				t.Errorf("%s: rank 0 ended with %d and %q, want a line with %q", scenario,
					ends[0].code, message, want)
			}
		}
	}
}

// sharded compares operations of sharded layers with one process: results, and the gradients of a
// sum.
func sharded(w *World) error {
	r := rand.New(rand.NewPCG(uint64(os.Getppid()), 7))
	random := func(sizes ...int) torch.Tensor {
		total := 1
		for _, s := range sizes {
			total *= s
		}
		values := make([]float32, total)
		for i := range values {
			values[i] = float32(r.NormFloat64())
		}
		return torch.From(values, sizes...)
	}
	near := func(what string, got, want torch.Tensor) error {
		a, b := torch.Values[float32](got), torch.Values[float32](want)
		for i := range b {
			if d := math.Abs(float64(a[i] - b[i])); !(d <= 1e-5*max(1, math.Abs(float64(b[i])))) {
				return fmt.Errorf("%s: element %d is %v, want %v", what, i, a[i], b[i])
			}
		}
		return nil
	}
	// Two layers y = W (V x), the first sharded by output columns, the second by input rows, in
	// unequal parts.
	const inner = 13
	first, count := inner*w.Rank/w.Size, inner*(w.Rank+1)/w.Size-inner*w.Rank/w.Size
	x, up, down, seed := random(5, 6), random(inner, 6), random(4, inner), random(5, 4)
	pass := func(whole bool) (y, dx torch.Tensor) {
		x := x.Clone().RequireGrad(true)
		if whole {
			y = torch.Linear(torch.Linear(x, up, torch.Tensor{}), down, torch.Tensor{})
		} else {
			h := torch.Linear(w.All.Spread(x), up.Narrow(0, first, count), torch.Tensor{})
			y = w.All.Collect(
				torch.Linear(h, down.Narrow(1, first, count).Contiguous(), torch.Tensor{}))
		}
		torch.Backward([]torch.Tensor{y}, []torch.Tensor{seed})
		return y.Detach(), x.Grad()
	}
	wantY, wantX := pass(true)
	gotY, gotX := pass(false)
	if err := near("outputs", gotY, wantY); err != nil {
		return err
	}
	if err := near("the input's gradient", gotX, wantX); err != nil {
		return err
	}
	// The same with the rows of x and y divided among the processes.
	mine := random(3*w.Size, 6)
	stretch := func(t torch.Tensor) torch.Tensor { return t.Narrow(0, 3*w.Rank, 3) }
	seed = random(3*w.Size, 4)
	all, some := mine.Clone().RequireGrad(true), stretch(mine).Clone().RequireGrad(true)
	want := torch.Linear(torch.Linear(all, up, torch.Tensor{}), down, torch.Tensor{})
	torch.Backward([]torch.Tensor{want}, []torch.Tensor{seed})
	h := torch.Linear(w.All.Gather(some), up.Narrow(0, first, count), torch.Tensor{})
	got := w.All.Scatter(torch.Linear(h, down.Narrow(1, first, count).Contiguous(), torch.Tensor{}))
	torch.Backward([]torch.Tensor{got}, []torch.Tensor{stretch(seed).Contiguous()})
	if err := near("rows of outputs", got.Detach(), stretch(want.Detach())); err != nil {
		return err
	}
	if err := near("the rows' gradient", some.Grad(), stretch(all.Grad())); err != nil {
		return err
	}
	// A head over more rows than a chunk; some rows are not counted, some labels belong to one
	// process.
	const vocabulary = 41
	rows := 1100
	labels := make([]int64, rows)
	for i := range labels {
		if labels[i] = int64(r.IntN(vocabulary)); r.IntN(4) == 0 {
			labels[i] = -100
		}
	}
	first, count = vocabulary*w.Rank/w.Size, vocabulary*(w.Rank+1)/w.Size-vocabulary*w.Rank/w.Size
	hidden, head, target := random(rows, 8), random(vocabulary, 8), torch.From(labels, rows)
	for _, o := range []torch.Loss{
		{}, {Divisor: 3}, {LabelSmoothing: 0.2, ZLoss: 0.01, Weights: random(rows).Abs()},
	} {
		h, weight := hidden.Clone().RequireGrad(true), head.Clone().RequireGrad(true)
		want, wantEach := torch.HeadCrossEntropy(h, weight, target, o)
		want.Backward()
		mine := hidden.Clone().RequireGrad(true)
		part := head.Narrow(0, first, count).Clone().RequireGrad(true)
		got, each := w.All.HeadCrossEntropy(w.All.Spread(mine), part, target, first, vocabulary, o)
		got.Backward()
		for what, pair := range map[string][2]torch.Tensor{
			"loss":                 {got.Detach(), want.Detach()},
			"each label's":         {each, wantEach},
			"gradient of hidden":   {mine.Grad(), h.Grad()},
			"gradient of the head": {part.Grad(), weight.Grad().Narrow(0, first, count)},
		} {
			if err := near(fmt.Sprintf("%+v: %s", o, what), pair[0], pair[1]); err != nil {
				return err
			}
		}
		var plain torch.Tensor
		torch.NoGrad(func() {
			plain, _ = w.All.HeadCrossEntropy(hidden, part.Detach(), target, first, vocabulary, o)
		})
		if err := near("without gradients", plain, got.Detach()); err != nil {
			return err
		}
	}
	return nil
}

func TestTensorParallel_MatchesOneProcess(t *testing.T) {
	for _, n := range []int{1, 2, 4} {
		for rank, end := range play(t, "sharded", n) {
			if end.code != 0 {
				t.Errorf("rank %d of %d ended with %d: %s", rank, n, end.code, end.stderr)
			}
		}
	}
}

func TestCollectives_FailAtOnceWhenRankDies(t *testing.T) {
	begin := time.Now()
	ends := play(t, "death", 3)
	if ends[0].code != 1 || !strings.Contains(ends[0].stderr, "rank 1 is gone") ||
		!strings.Contains(ends[0].stderr, "step 5") {
		t.Errorf("rank 0 ended with %d and %q", ends[0].code, ends[0].stderr)
	}
	if took := time.Since(begin); took > 50*time.Second { // the timeout is a minute
		t.Errorf("that took %v", took)
	}
}

func TestFromEnvironment_ReadsEachLauncher(t *testing.T) {
	torchrun := map[string]string{
		"RANK":                         "5",
		"WORLD_SIZE":                   "8",
		"LOCAL_RANK":                   "1",
		"LOCAL_WORLD_SIZE":             "4",
		"MASTER_ADDR":                  "host",
		"MASTER_PORT":                  "29400",
		"TORCHELASTIC_USE_AGENT_STORE": "True",
		"TORCHELASTIC_RESTART_COUNT":   "2",
	}
	slurm := map[string]string{
		"SLURM_STEP_ID":             "0",
		"SLURM_STEP_NUM_TASKS":      "11",
		"SLURM_PROCID":              "9",
		"SLURM_LOCALID":             "1",
		"SLURM_NODEID":              "2",
		"SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
		"SLURM_STEP_NODELIST":       "gpu[07-08,12],big3",
		"SLURM_JOB_ID":              "1234567",
	}
	oneMachine := map[string]string{
		"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
		"MASTER_ADDR": "host", "MASTER_PORT": "29400",
	}
	oneSlurmNode := map[string]string{
		"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1",
		"SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "2",
		"SLURM_STEP_NODELIST": "gpu07", "SLURM_JOB_ID": "7",
	}
	job := map[string]string{
		"RANK":        "1",
		"WORLD_SIZE":  "2",
		"MASTER_ADDR": "job-master-0",
		"MASTER_PORT": "23456",
	}
	for i, c := range []struct {
		variables map[string]string
		want      Place
	}{
		{nil, Alone},
		// sbatch without srun
		{map[string]string{"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Alone},
		{torchrun, Place{
			Rank: 5, Size: 8, LocalRank: 1, LocalSize: 4, Address: "host", Port: 29400,
			StoreElsewhere: true, Attempt: "2",
		}},
		{slurm, Place{
			Rank: 9, Size: 11, LocalRank: 1, LocalSize: 3,
			Address: "gpu07", Port: 24567, Attempt: "0",
		}},
		{oneMachine, Place{
			Rank: 1, Size: 2, LocalRank: 1, LocalSize: 2, Address: "127.0.0.1", Port: 29400,
			OneMachine: true, Attempt: "0",
		}},
		{oneSlurmNode, Place{
			Rank: 1, Size: 2, LocalRank: 1, LocalSize: 2, Address: "127.0.0.1", Port: 20007,
			OneMachine: true, Attempt: "0",
		}},
		{job, Place{
			Rank: 1, Size: 2, LocalSize: 1, Address: "job-master-0", Port: 23456, Attempt: "0",
		}},
	} {
		got, err := placeFrom(func(name string) string { return c.variables[name] })
		if err != nil || got != c.want {
			t.Errorf("case %d: %+v and %v, want %+v", i, got, err, c.want)
		}
	}
	for name, value := range map[string]string{
		"RANK": "8", "WORLD_SIZE": "two", "MASTER_ADDR": "", "MASTER_PORT": "99999",
	} {
		_, err := placeFrom(func(n string) string {
			if n == name {
				return value
			}
			return torchrun[n]
		})
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=%q gave %v", name, value, err)
		}
	}
}
