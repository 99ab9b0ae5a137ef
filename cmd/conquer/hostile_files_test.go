package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// hole replaces a file by one that begins with text and has size bytes, of which the others take no
// place on the disk.
func hole(t testing.TB, path, text string, size int64) {
	t.Helper()
	put(t, path, text)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// inFile makes the build function of a model with another text in a file.
func inFile(name string, text func() string) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		put(t, filepath.Join(dir, name), text())
		return dir
	}
}

// special makes the build function of a model with a pipe or a link in the place of a file.
func special(name, link string) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		path := filepath.Join(dir, name)
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		err := os.Symlink(link, path)
		if link == "" {
			err = syscall.Mkfifo(path, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
}

// numbered joins n texts, each made with its number.
func numbered(n int, format, separator string) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(separator)
		}
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// hostileJSON are JSON files that take more memory than bytes.
var hostileJSON = []hostileModel{
	{name: "config: 2 GB of zeros", build: func(t testing.TB, dir string) string {
		hole(t, filepath.Join(dir, "config.json"), "{", 2<<30)
		return dir
	}, want: "config.json has 2147483648 bytes, expected at most 4194304"},
	{name: "config: objects", build: inFile("config.json", func() string {
		return `{"a": [` + strings.Repeat(`{"":0},`, 500_000) + `0]}`
	}), want: "128 MB of memory"},
	{name: "config: nested lists", build: inFile("config.json", func() string {
		return `{"a": ` + strings.Repeat("[", 1_900_000) + strings.Repeat("]", 1_900_000) + "}"
	}), want: "config.json"},
	{name: "config: Python's words", build: inFile("config.json", func() string {
		return `{"a": [` + strings.Repeat("NaN,", 1_000_000) + `0]}`
	}), want: "128 MB of memory"},
	{name: "generation_config: 2 GB of zeros", build: func(t testing.TB, dir string) string {
		hole(t, filepath.Join(dir, "generation_config.json"), "{", 2<<30)
		return dir
	}, want: "generation_config.json has 2147483648 bytes"},
	{name: "generation_config: many end tokens", build: inFile("generation_config.json",
		func() string { return `{"eos_token_id": [` + numbered(500_000, "%d", ",") + "]}" }),
		want: "1024"},
	{name: "config: many end tokens", build: func(t testing.TB, dir string) string {
		changeJSON(t, filepath.Join(dir, "config.json"), map[string]any{
			"eos_token_id": json.RawMessage("[" + numbered(500_000, "%d", ",") + "]")})
		return dir
	}, want: "1024"},
	{name: "generation_config: negative end token", build: inFile("generation_config.json",
		func() string { return `{"eos_token_id": -7}` })}, // as transformers, which has -1 for none
	{name: "generation_config: end token 2^31", build: inFile("generation_config.json",
		func() string { return `{"eos_token_id": [2147483648]}` }), want: "eos_token_id"},
	{name: "index: millions of tensors", build: func(t testing.TB, dir string) string {
		os.Remove(filepath.Join(dir, "model.safetensors"))
		put(t, filepath.Join(dir, "model.safetensors.index.json"), `{"weight_map": {`+
			numbered(4_000_000, `"%x":"m"`, ",")+"}}")
		return dir
	}, want: "128 MB of memory"},
	{name: "index: a tensor twice", build: func(t testing.TB, dir string) string {
		os.Remove(filepath.Join(dir, "model.safetensors"))
		put(t, filepath.Join(dir, "model.safetensors.index.json"), `{"weight_map": {"a": "m", `+
			`"a": "n"}}`)
		return dir
	}, want: "twice"},
	{name: "index: 1 TB of zeros", build: func(t testing.TB, dir string) string {
		os.Remove(filepath.Join(dir, "model.safetensors"))
		hole(t, filepath.Join(dir, "model.safetensors.index.json"), "{", 1<<40)
		return dir
	}, want: "has 1099511627776 bytes"},
	{name: "native.json: millions of files", build: inFile("native.json", func() string {
		return `{"version": 1, "files": [` + strings.Repeat("{},", 20_000_000) + `{}]}`
	}), want: "128 MB of memory"},
}

// hostileKinds have something in the place of a file that is none.
var hostileKinds = []hostileModel{
	{name: "kind: config.json is a pipe", build: special("config.json", ""),
		want: "config.json: it is a pipe"},
	{name: "kind: config.json is endless", build: special("config.json", "/dev/zero"),
		want: "config.json: it is a device"},
	{name: "kind: generation_config.json is a pipe", build: special("generation_config.json", ""),
		want: "generation_config.json: it is a pipe"},
	{name: "kind: model.safetensors is a pipe", build: special("model.safetensors", ""),
		want: "model.safetensors: it is a pipe"},
	{name: "kind: model.safetensors is endless", build: special("model.safetensors", "/dev/zero"),
		want: "model.safetensors: it is a device"},
	{name: "kind: native.json is a pipe", build: special("native.json", ""),
		want: "native.json: it is a pipe"},
}

// safetensors is a file with this header, and holes to the given size.
func safetensors(header string, size int64) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		length := string(binary.LittleEndian.AppendUint64(nil, uint64(len(header))))
		hole(t, filepath.Join(dir, "model.safetensors"), length+header,
			max(size, int64(8+len(header))))
		return dir
	}
}

// addEmpty adds tensors without elements to the safetensors file of a model.
func addEmpty(t testing.TB, dir string, names ...string) {
	t.Helper()
	path := filepath.Join(dir, "model.safetensors")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := 8 + binary.LittleEndian.Uint64(data)
	header := map[string]any{}
	if err := json.Unmarshal(data[8:end], &header); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		size := len(data) - int(end)
		header[name] = map[string]any{"dtype": "F32", "shape": []int{0},
			"data_offsets": []int{size, size}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, bytes.Repeat([]byte(" "), (8-len(text)%8)%8)...)
	put(t, path, string(bytesOf(uint64(len(text)), text))+string(data[end:]))
}

func TestGenerate_NamesTensorsThatTheModelDoesNotUse(t *testing.T) {
	dir := writeModel(t, 704, true)
	addEmpty(t, dir, "v_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
	args := []string{"generate", "--model_path", dir, "--prompt", "hello", "--max_new_tokens", "1",
		"--device", "cpu"}
	_, stderr, code := invoke(t, "", args...)
	if want := `does not use 1 tensor of its files: "v_head.weight"`; code != 0 ||
		!strings.Contains(stderr, want) {
		t.Errorf("exit %d: %s", code, stderr)
	}
	info := succeed(t, "info", "--model_path", dir)
	if !strings.Contains(info, "1 tensor: v_head.weight") || strings.Contains(info, "PROBLEM") {
		t.Error(info)
	}
	addEmpty(t, dir, "model.layers.2.input_layernorm.weight")
	_, stderr, code = invoke(t, "", args...)
	if code != 1 || !strings.Contains(stderr, "no place for 1 of the tensors: "+
		"model.layers.2.input_layernorm.weight; it asks for 2 layers") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// hostileSafetensors are safetensors files with hostile headers.
var hostileSafetensors = []hostileModel{
	{name: "safetensors: a header of 1 TB", build: func(t testing.TB, dir string) string {
		hole(t, filepath.Join(dir, "model.safetensors"),
			string(binary.LittleEndian.AppendUint64(nil, 1<<40-8))+"{", 1<<40)
		return dir
	}, want: "the header claims 1099511627768 bytes"},
	{name: "safetensors: a name of 90 MB", build: safetensors(`{"`+strings.Repeat("a", 90<<20)+
		`":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 0), want: "128 MB of memory"},
	{name: "safetensors: spaces", build: safetensors("{"+strings.Repeat(" ", 99_000_000)+"}", 0),
		want: "no layer 1"},
	{name: "safetensors: a million empty tensors", build: func(t testing.TB, dir string) string {
		return safetensors("{"+numbered(1_000_000, `"%x":{"dtype":"U8","shape":[0],`+
			`"data_offsets":[0,0]}`, ",")+"}", 0)(t, dir)
	}, want: "128 MB of memory"},
	{name: "safetensors: metadata", build: func(t testing.TB, dir string) string {
		return safetensors(`{"__metadata__":{`+numbered(5_000_000, `"%x":""`, ",")+"}}", 0)(t, dir)
	}, want: "128 MB of memory"},
}

// archive lays out a zip archive of stored files, the first of which is data.pkl.
func archive(pickle string, names ...string) string {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i, name := range append([]string{"m/data.pkl"}, names...) {
		w, _ := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if i == 0 {
			io.WriteString(w, pickle)
		}
	}
	z.Close()
	return b.String()
}

// pickled makes the build function of a model whose weights are an archive.
func pickled(archive func() string) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		os.Remove(filepath.Join(dir, "model.safetensors"))
		put(t, filepath.Join(dir, "pytorch_model.bin"), archive())
		return dir
	}
}

// repeated is a pickle that repeats instructions.
func repeated(before, instructions string, n int, after string) func() string {
	return func() string {
		return archive("\x80\x02" + before + strings.Repeat(instructions, n) + after)
	}
}

// hostilePickles are PyTorch files that ask for more memory than they have bytes.
var hostilePickles = []hostileModel{
	{name: "pickle: 90 MB in 90 kB", build: pickled(func() string {
		text := []byte("\x80\x02" + strings.Repeat("]", 90_000_000) + ".")
		var packed, b bytes.Buffer
		w, _ := flate.NewWriter(&packed, flate.BestCompression)
		w.Write(text)
		w.Close()
		z := zip.NewWriter(&b)
		raw, _ := z.CreateRaw(&zip.FileHeader{Name: "m/data.pkl", Method: zip.Deflate,
			CRC32: crc32.ChecksumIEEE(text), CompressedSize64: uint64(packed.Len()),
			UncompressedSize64: uint64(len(text))})
		raw.Write(packed.Bytes())
		z.Close()
		return b.String()
	}), want: "data.pkl is compressed"},
	{name: "pickle: lists", build: pickled(repeated("", "]", 90_000_000, ".")),
		want: "128 MB of memory"},
	{name: "pickle: dictionaries", build: pickled(repeated("", "}", 20_000_000, ".")),
		want: "128 MB of memory"},
	{name: "pickle: marks", build: pickled(repeated("", "(", 20_000_000, ".")),
		want: "128 MB of memory"},
	{name: "pickle: memo", build: pickled(repeated("N", "\x94", 20_000_000, ".")),
		want: "128 MB of memory"},
	{name: "pickle: tuples that double", build: pickled(repeated("N\x94", "h\x00h\x00\x86q\x00",
		5_000_000, ".")), want: "128 MB of memory"},
	{name: "pickle: a list in itself", build: pickled(repeated("]q\x00", "h\x00a", 1_000_000, ".")),
		want: "no dictionary"},
	{name: "pickle: an integer of 2 GB", build: pickled(repeated("", "\x8b\xff\xff\xff\x7f", 1,
		".")),
		want: "0x8b"},
	{name: "pickle: a string of 2^62", build: pickled(repeated("",
		"\x8d\x00\x00\x00\x00\x00\x00\x00\x40", 1, ".")), want: "ends in the middle"},
	{name: "pickle: a shape of a million", build: pickled(func() string {
		return archive("\x80\x02(" + strings.Repeat("K\x01", 500_000) + "tq\x00" +
			"ctorch._utils\n_rebuild_tensor_v2\nq\x01" +
			"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\x00h\x00h\x00tq\x02" +
			strings.Repeat("h\x01h\x02R", 500_000) + ".")
	}), want: "not made of a storage"},
	{name: "pickle: storages that layers share", build: pickled(func() string {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		pickle := "\x80\x02}(U\x01actorch._utils\n_rebuild_tensor_v2\nq\x01" +
			"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\x00\x00\x10\x00tQK\x00" +
			"J\x00\x00\x10\x00\x85K\x01\x85tq\x02R"
		for i := range 9_999 {
			name := fmt.Sprintf("model.layers.%d.self_attn.q_proj.weight", i)
			pickle += "U" + string(rune(len(name))) + name + "h\x01h\x02R"
		}
		for _, file := range [][2]string{{"data.pkl", pickle + "u."},
			{"data/0", string(make([]byte, 4<<20))}} {
			w, _ := z.CreateHeader(&zip.FileHeader{Name: "m/" + file[0], Method: zip.Store})
			io.WriteString(w, file[1])
		}
		z.Close()
		return b.String()
	}), want: "twice"},
	{name: "zip: a million files", build: pickled(func() string {
		names := make([]string, 500_000)
		for i := range names {
			names[i] = fmt.Sprintf("%x", i)
		}
		return archive("}.", names...)
	}), want: "list of files"},
}

// metaModel makes the build function of a model in Meta's layout with these values in params.json.
func metaModel(values map[string]any) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		out := filepath.Join(t.TempDir(), "meta")
		succeed(t, "export", "--model_path", dir, "--format", "meta", "--output_path", out)
		os.Remove(filepath.Join(out, "config.json"))
		changeJSON(t, filepath.Join(out, "params.json"), values)
		return out
	}
}

// hostileMeta are folders in Meta's layout with hostile numbers.
var hostileMeta = []hostileModel{
	{name: "meta: small", build: metaModel(nil)},
	{name: "meta: a million layers", build: metaModel(map[string]any{"n_layers": 1_000_000}),
		want: "num_hidden_layers"},
	{name: "meta: one layer less", build: metaModel(map[string]any{"n_layers": 1}),
		want: "model.layers.1."},
	{name: "meta: width 2^40", build: metaModel(map[string]any{"dim": 1 << 40}), want: "dim is"},
	{name: "meta: no heads", build: metaModel(map[string]any{"n_heads": 0}), want: "n_heads is"},
	{name: "meta: negative key heads", build: metaModel(map[string]any{"n_kv_heads": -2}),
		want: "params.json"},
	{name: "meta: heads of 2^62", build: metaModel(map[string]any{"head_dim": 1 << 62}),
		want: "attention.wq"},
	{name: "meta: a frequency base below 0", build: metaModel(map[string]any{"rope_theta": -1.0}),
		want: "rope_theta"},
	{name: "meta: 1 GB of zeros", build: func(t testing.TB, dir string) string {
		out := metaModel(nil)(t, dir)
		hole(t, filepath.Join(out, "params.json"), "{", 1<<30)
		return out
	}, want: "params.json has 1073741824 bytes"},
}
