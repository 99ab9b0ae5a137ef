package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"conquer/internal/atomicfile"
	"conquer/torch"
)

// memory is a source without files.
type memory struct {
	names   []string
	tensors map[string][]byte
	infos   map[string]Info
	fail    error // of Tensor for the last name
}

func newMemory() *memory {
	return &memory{tensors: map[string][]byte{}, infos: map[string]Info{}}
}

func (m *memory) add(name string, dtype torch.DType, shape ...int) *memory {
	bytes := dtype.Size()
	for _, n := range shape {
		bytes *= n
	}
	data := make([]byte, bytes)
	for i := range data {
		data[i] = byte(i*7 + len(m.names)*13)
	}
	m.names = append(m.names, name)
	m.tensors[name], m.infos[name] = data, Info{DType: dtype, Shape: shape, Bytes: bytes}
	return m
}

func (m *memory) Names() []string { return m.names }

func (m *memory) Info(name string) (Info, bool) { i, ok := m.infos[name]; return i, ok }

func (m *memory) Tensor(name string) (torch.Tensor, error) {
	if m.fail != nil && name == m.names[len(m.names)-1] {
		return torch.Tensor{}, m.fail
	}
	return torch.FromBytes(m.tensors[name], m.infos[name].DType, m.infos[name].Shape), nil
}

func someTensors() *memory {
	return newMemory().add("flag", torch.Bool, 3).add("a.weight", torch.BFloat16, 5,
		3).add("b.weight", torch.Float32, 2, 2).
		add("c.weight", torch.Float16, 7).add("d", torch.Int64, 1).add("e", torch.Float64,
		2).add("none", torch.Float32, 0, 2)
}

// wantSame fails unless two sources hold the same tensors, bit for bit.
func wantSame(t *testing.T, got, want Source) {
	t.Helper()
	a, b := slices.Sorted(slices.Values(got.Names())), slices.Sorted(slices.Values(want.Names()))
	if !slices.Equal(a, b) {
		t.Errorf("tensors %v, expected %v", a, b)
		return
	}
	inTorch(t, func() {
		for _, name := range a {
			x, err := got.Tensor(name)
			y, err2 := want.Tensor(name)
			if err != nil || err2 != nil {
				t.Errorf("%s: %v, %v", name, err, err2)
			} else if x.DType() != y.DType() || !slices.Equal(x.Shape(),
				y.Shape()) || string(x.Data()) != string(y.Data()) {
				t.Errorf("%s: %v, expected %v, or other bits", name, x, y)
			}
		}
	})
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestSave_FolderHoldsTheSameBits(t *testing.T) {
	for name, shard := range map[string]int{"whole": 0, "shards": 20, "one each": 1} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "new", "model")
			source := someTensors()
			live := torch.LiveTensors()
			if err := Save(dir, source, Options{ShardBytes: shard}); err != nil {
				t.Fatal(err)
			}
			if torch.LiveTensors() != live {
				t.Errorf("%d tensors are left over", torch.LiveTensors()-live)
			}
			wantSame(t, mustOpen(t, dir), source)
			if name == "shards" && !slices.Contains(entries(t, dir),
				"model-00001-of-00006.safetensors") {
				t.Error(entries(t, dir))
			}
			if left := entries(t, filepath.Dir(dir)); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestSave_HuggingFaceRoundTripIsBitEqual(t *testing.T) {
	for _, dtype := range []torch.DType{torch.BFloat16, torch.Float16, torch.Float32} {
		source := mustOpen(t, filepath.Join(fixtures, "sharded"))
		first := filepath.Join(t.TempDir(), "first")
		options := Options{DType: &dtype, Config: source.ConfigJSON(),
			GenerationConfig: source.GenerationConfigJSON(), ShardBytes: 4000}
		if err := Save(first, source, options); err != nil {
			t.Fatal(err)
		}
		if dtype == torch.BFloat16 { // the fixture's dtype
			wantSame(t, mustOpen(t, first), source)
			if text, _ := os.ReadFile(filepath.Join(first,
				configFile)); string(text) != string(source.ConfigJSON()) {
				t.Errorf("the config changed:\n%s", text)
			}
		}
		again := mustOpen(t, first)
		if again.Config()["dtype"] != dtype.String() || again.Config()["rms_norm_eps"] != 1e-6 {
			t.Errorf("config: %v", again.Config())
		}
		second := filepath.Join(t.TempDir(), "second")
		if err := Save(second, again, Options{Config: again.ConfigJSON()}); err != nil {
			t.Fatal(err)
		}
		wantSame(t, mustOpen(t, second), again)
		// A wider dtype holds every bfloat16, so the round trip is exact.
		if back := torch.BFloat16; dtype == torch.Float32 {
			third := filepath.Join(t.TempDir(), "third")
			if err := Save(third, mustOpen(t, second), Options{DType: &back}); err != nil {
				t.Fatal(err)
			}
			wantSame(t, mustOpen(t, third), source)
		}
	}
}

func TestSave_ConvertsGGUFToTheRequestedDType(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "types.gguf"))
	dtype := torch.BFloat16
	dir := filepath.Join(t.TempDir(), "m")
	if err := Save(dir, c, Options{DType: &dtype, Config: c.ConfigJSON(),
		GenerationConfig: c.GenerationConfigJSON()}); err != nil {
		t.Fatal(err)
	}
	saved := mustOpen(t, dir)
	if saved.Config()["torch_dtype"] != "bfloat16" ||
		saved.GenerationConfig()["eos_token_id"] != 2. {
		t.Errorf("%v, %v", saved.Config(), saved.GenerationConfig())
	}
	inTorch(t, func() {
		for _, name := range c.Names() {
			want, err := c.TensorAs(name, dtype)
			got, err2 := saved.Tensor(name)
			if err != nil || err2 != nil || string(got.Data()) != string(want.Data()) {
				t.Errorf("%s: %v, %v", name, err, err2)
			}
		}
	})
}

func TestSave_OverAnotherModelLeavesOneModel(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	tokenizer := t.TempDir()
	if err := os.WriteFile(filepath.Join(tokenizer, "tokenizer.json"), []byte("{}"),
		0o644); err != nil {
		t.Fatal(err)
	}
	also := func(stage string) error {
		return os.WriteFile(filepath.Join(stage, "note.txt"),
			[]byte("x"), 0o644)
	}
	for _, step := range []struct {
		shard int
		want  []string
	}{
		{0, []string{"README.md", "model.safetensors", "note.txt", "tokenizer.json"}},
		{100, []string{"README.md", "model-00001-of-00002.safetensors",
			"model-00002-of-00002.safetensors", indexFile, "note.txt", "tokenizer.json"}},
		{30, nil},
		{0, []string{"README.md", "model.safetensors", "note.txt", "tokenizer.json"}},
	} {
		source := someTensors().add(fmt.Sprint("only", step.shard), torch.Uint8, 60)
		if err := Save(dir, source, Options{ShardBytes: step.shard, TokenizerFrom: tokenizer,
			Also: also}); err != nil {
			t.Fatal(err)
		}
		wantSame(t, mustOpen(t, dir), source)
		if got := entries(t, dir); step.want != nil && !slices.Equal(got, step.want) {
			t.Errorf("%v, expected %v", got, step.want)
		}
	}
}

func TestSave_OverTheSourceFolderWorks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	if err := Save(dir, someTensors(), Options{}); err != nil {
		t.Fatal(err)
	}
	dtype := torch.Float32
	if err := Save(dir, mustOpen(t, dir), Options{DType: &dtype}); err != nil {
		t.Fatal(err)
	}
	if info, _ := mustOpen(t, dir).Info("a.weight"); info.DType != torch.Float32 {
		t.Errorf("%+v", info)
	}
}

func TestSave_RefusesATokenizerFileThatDoesNotEnd(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"it is a pipe":   func(path string) error { return syscall.Mkfifo(path, 0o666) },
		"it is a device": func(path string) error { return os.Symlink("/dev/zero", path) },
		"has 1099511627776 bytes": func(path string) error {
			if err := os.WriteFile(path, nil, 0o666); err != nil {
				return err
			}
			return os.Truncate(path, 1<<40)
		},
	} {
		from, to := t.TempDir(), filepath.Join(t.TempDir(), "model")
		path := filepath.Join(from, "vocab.json")
		if err := replace(path); err != nil {
			t.Fatal(err)
		}
		err := Save(to, someTensors(), Options{TokenizerFrom: from})
		if err == nil || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("error %v, expected %q", err, name)
		}
		if _, err := os.Stat(to); err == nil {
			t.Error("a part of the model was written")
		}
	}
}

func TestSave_FailureKeepsTheOldFiles(t *testing.T) {
	broken := someTensors()
	broken.fail = errors.New("the source broke")
	wrongShape := someTensors().add("w", torch.Float32, 4)
	wrongShape.infos["w"] = Info{DType: torch.Float32, Shape: []int{2, 3}}
	unsupported := someTensors().add("w", torch.Float32, 4)
	unsupported.infos["w"] = Info{DType: Unsupported, Stored: "F8_E4M3", Shape: []int{4}}
	for name, test := range map[string]struct {
		source  Source
		options Options
		want    string
	}{
		"source fails":   {broken, Options{ShardBytes: 20}, "the source broke"},
		"shape is wrong": {wrongShape, Options{}, "shape"},
		"unsupported":    {unsupported, Options{}, "F8_E4M3"},
		"bad config":     {someTensors(), Options{Config: []byte("[")}, "config.json"},
		"hook fails": {someTensors(),
			Options{Also: func(string) error { return errors.New("no tokenizer") }},
			"no tokenizer"},
		"full disk": {someTensors(),
			Options{Also: func(string) error {
				return &os.PathError{Op: "write", Path: "x",
					Err: syscall.ENOSPC}
			}}, "no space left on"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "m")
			err := Save(dir, test.source, test.options)
			wantError(t, err, test.want, dir[:len(dir)-2])
			if left := entries(t, filepath.Dir(dir)); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			before := newMemory().add("old", torch.Float32, 3)
			if err := Save(dir, before, Options{Config: []byte(`{"a":1}`)}); err != nil {
				t.Fatal(err)
			}
			if err := Save(dir, test.source, test.options); err == nil {
				t.Error("no error")
			}
			wantSame(t, mustOpen(t, dir), before)
			if left := entries(t, dir); !slices.Equal(left, []string{configFile, weightsFile}) {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// The full disk is a file system of 1 MB, if the machine lets the test mount one.
func TestSave_FullDiskIsNamedAndKeepsTheOldFiles(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	small, large := newMemory().add("w", torch.Float32, 1000),
		newMemory().add("w", torch.Float32, 1000).add("v", torch.Float32, 1000, 1000)
	for _, dir := range []string{disk, filepath.Join(disk, "m")} {
		if err := Save(dir, small, Options{}); err != nil {
			t.Fatal(err)
		}
		before := entries(t, dir)
		wantError(t, Save(dir, large, Options{}), "no space left on", disk)
		wantSame(t, mustOpen(t, dir), small)
		if after := entries(t, dir); !slices.Equal(before, after) {
			t.Errorf("left behind: %v", after)
		}
	}
	llama, config := randomLlama(t, "llama", torch.Float32, 1)
	wide := newMemory().add("model.embed_tokens.weight", torch.Float32, 10000, 32)
	for _, save := range []func(path string, source Source) error{
		func(path string, s Source) error { return SaveMeta(path, s, Options{Config: config}) },
		func(path string, s Source) error {
			return SaveGGUF(path+".gguf", s,
				Options{Config: config})
		},
	} {
		before := entries(t, disk)
		wantError(t, save(filepath.Join(disk, "n"), wide), "no space left on", disk)
		if after := entries(t, disk); !slices.Equal(before, after) {
			t.Errorf("left behind: %v", after)
		}
		if err := save(filepath.Join(disk, "small"), llama); err != nil {
			t.Fatal(err)
		}
		wantError(t, save(filepath.Join(disk, "small"), wide), "no space left on", disk)
	}
	wantSame(t, mustOpen(t, filepath.Join(disk, "small")), llama)
	wantSame(t, mustOpen(t, filepath.Join(disk, "small.gguf")), llama)
	path := filepath.Join(disk, "log")
	if err := atomicfile.WriteBytes(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	err := atomicfile.WriteBytes(path, make([]byte, 5<<20))
	wantError(t, err, "no space left on", disk)
	if text, _ := os.ReadFile(path); string(text) != "old" {
		t.Errorf("the old file is %q", text)
	}
}

func TestSave_SecondWriterOfAFolderFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	err := Save(dir, someTensors(), Options{Also: func(string) error {
		wantError(t, Save(dir, someTensors(), Options{}), dir, "another process is writing")
		return nil
	}})
	if err != nil {
		t.Error(err)
	}
	wantSame(t, mustOpen(t, dir), someTensors())
}

// A child process is killed at random moments while it saves one of two models over the other. Each
// time the folder holds one of them completely, and the next save works.
func TestSave_KillLeavesACompleteModel(t *testing.T) {
	models := []*memory{someTensors().add("which", torch.Uint8, 1<<20),
		someTensors().add("which", torch.Uint8, 3<<20)}
	if dir := os.Getenv("CONQUER_TEST_SAVE"); dir != "" {
		for i := 0; ; i++ {
			if err := Save(dir, models[i%2], Options{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := filepath.Join(t.TempDir(), "m")
	if err := Save(dir, models[0], Options{}); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		child := exec.Command(os.Args[0], "-test.run=^TestSave_KillLeavesACompleteModel$")
		child.Env = append(os.Environ(), "CONQUER_TEST_SAVE="+dir)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(100+i*17) * time.Millisecond)
		child.Process.Kill()
		child.Wait()
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		info, _ := c.Info("which")
		which := 0
		if info.Bytes == 3<<20 {
			which = 1
		}
		wantSame(t, c, models[which])
		c.Close()
	}
	if err := Save(dir, models[1], Options{}); err != nil {
		t.Fatal(err)
	}
	if left := entries(t, dir); !slices.Equal(left, []string{weightsFile}) {
		t.Errorf("left behind: %v", left)
	}
}

func TestSave_IndexIsAsHuggingFaceWritesIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	if err := Save(dir, someTensors(), Options{ShardBytes: 60}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, indexFile))
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Metadata struct {
			TotalSize int `json:"total_size"`
		} `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	if index.Metadata.TotalSize != 3+30+16+14+8+16 ||
		index.WeightMap["flag"] != "model-00001-of-00002.safetensors" ||
		!strings.HasSuffix(index.WeightMap["e"], "2-of-00002.safetensors") {
		t.Errorf("%s", text)
	}
}
