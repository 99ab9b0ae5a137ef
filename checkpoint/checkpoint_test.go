package checkpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"conquer/torch"
)

// facts is how the Python packages describe a tensor.
type facts struct {
	Stored string            `json:"stored"`
	Shape  []int             `json:"shape"`
	SHA256 map[string]string `json:"sha256"`
	First  []any             `json:"first"`
}

func readFacts(t *testing.T, name string) map[string]facts {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(fixtures, name))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]facts
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func mustOpen(t testing.TB, path string) *Checkpoint {
	t.Helper()
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// inTorch runs f in torch.Run and fails the test if it panics with a torch error.
func inTorch(t testing.TB, f func()) {
	t.Helper()
	if err := torch.Run(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestGGUF_TypesDecodeAsInThePythonPackage(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "types.gguf"))
	expected := readFacts(t, "types.json")
	if len(expected) != len(c.Names()) {
		t.Errorf("%d tensors, expected %d", len(c.Names()), len(expected))
	}
	kinds := map[string]bool{}
	inTorch(t, func() {
		for name, want := range expected {
			info, ok := c.Info(name)
			if !ok || !slices.Equal(info.Shape, want.Shape) || info.Stored != want.Stored {
				t.Errorf("%s: %+v, expected %s of %v", name, info, want.Stored, want.Shape)
				continue
			}
			kinds[info.Stored] = true
			own, err := c.Tensor(name)
			if err != nil || own.DType() != info.DType {
				t.Errorf("%s: %v, %v, expected %v", name, err, own.DType(), info.DType)
				continue
			}
			for dtype, sum := range want.SHA256 {
				got := own
				if dtype != "own" {
					parsed, err := torch.ParseDType(dtype)
					if err != nil {
						t.Fatal(err)
					}
					if got, err = c.TensorAs(name, parsed); err != nil {
						t.Fatal(err)
					}
				}
				if digest(got.Data()) != sum {
					t.Errorf("%s (%s) as %s differs: begins %v, expected %v", name, want.Stored,
						dtype, torch.Values[float64](got)[:4], want.First)
				}
			}
		}
	})
	for _, kind := range []string{"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
		"Q4_K", "Q5_K", "Q6_K"} {
		if !kinds[kind] {
			t.Errorf("the fixture has no %s", kind)
		}
	}
}

func TestSafetensors_DTypesAreReadAsThePythonPackageWritesThem(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "dtypes.safetensors"))
	inTorch(t, func() {
		for name, want := range readFacts(t, "dtypes.json") {
			got, err := c.Tensor(name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if !slices.Equal(got.Shape(), want.Shape) || digest(got.Data()) != want.SHA256["own"] {
				t.Errorf("%s: %v differs", name, got)
			}
		}
		for name, stored := range map[string]string{"i8": "I8", "f8": "F8_E4M3"} {
			if info, _ := c.Info(name); info.DType != Unsupported || info.Stored != stored {
				t.Errorf("%s: %+v, expected unsupported %s", name, info, stored)
			}
			_, err := c.Tensor(name)
			wantError(t, err, "dtypes.safetensors", name, stored, "not supported")
		}
	})
}

func TestOpen_ShardsMakeOneCheckpoint(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "sharded"))
	if len(c.Names()) != 21 || len(c.Files()) != 3 {
		t.Errorf("%d tensors in %d files, expected 21 in 3", len(c.Names()), len(c.Files()))
	}
	if c.Config()["hidden_size"] != 16.0 || c.GenerationConfig()["eos_token_id"] != 2.0 {
		t.Errorf("configs: %v, %v", c.Config(), c.GenerationConfig())
	}
	info, ok := c.Info("model.layers.1.mlp.up_proj.weight")
	if !ok || info.DType != torch.BFloat16 || !slices.Equal(info.Shape,
		[]int{24, 16}) || info.Bytes != 768 || info.File == "" {
		t.Errorf("%+v", info)
	}
}

func TestTensor_IsAViewAndWritingLeavesTheFileUnchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.safetensors")
	copyFile(t, filepath.Join(fixtures, "dtypes.safetensors"), path)
	before, _ := os.ReadFile(path)
	c := mustOpen(t, path)
	live := torch.LiveTensors()
	inTorch(t, func() {
		a, err := c.Tensor("f32")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := c.Tensor("f32")
		if unsafe.SliceData(a.Data()) != unsafe.SliceData(b.Data()) {
			t.Error("two views of one tensor are two copies")
		}
		c.Close()
		a.Data()[0]++ // stays valid after Close
		if _, err := c.Tensor("f32"); err == nil {
			t.Error("a tensor was read from a closed checkpoint")
		}
	})
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("the file changed")
	}
	if torch.LiveTensors() != live {
		t.Errorf("%d tensors are left over", torch.LiveTensors()-live)
	}
}

func TestTensor_CopiesUnalignedData(t *testing.T) {
	header := `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`
	// data begins 3 bytes behind a multiple of 8
	header += strings.Repeat(" ", (8-len(header)%8)%8) + "   "
	path := writeFile(t, "u.safetensors", safetensorsFile(header,
		"\x00\x00\x80\x3f\x00\x00\x00\x40"))
	c := mustOpen(t, path)
	inTorch(t, func() {
		a, err := c.Tensor("a")
		if err != nil || !slices.Equal(torch.Values[float32](a), []float32{1, 2}) {
			t.Errorf("%v, %v", err, a)
		}
	})
}

func TestOpen_NamesBadFoldersAndWhatWasExpected(t *testing.T) {
	one := safetensorsFile(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, "x")
	for name, test := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"empty": {nil, []string{"expected model.safetensors, " +
			"model.safetensors.index.json", "pytorch_model.bin", "params.json"}},
		"gguf inside": {map[string]string{"m.gguf": "x"}, []string{"it holds m.gguf"}},
		"pickles inside": {map[string]string{"pytorch_model.bin": "x"},
			[]string{"pytorch_model.bin", "zip archive"}},
		"broken config": {map[string]string{"config.json": "[1]", weightsFile: one},
			[]string{"config.json", "JSON object"}},
		"index not JSON": {map[string]string{indexFile: "{"},
			[]string{indexFile, "ends in the middle"}},
		"index without map": {map[string]string{indexFile: "{}"},
			[]string{indexFile, "weight_map"}},
		"shard missing": {map[string]string{indexFile: `{"weight_map":{"a":"s.safetensors"}}`},
			[]string{"s.safetensors", indexFile, `"a"`}},
		"shard outside": {map[string]string{indexFile: `{"weight_map":{"a":"../s.safetensors"}}`},
			[]string{indexFile, `"a"`, "../s"}},
		"shard is a number": {map[string]string{indexFile: `{"weight_map":{"a":3}}`},
			[]string{indexFile, `"a"`, "string"}},
		"tensor twice": {map[string]string{indexFile: `{"weight_map":{"a":"s","a":"s"}}`,
			"s": one}, []string{indexFile, `"a"`, "twice"}},
		"tensor not in shard": {map[string]string{indexFile: `{"weight_map":{"b":"s"}}`, "s": one},
			[]string{"/s", `"b"`, indexFile}},
		"deep nesting": {map[string]string{indexFile: `{"x":` + strings.Repeat("[", 1e6)},
			[]string{indexFile, "depth"}},
		"deep config": {map[string]string{configFile: strings.Repeat(`[`, 1e6),
			weightsFile: one}, []string{configFile, "depth"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Open(dir)
			wantError(t, err, append(test.want, dir)...)
		})
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("a missing path: %v", err)
	}
}

func TestOpen_NamesFoldersOfOtherProgramsAndWhatToDo(t *testing.T) {
	for files, want := range map[string]string{
		".metadata __0_0.distcp __1_0.distcp":                  "dcp_to_torch",
		"pytorch_model_fsdp_0/.metadata optimizer_0/.metadata": "merge-weights",
		"latest zero_to_fp32.py global_step10/mp_rank_00.pt":   "zero_to_fp32.py",
		"adapter_config.json adapter_model.safetensors":        "--adapter_path",
		"model_index.json unet/config.json":                    "diffusers",
		"config.json model.onnx":                               "ONNX",
		"config.json onnx/model.onnx":                          "ONNX",
		"config.json tf_model.h5":                              "from_tf",
		"config.json flax_model.msgpack":                       "from_flax",
		"params.json consolidated.safetensors":                 "Mistral's own layout",
		"openvino_model.xml":                                   "OpenVINO",
		"state.json data-00000-of-00001.arrow":                 "--data_path",
		"refs/main snapshots/abc/config.json":                  "in its snapshots",
		"checkpoint-500/model.safetensors":                     "checkpoint-500",
		"config.json tokenizer.json":                           "weights are missing",
		"config.json model-00001-of-00002.safetensors":         indexFile,
		"config.json pytorch_model-00001-of-00002.bin":         pickleIndex,
		"m-00001-of-00002.gguf m-00002-of-00002.gguf":          "m-00001-of-00002.gguf",
		"modules.json config_sentence_transformers.json":       "sentence-transformers",
	} {
		dir := t.TempDir()
		for _, file := range strings.Fields(files) {
			path := filepath.Join(dir, file)
			err := os.MkdirAll(filepath.Dir(path), 0o777)
			if err == nil {
				err = os.WriteFile(path, []byte(`{"dim":1,"n_layers":1,"n_heads":1}`), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err := Open(dir)
		wantError(t, err, dir, want)
	}
}

// Every reader names a file that is something else in the same words.
func TestOpen_NamesWhatLiesInTheFilesPlace(t *testing.T) {
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2336927\n"
	html := "<!DOCTYPE html><html><body>404</body></html>"
	one := safetensorsFile(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, "x")
	gzip := "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
	for _, test := range []struct{ file, text, want string }{
		{weightsFile, pointer, "git lfs pull"}, {weightsFile, html, "HTML page"},
		{weightsFile, "", "it is empty"}, {weightsFile, gzip, "gzip -d"},
		{weightsFile, "Entry not found", "Entry not found"},
		{weightsFile, `{"error":"Repository not found"}`, "Repository not found"},
		{weightsFile, "<Error><Code>AccessDenied</Code></Error>", "XML"},
		{weightsFile, strings.Repeat("\x00", 100), "zeros"},
		{weightsFile, one[:len(one)-1], "truncated"}, {weightsFile, one[:20], "truncated"},
		{pickleFile, pointer, "git lfs pull"}, {pickleFile, html, "HTML page"},
		{pickleFile, "", "it is empty"}, {pickleFile, gzip, "gzip -d"},
		{pickleFile, one, "it is a safetensors file"},
		{pickleFile, "PK\x03\x04 and no more", "truncated"},
		{"m.gguf", pointer, "git lfs pull"}, {"m.gguf", html, "HTML page"},
		{"m.gguf", "", "it is empty"}, {"m.gguf", gzip, "gzip -d"},
		{"m.gguf", one, "it is a safetensors file"},
		{"m.gguf", "GGUF\x03\x00\x00", "truncated"},
		{configFile, pointer, "git lfs pull"}, {configFile, html, "HTML page"},
		{configFile, "", "it is empty"}, {configFile, `{"model_type": "lla`, "truncated"},
		{configFile, `{"error":"Repository not found"}`, "Repository not found"},
		{configFile, gzip, "gzip -d"}, {generationFile, pointer, "git lfs pull"},
		{indexFile, pointer, "git lfs pull"}, {indexFile, html, "HTML page"},
		{NativeFile, pointer, "git lfs pull"}, {paramsFile, html, "HTML page"},
	} {
		path := writeFile(t, test.file, test.text)
		open := filepath.Dir(path)
		switch test.file {
		case "m.gguf":
			open = path
		case configFile, generationFile:
			err := os.WriteFile(filepath.Join(open, weightsFile), []byte(one), 0o644)
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err := Open(open)
		wantError(t, err, path, test.want)
	}
}

// wantError fails unless err contains every part, on one line.
func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, expected one with %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 {
		t.Errorf("error %q is not one short line", err)
	}
}

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Python's json module writes Infinity and NaN as bare words; transformers 5 writes an object.
func TestOpen_ConfigsOfPythonHaveInfinity(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		weightsFile: safetensorsFile(`{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, "x"),
		configFile: `{"time_step_limit": [0.0, Infinity], "low": -Infinity, "x": NaN,
			"new": {"__float__": "Infinity"}, "text": "NaN, Infinity"}`,
		generationFile: `{"temperature": Infinity}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	word := func(s string) any { return map[string]any{"__float__": s} }
	want := map[string]any{"time_step_limit": []any{0.0, word("Infinity")},
		"low": word("-Infinity"), "x": word("NaN"), "new": word("Infinity"),
		"text": "NaN, Infinity"}
	if got := c.Config(); !reflect.DeepEqual(got, want) {
		t.Errorf("config %v, expected %v", got, want)
	}
	if got := c.GenerationConfig()["temperature"]; !reflect.DeepEqual(got, word("Infinity")) {
		t.Errorf("temperature %v", got)
	}
}
