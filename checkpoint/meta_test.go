package checkpoint

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/torch"
)

// llamaKinds are the ways in which models of the family differ, by what their config says beyond the sizes.
var llamaKinds = map[string]map[string]any{
	"llama":    {"rms_norm_eps": 1e-5},
	"llama2":   {"num_key_value_heads": 4, "rope_theta": 10000.0},
	"tied":     {"tie_word_embeddings": true, "rope_theta": 100000.0},
	"llama3":   {"rope_theta": 500000.0, "rope_scaling": map[string]any{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
	"short3":   {"rope_scaling": map[string]any{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 96}},
	"linear":   {"rope_parameters": map[string]any{"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
	"head_dim": {"head_dim": 12, "num_key_value_heads": 4},
	"bias":     {"attention_bias": true, "mlp_bias": true},
	"mistral":  {"model_type": "mistral", "sliding_window": 7},
	"qwen2":    {"model_type": "qwen2", "use_sliding_window": false},
}

// randomLlama draws a model of a kind: its config.json and its weights.
func randomLlama(t testing.TB, kind string, dtype torch.DType, seed uint64) (*memory, []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	headDim, heads, kv, vocabulary, inner, layers := 8, 4, 2, 8*(2+r.IntN(20)), 8*(1+r.IntN(9)), 1+r.IntN(3)
	config := map[string]any{"architectures": []any{"X"}, "model_type": "llama", "hidden_act": "silu", "hidden_size": heads * headDim,
		"intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
		"vocab_size": vocabulary, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": false}
	maps.Copy(config, llamaKinds[kind])
	width := heads * headDim
	kv = config["num_key_value_heads"].(int)
	if d, ok := config["head_dim"]; ok {
		headDim = d.(int)
	}
	m := newMemory()
	add := func(name string, shape ...int) {
		count := 1
		for _, n := range shape {
			count *= n
		}
		values := make([]float32, count)
		for i := range values {
			values[i] = float32(r.NormFloat64())
		}
		var data []byte
		inTorch(t, func() { data = bytes.Clone(torch.From(values, shape...).To(dtype).Data()) })
		m.names = append(m.names, name)
		m.tensors[name], m.infos[name] = data, Info{DType: dtype, Shape: shape, Bytes: len(data)}
	}
	biased := func(yes bool, name string, rows, columns int) {
		add(name+".weight", rows, columns)
		if yes {
			add(name+".bias", rows)
		}
	}
	attention, mlp := config["attention_bias"] == true, config["mlp_bias"] == true
	qkv := attention || kind == "qwen2"
	add("model.embed_tokens.weight", vocabulary, width)
	for l := range layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		add(p+"input_layernorm.weight", width)
		biased(qkv, p+"self_attn.q_proj", heads*headDim, width)
		biased(qkv, p+"self_attn.k_proj", kv*headDim, width)
		biased(qkv, p+"self_attn.v_proj", kv*headDim, width)
		biased(attention, p+"self_attn.o_proj", width, heads*headDim)
		add(p+"post_attention_layernorm.weight", width)
		biased(mlp, p+"mlp.gate_proj", inner, width)
		biased(mlp, p+"mlp.up_proj", inner, width)
		biased(mlp, p+"mlp.down_proj", width, inner)
	}
	add("model.norm.weight", width)
	if config["tie_word_embeddings"] != true {
		add("lm_head.weight", vocabulary, width)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return m, text
}

func TestMetasLayoutBringsBackTheSameBits(t *testing.T) {
	for kind := range llamaKinds {
		for _, parts := range []int{1, 2} {
			dtype := []torch.DType{torch.Float32, torch.BFloat16, torch.Float16}[rand.IntN(3)]
			seed := rand.Uint64()
			source, config := randomLlama(t, kind, dtype, seed)
			dir := filepath.Join(t.TempDir(), "m")
			live := torch.LiveTensors()
			if err := SaveMeta(dir, source, Options{Config: config, GenerationConfig: []byte(`{"eos_token_id":2}`), Parts: parts}); err != nil {
				t.Fatalf("%s in %d, seed %d: %v", kind, parts, seed, err)
			}
			if torch.LiveTensors() != live {
				t.Errorf("%d tensors are left over", torch.LiveTensors()-live)
			}
			c := mustOpen(t, dir)
			wantSame(t, c, source)
			if c.Format != Meta || len(c.Files()) != parts || c.GenerationConfig()["eos_token_id"] != 2. {
				t.Errorf("%s: format %s, files %v", kind, c.Format, c.Files())
			}
			wantSame(t, mustOpen(t, filepath.Join(dir, "consolidated.00.pth")), source)
			// params.json alone describes what Meta's code can run.
			os.Remove(filepath.Join(dir, configFile))
			alone, err := Open(dir)
			switch kind {
			case "linear", "head_dim", "bias", "qwen2", "short3":
				wantError(t, err, paramsFile, "config.json")
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(alone.Close)
			var want map[string]any
			json.Unmarshal(config, &want)
			got := alone.Config()
			for key, value := range want {
				switch {
				case key == "architectures" || key == "max_position_embeddings":
				case key == "tie_word_embeddings" && parts > 1: // two slices, no longer one storage
				case fmt.Sprint(got[key]) != fmt.Sprint(value):
					t.Errorf("%s in %d: config %s is %v, expected %v", kind, parts, key, got[key], value)
				}
			}
		}
	}
}

func TestAWayThroughEveryFormatChangesNoBit(t *testing.T) {
	for kind := range llamaKinds {
		seed := rand.Uint64()
		source, config := randomLlama(t, kind, torch.Float32, seed)
		dir := t.TempDir()
		meta, gguf, hf := filepath.Join(dir, "meta"), filepath.Join(dir, "m.gguf"), filepath.Join(dir, "hf")
		if err := SaveMeta(meta, source, Options{Config: config, Parts: 2}); err != nil {
			t.Fatalf("%s, seed %d: %v", kind, seed, err)
		}
		c := mustOpen(t, meta)
		live := torch.LiveTensors()
		metadata := map[string]any{"tokenizer.ggml.tokens": []string{"a", ""}, "tokenizer.ggml.scores": []float32{1, 2}, "x": true}
		if err := SaveGGUF(gguf, c, Options{Config: c.ConfigJSON(), Metadata: metadata}); err != nil {
			t.Fatalf("%s, seed %d: %v", kind, seed, err)
		}
		if torch.LiveTensors() != live {
			t.Errorf("%d tensors are left over", torch.LiveTensors()-live)
		}
		c = mustOpen(t, gguf)
		if got := c.GGUFMetadata(); !slices.Equal(got["tokenizer.ggml.tokens"].([]string), []string{"a", ""}) || got["x"] != true {
			t.Errorf("metadata %v", got)
		}
		if err := Save(hf, c, Options{Config: c.ConfigJSON()}); err != nil {
			t.Fatal(err)
		}
		last := mustOpen(t, hf)
		wantSame(t, last, source)
		first, err := parseLlamaConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseLlamaConfig(last.ConfigJSON())
		if err != nil {
			t.Fatal(err)
		}
		// The same said in another way.
		first.Scaling.Theta, first.Parameters, first.UseWindow = 0, ropeScaling{}, nil
		back.Parameters, back.UseWindow = ropeScaling{}, nil
		if kind == "qwen2" {
			first.Bias, back.Bias = false, false
		}
		if *first != *back {
			t.Errorf("%s: config %+v, expected %+v", kind, *back, *first)
		}
	}
}

func TestQuantizedTypesHaveTheBitsOfGGML(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "quantized.safetensors"))
	inTorch(t, func() {
		input, err := c.Tensor("input")
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range GGUFTypes {
			got, err := quantize(kind, torch.Values[float32](input))
			want, err2 := c.Tensor(kind)
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			if !bytes.Equal(got, want.Data()) {
				t.Errorf("%s differs", kind)
			}
		}
	})
}

func TestAGGUFFileHasTheTypesAskedFor(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.BFloat16, rand.Uint64())
	f16 := torch.Float16
	for _, test := range []struct {
		options     Options
		matrix, emb string
	}{
		{Options{}, "BF16", "BF16"}, {Options{DType: &f16}, "F16", "F16"}, {Options{Encoding: "Q8_0"}, "Q8_0", "Q8_0"}, {Options{Encoding: "Q4_0"}, "Q4_0", "Q8_0"},
	} {
		test.options.Config = config
		path := filepath.Join(t.TempDir(), "m.gguf")
		if err := SaveGGUF(path, source, test.options); err != nil {
			t.Fatal(err)
		}
		c := mustOpen(t, path)
		for name, want := range map[string]string{"model.embed_tokens.weight": test.emb, "model.layers.0.self_attn.q_proj.weight": test.matrix, "model.norm.weight": "F32"} {
			if info, _ := c.Info(name); info.Stored != want {
				t.Errorf("%s is %s, expected %s", name, info.Stored, want)
			}
		}
		inTorch(t, func() { // the rows came back in order: a quantized number is near the number
			got, err := c.TensorAs("model.layers.0.self_attn.k_proj.weight", torch.Float32)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := source.Tensor("model.layers.0.self_attn.k_proj.weight")
			if worst := torch.Item[float64](got.Sub(want.To(torch.Float32)).Abs().Max()); worst > 0.3 {
				t.Errorf("%s: off by %g", test.matrix, worst)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	wantError(t, SaveGGUF(path, source, Options{Config: []byte(`{"model_type":"bamba"}`)}), path, "bamba", "--format hf")
	source.fail = fmt.Errorf("the source broke")
	wantError(t, SaveGGUF(path, source, Options{Config: config}), path, "the source broke")
	if left := entries(t, filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestTheFeedForwardSizeIsWhatMetasCodeComputes(t *testing.T) {
	for range 2000 {
		width, inner := 1+rand.IntN(9000), 1+rand.IntN(40000)
		multiple, multiplier := ffnSize(width, inner)
		hidden := 2 * 4 * width / 3
		if multiplier != nil {
			text, _ := json.Marshal(multiplier)
			var m float64
			json.Unmarshal(text, &m)
			hidden = int(m * float64(hidden))
		}
		if got := multiple * ((hidden + multiple - 1) / multiple); got != inner {
			t.Errorf("width %d: %d by %d and %v, expected %d", width, got, multiple, multiplier, inner)
		}
	}
	if multiple, multiplier := ffnSize(8192, 28672); multiple != 4096 || *multiplier != 1.3 { // Llama 2 70B's own
		t.Errorf("%d, %v", multiple, *multiplier)
	}
}

func TestBadMetaFoldersAreNamed(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.Float32, 3)
	other, otherConfig := randomLlama(t, "llama", torch.Float32, 3)
	clear(other.tensors["model.norm.weight"])
	larger, largerConfig := randomLlama(t, "bias", torch.Float32, 3)
	good, second, third := t.TempDir(), t.TempDir(), t.TempDir()
	for dir, m := range map[string]*memory{good: source, second: other, third: larger} {
		text := map[string][]byte{good: config, second: otherConfig, third: largerConfig}[dir]
		if err := SaveMeta(dir, m, Options{Config: text, Parts: 2}); err != nil {
			t.Fatal(err)
		}
	}
	part := func(dir string, n int) string {
		data, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("consolidated.%02d.pth", n)))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	params, _ := os.ReadFile(filepath.Join(good, paramsFile))
	p, a, b := string(params), part(good, 0), part(good, 1)
	for name, test := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"no parts":           {map[string]string{paramsFile: p}, []string{"no consolidated.00.pth"}},
		"the last missing":   {map[string]string{paramsFile: p, "consolidated.00.pth": a}, []string{"consolidated.00.pth", "wq", "missing"}},
		"the first missing":  {map[string]string{paramsFile: p, "consolidated.01.pth": b}, []string{"consolidated.00.pth", "missing"}},
		"another model's":    {map[string]string{paramsFile: p, "consolidated.00.pth": a, "consolidated.01.pth": part(second, 1)}, []string{"consolidated.01.pth", `"norm.weight"`, "another model"}},
		"another kind's":     {map[string]string{paramsFile: p, "consolidated.00.pth": a, "consolidated.01.pth": part(third, 1)}, []string{"consolidated.01.pth", "another model"}},
		"truncated":          {map[string]string{paramsFile: p, "consolidated.00.pth": a, "consolidated.01.pth": b[:len(b)/2]}, []string{"consolidated.01.pth", "truncated"}},
		"params are no JSON": {map[string]string{paramsFile: "{", "consolidated.00.pth": a}, []string{paramsFile}},
		"params are short":   {map[string]string{paramsFile: "{}", "consolidated.00.pth": a}, []string{paramsFile, "expected a positive integer"}},
		"params of another":  {map[string]string{paramsFile: strings.Replace(p, `"n_heads": 4`, `"n_heads": 8`, 1), "consolidated.00.pth": a, "consolidated.01.pth": b}, []string{"wk", "2 heads"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range test.files {
				os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644)
			}
			_, err := Open(dir)
			wantError(t, err, append(test.want, dir)...)
		})
	}
}

func TestWhatMetasLayoutCannotHoldIsNamed(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.Float32, 1)
	for _, test := range []struct {
		config string
		parts  int
		want   string
	}{
		{`{"model_type":"bamba"}`, 1, "bamba"},
		{string(config), 3, "divisor"},
		{strings.Replace(string(config), `"num_hidden_layers"`, `"x"`, 1), 1, "num_hidden_layers"},
	} {
		dir := filepath.Join(t.TempDir(), "m")
		wantError(t, SaveMeta(dir, source, Options{Config: []byte(test.config), Parts: test.parts}), dir, test.want)
		if left := entries(t, filepath.Dir(dir)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	wantError(t, SaveMeta(filepath.Join(t.TempDir(), "m"), source.add("model.layers.0.odd.weight", torch.Float32, 1), Options{Config: config}), "odd")
}

// torchArchive lays out what torch.save writes: a pickle and storages by key.
func torchArchive(pickle string, storages map[string]string) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range append([]string{"data.pkl"}, slices.Sorted(maps.Keys(storages))...) {
		text := pickle
		if name != "data.pkl" {
			text, name = storages[name], "data/"+name
		}
		w, _ := z.CreateHeader(&zip.FileHeader{Name: "m/" + name, Method: zip.Store})
		io.WriteString(w, text)
	}
	z.Close()
	return b.Bytes()
}

// pickled is the pickle of {"w": tensor} with a storage of count float32 under the key 0.
func pickled(count, offset int, shape, strides []int) string {
	p := &pickleWriter{}
	p.WriteString("\x80\x02}")
	p.text("w")
	p.WriteString("ctorch._utils\n_rebuild_tensor_v2\n((")
	p.text("storage")
	p.WriteString("ctorch\nFloatStorage\n")
	p.text("0")
	p.text("cuda:0")
	p.integer(count)
	p.WriteString("tQ")
	p.integer(offset)
	for _, list := range [][]int{shape, strides} {
		p.WriteByte('(')
		for _, n := range list {
			p.integer(n)
		}
		p.WriteByte('t')
	}
	p.WriteString("\x89ccollections\nOrderedDict\n)RtRs.")
	return p.String()
}

func floats(n int) string {
	var b bytes.Buffer
	for i := range n {
		g := new(ggufBuilder).put(float32(i))
		b.Write(g.Bytes())
	}
	return b.String()
}

func TestATransposedSliceOfAStorageIsReadInOrder(t *testing.T) {
	path := writeFile(t, "m.bin", string(torchArchive(pickled(24, 3, []int{4, 5}, []int{1, 4}), map[string]string{"0": floats(24)})))
	c := mustOpen(t, path)
	inTorch(t, func() {
		w, err := c.Tensor("w")
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range torch.Values[float32](w) {
			if want := float32(3 + i/5 + i%5*4); v != want {
				t.Errorf("number %d is %v, expected %v", i, v, want)
			}
		}
	})
}

func TestWhatPyTorchSavedIsReadAsItWas(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "pickles"))
	expected := readFacts(t, "pickles.json")
	if c.Format != PyTorch || len(c.Names()) != len(expected) {
		t.Errorf("format %s, %d tensors, expected %d", c.Format, len(c.Names()), len(expected))
	}
	inTorch(t, func() {
		for name, want := range expected {
			got, err := c.Tensor(name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if !slices.Equal(got.Shape(), want.Shape) || digest(got.Data()) != want.SHA256["own"] {
				t.Errorf("%s: %v differs, expected %v", name, got, want.First)
			}
		}
	})
}

func TestHostilePicklesAreNamed(t *testing.T) {
	good := pickled(6, 0, []int{2, 3}, []int{3, 1})
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"runs a program":   {torchArchive("cos\nsystem\n(S'ls'\ntR.", nil), `"os.system"`},
		"by stack":         {torchArchive("\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.", nil), `"posix.system"`},
		"builtins":         {torchArchive("cbuiltins\neval\n.", nil), `"builtins.eval"`},
		"makes an object":  {torchArchive("ctorch\nFloatStorage\n)\x81.", nil), "instruction"},
		"calls a class":    {torchArchive("ctorch\nFloatStorage\n)R.", nil), "torch.FloatStorage"},
		"ends early":       {torchArchive(good[:40], map[string]string{"0": floats(6)}), "ends in the middle"},
		"empty":            {torchArchive("", nil), "ends in the middle"},
		"no dictionary":    {torchArchive("K\x01.", nil), "no dictionary"},
		"no tensors":       {torchArchive("}.", nil), "no tensors"},
		"pops nothing":     {torchArchive("0.", nil), "instruction"},
		"no memory":        {torchArchive("h\x07.", nil), "used before"},
		"no storage":       {torchArchive(good, nil), "data/0"},
		"short storage":    {torchArchive(good, map[string]string{"0": floats(5)}), "20 bytes, expected 6 numbers of F32"},
		"offset":           {torchArchive(pickled(6, 1, []int{2, 3}, []int{3, 1}), map[string]string{"0": floats(6)}), "leaves its storage"},
		"offset of 2^62":   {torchArchive(pickled(6, 1<<62, []int{2, 3}, []int{3, 1}), map[string]string{"0": floats(6)}), "leaves its storage"},
		"stride":           {torchArchive(pickled(6, 0, []int{2, 3}, []int{4, 1}), map[string]string{"0": floats(6)}), "leaves its storage"},
		"stride of 2^62":   {torchArchive(pickled(6, 0, []int{2, 3}, []int{1 << 62, 1 << 62}), map[string]string{"0": floats(6)}), "leaves its storage"},
		"expanded":         {torchArchive(pickled(6, 0, []int{1 << 40, 3}, []int{0, 1}), map[string]string{"0": floats(6)}), "does not fit"},
		"expanded a bit":   {torchArchive(pickled(6, 0, []int{3}, []int{0}), map[string]string{"0": floats(6)}), "leaves its storage"},
		"shape overflows":  {torchArchive(pickled(6, 0, []int{1 << 62, 1 << 62}, []int{1, 1}), map[string]string{"0": floats(6)}), "does not fit"},
		"storage overflow": {torchArchive(pickled(1<<62, 0, []int{2, 3}, []int{3, 1}), map[string]string{"0": floats(6)}), "expected"},
		"rank and strides": {torchArchive(pickled(6, 0, []int{2, 3}, []int{3}), map[string]string{"0": floats(6)}), "not made of"},
		"not a zip":        {[]byte("\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), "not a zip archive"},
		"truncated":        {torchArchive(good, map[string]string{"0": floats(6)})[:300], "truncated"},
		"TorchScript":      {bytes.ReplaceAll(torchArchive(good, map[string]string{"constants.pkl": ""}), []byte("data/constants"), []byte("code/constants")), "TorchScript"},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, "pytorch_model.bin", string(test.data))
			_, err := Open(path)
			wantError(t, err, path, test.want)
		})
	}
}

// Files of an archive that share bytes could show one tensor as another.
func TestOverlappingFilesOfAnArchiveAreRefused(t *testing.T) {
	data := torchArchive(pickled(6, 0, []int{2, 3}, []int{3, 1}), map[string]string{"0": floats(6), "1": floats(6)})
	directory := bytes.LastIndex(data, []byte("PK\x01\x02"))
	first := bytes.Index(data, []byte("PK\x01\x02"))
	for at := first; at <= directory; at++ { // all entries point to the first local header
		if bytes.HasPrefix(data[at:], []byte("PK\x01\x02")) {
			copy(data[at+42:], []byte{0, 0, 0, 0})
		}
	}
	_, err := Open(writeFile(t, "m.pth", string(data)))
	wantError(t, err, "overlap")
}

// Whatever a pickle holds, reading it must end, and tensors that come out must lie inside the file.
func FuzzTorchFile(f *testing.F) {
	good := pickled(24, 3, []int{4, 5}, []int{1, 4})
	f.Add([]byte(good), []byte(floats(24)))
	f.Add([]byte("\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94K\x01\x8c\x01b]\x94(K\x01K\x02eub."), []byte{})
	f.Add([]byte("\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01}X\x09\x00\x00\x00_metadatah\x01sb."), []byte{})
	f.Fuzz(func(t *testing.T, pickle, storage []byte) {
		data := torchArchive(string(pickle), map[string]string{"0": string(storage)})
		records, err := parseTorch(data)
		if err != nil {
			return
		}
		for _, r := range records {
			all := make([]byte, r.bytes)
			if r.strides != nil {
				copyStrided(all, data[r.offset:], safetensorsBits[r.dtype]/8, r.shape, r.strides)
			} else {
				copy(all, data[r.offset:r.offset+r.bytes])
			}
		}
	})
}

// The zip archive around it is foreign too.
func FuzzTorchArchive(f *testing.F) {
	f.Add(torchArchive(pickled(24, 3, []int{4, 5}, []int{1, 4}), map[string]string{"0": floats(24)}))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := parseTorch(data)
		if err != nil {
			return
		}
		for _, r := range records {
			if r.strides == nil {
				_ = data[r.offset : r.offset+r.bytes]
			}
		}
	})
}

// Whatever is written to a GGUF file must be read back as it was: metadata of every type and tensors of every shape.
func FuzzGGUFRoundTrip(f *testing.F) {
	f.Add("general.name", "text", uint32(7), float32(0.5), true, []byte{1, 2, 3}, 3, 32)
	f.Add("", "", uint32(0), float32(0), false, []byte{}, 1, 1)
	f.Fuzz(func(t *testing.T, key, text string, n uint32, x float32, yes bool, list []byte, rows, columns int) {
		if rows < 1 || columns < 1 || rows > 64 || columns > 512 || x != x || key == "general.alignment" {
			return
		}
		w := &ggufWriter{metadata: map[string]any{}}
		var strings []string
		var ints []int32
		var numbers []float32
		for _, b := range list {
			strings, ints, numbers = append(strings, text[:min(int(b), len(text))]), append(ints, int32(b)-128), append(numbers, float32(b)*x)
		}
		for i, value := range []any{text, n, x, yes, strings, ints, numbers} {
			w.set(fmt.Sprint(key, i), value)
		}
		values := make([]float32, rows*columns)
		for i := range values {
			values[i] = float32(i) * x
		}
		for i := range 2 {
			w.tensors = append(w.tensors, ggufEntry{name: fmt.Sprint(key, i), kind: "F32", record: record{shape: []int{rows, columns}}, values: values, size: 4 * len(values)})
		}
		var b bytes.Buffer
		if err := w.write(&b, nil); err != nil {
			t.Fatal(err)
		}
		file, err := parseGGUF(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range w.keys {
			if fmt.Sprint(file.metadata[k]) != fmt.Sprint(w.metadata[k]) {
				t.Errorf("%q is %v, expected %v", k, file.metadata[k], w.metadata[k])
			}
		}
		for i, r := range file.records {
			got := make([]float32, len(values))
			decodeF32(got, b.Bytes()[r.offset:])
			if r.name != w.tensors[i].name || !slices.Equal(r.shape, []int{rows, columns}) || fmt.Sprint(got) != fmt.Sprint(values) {
				t.Errorf("%+v differs", r)
			}
		}
	})
}
