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

// leg is a part of a run in a world of so many processes. It ends when rank 2 is killed after a
// step, or when all are stopped.
type leg struct {
	world      int
	strategy   string
	size       int // of the groups that shard the weights (hsdp), or divide the layers
	kill, stop int
}

// on returns s for a leg. Its steps have the given number of rows in all.
func (s runSpec) on(l leg, rows int) runSpec {
	s.Distributed, s.KillRank, s.KillAt, s.StopAt = l.strategy, 2, l.kill, l.stop
	if l.strategy == HSDP {
		s.ShardSize = l.size
	} else {
		s.TensorSize = l.size
	}
	same := max(1, s.TensorSize) // processes that take the same rows
	if l.strategy == PP {
		same = l.world
	}
	s.Options.BatchSize = rows * same / l.world
	return s
}

// resumeCase is a run whose legs have different worlds or strategies.
type resumeCase struct {
	name   string
	change func(*runSpec)
	legs   []leg
}

var resumeCases = []resumeCase{
	{"sharded bamba", func(s *runSpec) { s.Architecture = "bamba" }, []leg{
		{world: 4, strategy: FSDP, kill: 5}, {world: 2, strategy: HSDP, size: 2, stop: 8},
	}},
	{"pipeline", func(s *runSpec) { s.Architecture = "deep llama" }, []leg{
		{world: 4, strategy: PP, kill: 5}, {world: 2, strategy: PP, stop: 8},
	}},
	{"divided llama, bfloat16", func(s *runSpec) { s.DType = "bfloat16" }, []leg{
		{world: 4, strategy: FSDP, stop: 3}, {world: 2, strategy: TP, size: 2, stop: 5},
		{world: 4, strategy: FSDP, size: 2, stop: 8},
	}},
	{"divided bamba, untied", func(s *runSpec) { s.Architecture, s.Tied = "bamba", false }, []leg{
		{world: 4, strategy: TP, size: 2, stop: 3}, {world: 2, strategy: TP, size: 2, stop: 8},
	}},
	{"sharded LoRA", func(s *runSpec) { s.Options.LoRA = adapterConfig() }, []leg{
		{world: 2, strategy: FSDP, stop: 8},
	}},
	{"divided LoRA", func(s *runSpec) { s.Options.LoRA = adapterConfig() }, []leg{
		{world: 2, strategy: TP, size: 2, stop: 8},
	}},
}

// Each leg of a run resumes where the previous one ended, in another world or with another
// strategy. The last leg is one process with smaller batches. Its losses are those of one process
// that took all steps.
func TestResume_InAnotherWorld(t *testing.T) {
	skipWorlds(t)
	const rows = 4
	specs := make([]runSpec, len(resumeCases))
	for i, c := range resumeCases {
		s := spec()
		c.change(&s)
		s.Checkpoints, s.Every, s.Resume = filepath.Join(t.TempDir(), "c"), 3, true
		s.Options.BatchSize, s.Options.Steps = rows, 10
		specs[i] = s
	}
	takeLegs(t, specs, rows)
	for i, c := range resumeCases {
		t.Run(c.name, func(t *testing.T) {
			s := specs[i]
			want := alone(t, s, 1)
			s.Distributed = None
			s.Options.BatchSize, s.Options.Accumulate = rows/2, 2*s.Options.Accumulate
			last, err := s.run(nil)
			if err != nil {
				t.Fatal(err)
			}
			if last.First != 8 {
				t.Errorf("the last leg resumed after step %d, want 8", last.First)
			}
			tolerance := 2e-4
			if s.DType == "bfloat16" {
				tolerance = 0.03
			}
			same(t, c.name, last, want, tolerance)
		})
	}
}

// takeLegs takes all legs of resumeCases. Legs that are stopped share a world; a kill ends its
// world.
func takeLegs(t *testing.T, specs []runSpec, rows int) {
	t.Helper()
	for n := range 3 {
		stopped := map[int][]runSpec{} // by world size
		for i, c := range resumeCases {
			if n >= len(c.legs) {
				continue
			}
			l := c.legs[n]
			if s := specs[i].on(l, rows); l.kill == 0 {
				stopped[l.world] = append(stopped[l.world], s)
			} else if _, ends := launch(t, l.world, s); ends[2].code != 9 || ends[0].code != 1 ||
				!strings.Contains(ends[0].stderr, "rank 2 is gone") {
				t.Fatalf("%s: a killed rank ended the others with %+v", c.name, ends)
			}
		}
		for world, list := range stopped {
			for i, r := range succeed(t, world, list...) {
				if !r.Stopped {
					t.Fatalf("leg %d in a world of %d was not stopped: %+v", i, world, r)
				}
			}
		}
	}
}

// Two processes that shard the layers resume from what two processes that divided them wrote, and
// their losses are those that the first would have continued to.
func TestResume_DividedLayersSharded(t *testing.T) {
	skipWorlds(t)
	const rows = 4
	var first, then []runSpec
	dtypes := []string{"float32", "bfloat16"}
	for _, dtype := range dtypes {
		s := spec()
		s.DType, s.Checkpoints, s.Resume = dtype, filepath.Join(t.TempDir(), "c"), true
		s.Options.Steps = 10
		first = append(first, s.on(leg{world: 2, strategy: TP, size: 2, stop: 7}, rows))
	}
	succeed(t, 2, first...)
	for _, s := range first {
		s.StopAt = 0
		divided := s
		divided.Checkpoints = filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(divided.Checkpoints, os.DirFS(s.Checkpoints)); err != nil {
			t.Fatal(err)
		}
		then = append(then, s.on(leg{world: 2, strategy: FSDP}, rows), divided)
	}
	results := succeed(t, 2, then...)
	for i, dtype := range dtypes {
		got, want := results[2*i], results[2*i+1]
		if got.First != 7 || want.First != 7 {
			t.Fatalf("the runs resumed after steps %d and %d, want 7", got.First, want.First)
		}
		tolerance := 2e-4
		if dtype == "bfloat16" {
			tolerance = 0.03
		}
		got.First = 0 // both results start there
		same(t, dtype, got, want, tolerance)
	}
}

func TestResume_AfterKillingAllRanks(t *testing.T) {
	skipWorlds(t)
	s := spec()
	s.Distributed, s.Checkpoints, s.Resume = FSDP, filepath.Join(t.TempDir(), "c"), true
	s.Options.Steps, s.Every = 40, 1
	want := alone(t, s, 2)
	for range 3 {
		s.killAllAfter = 300*time.Millisecond + rand.N(1200*time.Millisecond)
		_, ends := launch(t, 2, s)
		for _, e := range ends {
			if e.code > 0 && !strings.Contains(e.stderr, "gone") { // killed, or the other one was
				t.Fatalf("before it was killed a rank ended with %+v", e)
			}
		}
	}
	s.killAllAfter = 0
	last := succeed(t, 2, s)[0]
	t.Logf("the last run resumed after step %d", last.First)
	same(t, "the last run", last, want, 2e-3)
}

// nativeSpec is a run of two processes that writes a native checkpoint in dir.
func nativeSpec(t testing.TB) (s runSpec, dir string) {
	s = spec()
	s.Distributed, s.Checkpoints = FSDP, filepath.Join(t.TempDir(), "c")
	s.Every, s.Options.Steps = 2, 3
	return s, filepath.Join(s.Checkpoints, "step-00000002")
}

func TestNativeCheckpoint_IsAModel(t *testing.T) {
	skipWorlds(t)
	noLeaks(t)
	s, dir := nativeSpec(t)
	s.DType = "bfloat16"
	twoSteps := s // what the run had when it wrote the checkpoint
	twoSteps.Checkpoints, twoSteps.Every, twoSteps.Options.Steps = "", 0, 2
	want := succeed(t, 2, s, twoSteps)[1]
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
	torch.Run(func() error {
		for param, components := range componentsOf(m) {
			all := torch.Values[float32](param.Tensor)
			for _, c := range components {
				near(t, c.name, all[c.start:c.start+c.count], want.Weights[c.name], 0.02)
			}
		}
		return nil
	})
}

func TestNativeCheckpoint_DamageIsReportedInOneLine(t *testing.T) {
	skipWorlds(t)
	s, dir := nativeSpec(t)
	otherRun, other := nativeSpec(t)
	otherRun.Options.Seed = 6
	succeed(t, 2, s, otherRun)
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
	s.Distributed, s.Resume, s.Options.BatchSize = None, true, 4
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
		_, err := s.run(nil)
		if err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q and the file's name in one line", err, want)
		}
	}
	os.WriteFile(file, whole, 0o666)
	if r, err := s.run(nil); err != nil || r.First != 2 {
		t.Errorf("undamaged, it resumes after step %d with %v", r.First, err)
	}
}

// Hosts without a shared disk would resume from different steps.
func TestResume_RefusesDifferentSteps(t *testing.T) {
	skipWorlds(t)
	s := spec()
	s.Distributed, s.Checkpoints = DDP, filepath.Join(t.TempDir(), "c")
	s.StopAt, s.Options.Steps = 4, 8
	again := s
	again.StopAt, again.Resume, again.SeparateFolders = 0, true, true
	_, ends := launch(t, 2, s, again)
	want := "rank 1 resumes after step 0, rank 0 after step 4: "
	if ends[1].code != 1 || !strings.Contains(ends[1].stderr, want) {
		t.Errorf("rank 1 ended with %d and %q", ends[1].code, ends[1].stderr)
	}
}
