package checkpoint

import (
	"archive/zip"
	"bytes"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"conquer/internal/budget"
	"conquer/torch"
)

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

func TestTorchFile_TransposedSliceIsReadInOrder(t *testing.T) {
	path := writeFile(t, "m.bin", string(torchArchive(pickled(24, 3, []int{4, 5}, []int{1, 4}),
		map[string]string{"0": floats(24)})))
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

func TestTorchFile_ReadsWhatPyTorchSaved(t *testing.T) {
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

func TestTorchFile_HostilePicklesAreRefused(t *testing.T) {
	good := pickled(6, 0, []int{2, 3}, []int{3, 1})
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"runs a program": {torchArchive("cos\nsystem\n(S'ls'\ntR.", nil), `"os.system"`},
		"by stack": {torchArchive("\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
			nil), `"posix.system"`},
		"builtins":        {torchArchive("cbuiltins\neval\n.", nil), `"builtins.eval"`},
		"makes an object": {torchArchive("ctorch\nFloatStorage\n)\x81.", nil), "instruction"},
		"calls a class":   {torchArchive("ctorch\nFloatStorage\n)R.", nil), "torch.FloatStorage"},
		"ends early": {torchArchive(good[:40], map[string]string{"0": floats(6)}),
			"ends in the middle"},
		"empty":         {torchArchive("", nil), "ends in the middle"},
		"no dictionary": {torchArchive("K\x01.", nil), "no dictionary"},
		"no tensors":    {torchArchive("}.", nil), "no tensors"},
		"pops nothing":  {torchArchive("0.", nil), "instruction"},
		"no memory":     {torchArchive("h\x07.", nil), "used before"},
		"no storage":    {torchArchive(good, nil), "data/0"},
		"short storage": {torchArchive(good, map[string]string{"0": floats(5)}),
			"20 bytes, expected 6 numbers of F32"},
		"offset": {torchArchive(pickled(6, 1, []int{2, 3}, []int{3, 1}),
			map[string]string{"0": floats(6)}), "leaves its storage"},
		"offset of 2^62": {torchArchive(pickled(6, 1<<62, []int{2, 3}, []int{3, 1}),
			map[string]string{"0": floats(6)}), "leaves its storage"},
		"stride": {torchArchive(pickled(6, 0, []int{2, 3}, []int{4, 1}),
			map[string]string{"0": floats(6)}), "leaves its storage"},
		"stride of 2^62": {torchArchive(pickled(6, 0, []int{2, 3}, []int{1 << 62, 1 << 62}),
			map[string]string{"0": floats(6)}), "leaves its storage"},
		"expanded": {torchArchive(pickled(6, 0, []int{1 << 40, 3}, []int{0, 1}),
			map[string]string{"0": floats(6)}), "does not fit"},
		"expanded a bit": {torchArchive(pickled(6, 0, []int{3}, []int{0}),
			map[string]string{"0": floats(6)}), "leaves its storage"},
		"shape overflows": {torchArchive(pickled(6, 0, []int{1 << 62, 1 << 62}, []int{1, 1}),
			map[string]string{"0": floats(6)}), "does not fit"},
		"storage overflow": {torchArchive(pickled(1<<62, 0, []int{2, 3}, []int{3, 1}),
			map[string]string{"0": floats(6)}), "expected"},
		"rank and strides": {torchArchive(pickled(6, 0, []int{2, 3}, []int{3}),
			map[string]string{"0": floats(6)}), "not made of"},
		"not a zip": {[]byte("\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
			"not a zip archive"},
		"truncated": {torchArchive(good, map[string]string{"0": floats(6)})[:300],
			"truncated"},
		"TorchScript": {bytes.ReplaceAll(torchArchive(good,
			map[string]string{"constants.pkl": ""}), []byte("data/constants"),
			[]byte("code/constants")), "TorchScript"},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, "pytorch_model.bin", string(test.data))
			_, err := Open(path)
			wantError(t, err, path, test.want)
		})
	}
}

// Files of an archive that share bytes could show one tensor as another.
func TestTorchFile_OverlappingFilesAreRefused(t *testing.T) {
	data := torchArchive(pickled(6, 0, []int{2, 3}, []int{3, 1}),
		map[string]string{"0": floats(6), "1": floats(6)})
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

// Reading any pickle must end, and its tensors must lie inside the file.
func FuzzTorchFile(f *testing.F) {
	good := pickled(24, 3, []int{4, 5}, []int{1, 4})
	f.Add([]byte(good), []byte(floats(24)))
	f.Add([]byte("\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94K\x01"+
		"\x8c\x01b]\x94(K\x01K\x02eub."), []byte{})
	f.Add([]byte("\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01}"+
		"X\x09\x00\x00\x00_metadatah\x01sb."), []byte{})
	f.Fuzz(func(t *testing.T, pickle, storage []byte) {
		data := torchArchive(string(pickle), map[string]string{"0": string(storage)})
		records, err := parseTorch(data, budget.New(budget.Model))
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

// The zip archive is not trusted either.
func FuzzTorchArchive(f *testing.F) {
	f.Add(torchArchive(pickled(24, 3, []int{4, 5}, []int{1, 4}),
		map[string]string{"0": floats(24)}))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := parseTorch(data, budget.New(budget.Model))
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
