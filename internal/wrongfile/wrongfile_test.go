package wrongfile_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"conquer/internal/wrongfile"
)

const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2336\n"

func TestDescribe_NamesWhatLiesInTheFilesPlace(t *testing.T) {
	for data, want := range map[string]string{
		"": "empty",
		pointer: "it is a Git LFS pointer, which stands for the file of 2336 bytes: fetch the " +
			"file with git lfs pull",
		"\n <!DOCTYPE html>\n<html>":                   "HTML page",
		"<HTML lang=en>":                               "HTML page",
		"<?xml version=\"1.0\"?><Error>":               "XML document",
		"<Error><Code>AccessDenied</Code></Error>":     "AccessDenied",
		"Entry not found":                              `"Entry not found"`,
		`{"error":"Repository not found"}`:             "Repository not found",
		"\x1f\x8b\x08\x00\x00":                         "gzip -d",
		"PK\x03\x04....":                               "zip archive",
		"\x28\xb5\x2f\xfd....":                         "zstd",
		"\x89HDF\r\n\x1a\n":                            "HDF5",
		strings.Repeat("\x00", 64):                     "zeros",
		strings.Repeat("x\x00", 128) + "\x00ustar\x00": "tar archive",
		"\x80\x02\x8a\x0a":                             "pickle",
	} {
		if got := wrongfile.Describe([]byte(data), wrongfile.Other); !strings.Contains(got, want) {
			t.Errorf("%.40q: %q, expected %q", data, got, want)
		}
	}
	safetensors := "\x20\x00\x00\x00\x00\x00\x00\x00{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}"
	for _, c := range []struct {
		data     string
		expected wrongfile.Kind
		want     string
	}{
		{safetensors, wrongfile.SafeTensors, ""},
		{safetensors, wrongfile.GGUF, "a safetensors file"},
		{"GGUF\x03\x00\x00\x00", wrongfile.GGUF, ""},
		{"GGUF\x03\x00\x00\x00", wrongfile.SafeTensors, "a GGUF file"},
		{"PK\x03\x04\x00", wrongfile.PyTorch, ""},
		{`{"model_type": "llama"}`, wrongfile.JSON, ""},
		{`{"error": "x", "hidden_size": 1, "a": 1, "b": 2, "c": 3}`, wrongfile.JSON, ""},
		{`{"error":"Invalid credentials"}`, wrongfile.JSON, "server's error message"},
		{"Access to model x is restricted", wrongfile.JSON, "restricted"},
		{"[1, 2", wrongfile.JSON, ""},
		{"\xef\xbb\xbf{}", wrongfile.JSON, "byte order mark"},
		{"\xff\xfe{\x00", wrongfile.JSON, "UTF-16"},
		{"version https://git-lfs.github.com/spec/v1\n", wrongfile.Text, "git lfs pull"},
		{"<html>", wrongfile.Text, ""},
		{"PAR1", wrongfile.Parquet, ""},
	} {
		got := wrongfile.Describe([]byte(c.data), c.expected)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%.40q as %s: %q, expected %q", c.data, c.expected, got, c.want)
		}
	}
}

func TestExplain_KeepsTheReadersErrorUnlessItKnowsBetter(t *testing.T) {
	own := errors.New("own")
	if err := wrongfile.Explain([]byte(pointer), wrongfile.GGUF, nil); err != nil {
		t.Error(err)
	}
	if err := wrongfile.Explain([]byte("GGUF\x00"), wrongfile.GGUF, own); err != own {
		t.Error(err)
	}
	err := wrongfile.Explain([]byte(pointer), wrongfile.GGUF, own)
	if err == nil || !strings.Contains(err.Error(), "git lfs pull") {
		t.Error(err)
	}
	cut := []byte(`{"a": [1, 2`)
	var v any
	err = wrongfile.Explain(cut, wrongfile.JSON, json.Unmarshal(cut, &v))
	if err == nil || !strings.Contains(err.Error(), "truncated") {
		t.Error(err)
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add([]byte(pointer), "JSON")
	f.Add([]byte("\xef\xbb\xbf<html>"), "")
	f.Fuzz(func(t *testing.T, data []byte, kind string) {
		got := wrongfile.Describe(data, wrongfile.Kind(kind))
		if strings.ContainsAny(got, "\n\x00") || len(got) > 500 {
			t.Errorf("%q is not one short line", got)
		}
	})
}
