package train

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// leg is some steps of a run, in a world of so many processes: until rank 2 is killed behind a
// step, or all are stopped.
type leg struct {
	world      int
	strategy   string
	size       int // of the groups that shard the weights (hsdp), or divide the layers
	kill, stop int
}

// goOn takes a leg of the run s, whose batches are of so many rows in all.
func (s runSpec) goOn(t *testing.T, l leg, rows int) {
	t.Helper()
	s.Distributed, s.KillRank, s.KillAt, s.StopAt = l.strategy, 2, l.kill, l.stop
	switch l.strategy {
	case HSDP:
		s.ShardSize = l.size
	default:
		s.TensorSize = l.size
	}
	same := max(1, s.TensorSize) // processes that take the same rows
	if l.strategy == PP {
		same = l.world
	}
	s.Options.BatchSize = rows * same / l.world
	_, ends := launch(t, s, l.world)
	switch {
	case l.kill > 0 && (ends[2].code != 9 || ends[0].code != 1 || !strings.Contains(ends[0].stderr, "rank 2 is gone")):
		t.Fatalf("%+v: a killed rank ended the others with %+v", l, ends)
	case l.stop > 0 && !strings.Contains(ends[0].stderr, "canceled"):
		t.Fatalf("%+v: a stopped run ended with %+v", l, ends)
	}
}

// Each leg of a run goes on where the one before ended, in another world or with another strategy;
// the last is one process with smaller batches. Its losses are those of a process that took all
// steps.
func TestARunGoesOnInAnotherWorld(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*runSpec)
		legs   []leg
	}{
		"sharded bamba": {func(s *runSpec) { s.Architecture = "bamba" }, []leg{
			{world: 4, strategy: FSDP, kill: 8}, {world: 2, strategy: HSDP, size: 2, stop: 13}}},
		"pipeline": {func(s *runSpec) { s.Architecture = "deep llama" }, []leg{
			{world: 4, strategy: PP, kill: 8}, {world: 2, strategy: PP, stop: 13}}},
		"divided llama, bfloat16": {func(s *runSpec) { s.DType = "bfloat16" }, []leg{
			{world: 4, strategy: FSDP, stop: 5}, {world: 2, strategy: TP, size: 2, stop: 9}, {world: 4, strategy: FSDP, size: 2, stop: 13}}},
		"divided bamba, untied": {func(s *runSpec) { s.Architecture, s.Tied = "bamba", false }, []leg{
			{world: 4, strategy: TP, size: 2, stop: 5}, {world: 2, strategy: TP, size: 2, stop: 13}}},
		"sharded LoRA": {func(s *runSpec) { s.Options.LoRA = adapterConfig() }, []leg{{world: 2, strategy: FSDP, stop: 13}}},
		"divided LoRA": {func(s *runSpec) { s.Options.LoRA = adapterConfig() }, []leg{{world: 2, strategy: TP, size: 2, stop: 13}}},
	} {
		t.Run(what, func(t *testing.T) {
			const rows = 4
			s := spec()
			c.change(&s)
			s.Checkpoints, s.Every, s.Resume, s.Options.BatchSize = filepath.Join(
				t.TempDir(),
				"c",
			), 5, true, rows
			want := alone(t, s, 1)
			for _, l := range c.legs {
				s.goOn(t, l, rows)
			}
			s.Distributed, s.Options.BatchSize, s.Options.Accumulate = None, rows/2, 2*s.Options.Accumulate
			last, err := s.run(nil)
			if err != nil {
				t.Fatal(err)
			}
			if last.First != 13 {
				t.Errorf("the last run began after step %d, want 13", last.First)
			}
			tolerance := 2e-4
			if s.DType == "bfloat16" {
				tolerance = 0.03
			}
			same(t, what, last, want, tolerance)
		})
	}
}

// What two processes wrote that divided the layers, two others go on from that shard them, to the
// losses that the first would have gone on to.
func TestDividedLayersGoOnSharded(t *testing.T) {
	for _, dtype := range []string{"float32", "bfloat16"} {
		const rows = 4
		s := spec()
		s.DType, s.Checkpoints, s.Resume, s.Options.BatchSize = dtype, filepath.Join(
			t.TempDir(),
			"c",
		), true, rows
		s.goOn(t, leg{world: 2, strategy: TP, size: 2, stop: 7}, rows)
		divided := s
		divided.Distributed, divided.TensorSize, divided.Checkpoints = TP, 2, filepath.Join(
			t.TempDir(),
			"copy",
		)
		if err := os.CopyFS(divided.Checkpoints, os.DirFS(s.Checkpoints)); err != nil {
			t.Fatal(err)
		}
		s.Distributed, s.Options.BatchSize = FSDP, rows/2
		got, want := succeedIn(t, s, 2), succeedIn(t, divided, 2)
		if got.First != 7 || want.First != 7 {
			t.Fatalf("the runs went on after steps %d and %d, want 7", got.First, want.First)
		}
		tolerance := 2e-4
		if dtype == "bfloat16" {
			tolerance = 0.03
		}
		got.First = 0 // what is compared begins there
		same(t, dtype, got, want, tolerance)
	}
}

func TestKillingAllRanksAtAnyMomentLeavesACheckpointThatResumes(t *testing.T) {
	s := spec()
	s.Options.Steps, s.Every, s.Resume, s.Checkpoints, s.Distributed = 80, 1, true, filepath.Join(
		t.TempDir(),
		"c",
	), FSDP
	want := alone(t, s, 2)
	for range 4 {
		s.KillAll = 300*time.Millisecond + rand.N(1200*time.Millisecond)
		_, ends := launch(t, s, 2)
		for _, e := range ends {
			if e.code > 0 &&
				!strings.Contains(e.stderr, "gone") { // killed itself, or by the other's death
				t.Fatalf("before it was killed a rank ended with %+v", e)
			}
		}
	}
	s.KillAll = 0
	last := succeedIn(t, s, 2)
	t.Logf("the last run began after step %d", last.First)
	same(t, "the last run", last, want, 2e-3)
}

// nativeCheckpoint makes a native checkpoint of two processes and returns its folder.
func nativeCheckpoint(t testing.TB, change func(*runSpec)) (runSpec, string) {
	s := spec()
	s.Distributed, s.Checkpoints, s.Every, s.Options.Steps = FSDP, filepath.Join(
		t.TempDir(),
		"c",
	), 2, 3
	change(&s)
	succeedIn(t, s, 2)
	return s, filepath.Join(s.Checkpoints, "step-00000002")
}

func TestANativeCheckpointIsAModel(t *testing.T) {
	noLeaks(t)
	s, dir := nativeCheckpoint(t, func(s *runSpec) { s.DType = "bfloat16" })
	c, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := filepath.Join(t.TempDir(), "hf")
	if err := checkpoint.Save(out, c, checkpoint.Options{Config: c.ConfigJSON()}); err != nil {
		t.Fatal(err)
	}
	m, err := model.Open(out, torch.BFloat16, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	// What the run had after two steps.
	s.Checkpoints, s.Every, s.Options.Steps, s.Options.Schedule = "", 0, 2, ""
	want := succeedIn(t, s, 2)
	torch.Run(func() error {
		for param, stretches := range componentsOf(m) {
			all := torch.Values[float32](param.Tensor)
			for _, n := range stretches {
				near(t, n.name, all[n.start:n.start+n.count], want.Weights[n.name], 0.02)
			}
		}
		return nil
	})
}

func TestADamagedNativeCheckpointIsRefusedInOneLine(t *testing.T) {
	s, dir := nativeCheckpoint(t, func(*runSpec) {})
	_, other := nativeCheckpoint(t, func(s *runSpec) { s.Options.Seed = 6 })
	file := filepath.Join(dir, "rank-00001-of-00002.safetensors")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(other, filepath.Base(file)))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-9] ^= 1
	s.Resume, s.Options.BatchSize = true, 4
	for want, content := range map[string][]byte{
		"no such file":                       nil,
		"truncated":                          whole[:len(whole)-1],
		"damaged, or belongs to another run": foreign,
		"does not have the checksum th":      flipped,
	} {
		os.Remove(file)
		if content != nil {
			os.WriteFile(file, content, 0o666)
		}
		s.Distributed = None
		_, err := s.run(nil)
		if err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), file) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q and the file's name in one line", err, want)
		}
	}
	os.WriteFile(file, whole, 0o666)
	if r, err := s.run(nil); err != nil || r.First != 2 {
		t.Errorf("undamaged, it resumes after step %d with %v", r.First, err)
	}
}
