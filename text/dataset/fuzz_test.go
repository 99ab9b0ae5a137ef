package dataset

import (
	"archive/tar"
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"conquer/text/tokenizer"
)

// fuzzFile reads everything in a file of the given name and content. It writes no file, which would
// take longer than everything else.
func fuzzFile(t *testing.T, tok *tokenizer.Tokenizer, name string, data []byte) {
	maps := new(mappings)
	f, err := openFile(name, data, Options{}, maps)
	fuzzSamples(t, tok, name, []file{f}, Chosen{}, maps, err)
}

// fuzzSamples reads all samples of files whose opening ended with err.
func fuzzSamples(t *testing.T, tok *tokenizer.Tokenizer, name string, files []file, chosen Chosen,
	maps *mappings, err error) {
	defer maps.close()
	var d *Dataset
	var kept bytes.Buffer
	if err == nil {
		keep := newStoredWriter(&kept, [32]byte{}, tok.VocabSize(), 1<<30)
		d, err = encodeFiles(name, files, chosen, tok, Options{MaxLength: 16}, maps, keep)
		if err == nil && keep.finish(d.describe(nil)) != nil {
			t.Errorf("the samples cannot be kept: %v", keep.err)
		}
	}
	if err != nil {
		if !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error does not name the file in one line: %v", err)
		}
		return
	}
	again, refs, err := openStored(name, kept.Bytes(), [32]byte{})
	if err != nil || len(refs) != d.Len() {
		t.Fatalf("%d of %d samples are kept: %v", len(refs), d.Len(), err)
	}
	same := again.dataset(refs, maps)
	for i := range d.Len() {
		s, err := d.At(i)
		if err != nil || len(s.IDs) > 16 || len(s.Labels) != len(s.IDs) {
			t.Errorf("sample %d: %v %v", i, s, err)
		}
		if k, err := same.At(i); err != nil || !slices.Equal(k.IDs, s.IDs) ||
			!slices.Equal(k.Labels, s.Labels) || k.Second != s.Second {
			t.Errorf("sample %d is kept as %v %v, want %v", i, k, err, s)
		}
	}
}

func FuzzLoad_Records(f *testing.F) {
	for _, s := range []string{`[{"text":"x"},{"instruction":"a","output":"b"}]`,
		`{"messages":[{"role":"assistant","content":"x"}]}`, "[", "{}\n{", "[{\"text\":null}]",
		`{"tokens":[1,2]}`} {
		f.Add(0, []byte(s))
		f.Add(1, []byte(s))
	}
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, kind int, data []byte) {
		fuzzFile(t, tok, []string{"a.json", "a.jsonl", "a.txt"}[uint(kind)%3], data)
	})
}

func FuzzLoad_Arrow(f *testing.F) {
	for _, stream := range []bool{false, true} {
		f.Add(arrowBytes(f, stream,
			schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))),
			`[{"tokens":[65,66]},{"tokens":[]}]`, `[{"tokens":[67,3,5]}]`))
		f.Add(arrowBytes(f, stream, schemaOf(column("tokens", arrow.PrimitiveTypes.Uint32)),
			`[{"tokens":65},{"tokens":66}]`, `[{"tokens":67}]`))
		f.Add(arrowBytes(f, stream, schemaOf(column("messages", messagesType)),
			`[{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}]`))
	}
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, data []byte) { fuzzFile(t, tok, "a.arrow", data) })
}

func FuzzLoad_Parquet(f *testing.F) {
	f.Add(parquetBytes(f, schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))),
		`[{"tokens":[65,66]},{"tokens":[]}]`, `[{"tokens":[67,3,5]}]`))
	f.Add(parquetBytes(f, schemaOf(column("text", arrow.BinaryTypes.String)),
		`[{"text":"abc"},{"text":"abc"}]`))
	f.Add(parquetBytes(f, schemaOf(column("messages", messagesType)),
		`[{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}]`))
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, data []byte) { fuzzFile(t, tok, "a.parquet", data) })
}

// The archive is fuzzed without gzip, whose checksum would refuse nearly every change.
func FuzzLoad_Archive(f *testing.F) {
	for _, members := range [][][2]string{{{"a.txt", "abc"}, {"b/c.jsonl", "{\"text\":\"x\"}\n"}},
		{{"../x.json", "[]"}}} {
		f.Add(tarBytes(members...))
	}
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, data []byte) {
		maps := new(mappings)
		r := tar.NewReader(bytes.NewReader(data))
		files, chosen, err := openMembers("a.tar.gz", len(data), r, Options{}, maps)
		fuzzSamples(t, tok, "a.tar.gz", files, chosen, maps, err)
	})
}

func FuzzLoad_Pairs(f *testing.F) {
	f.Add(`{"prompt":"q","chosen":"yes","rejected":"no"}`)
	f.Add(`{"chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],` +
		`"rejected":[{"role":"user","content":"a"},{"role":"assistant","content":"c"}]}`)
	f.Add(`{"prompt":[],"chosen":[],"rejected":null,"system":1}`)
	f.Add(`{"prompt":"q","completion":"yes","label":true}`)
	f.Add(`{"prompt":[{"role":"user","content":"a"}],"label":"0",` +
		`"completion":[{"role":"assistant","content":"b"}]}`)
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, text string) {
		for _, layout := range []Layout{Preference, Rated} {
			o := Options{Layout: layout, MaxLength: 50, prompts: new(promptCache)}
			r, err := parseRecord([]byte(text), o, nil)
			if err != nil {
				continue
			}
			e, err := r.encode(tok, o)
			if err != nil {
				continue
			}
			for _, s := range e.samples {
				if (s.Second > 0) != (layout == Preference) ||
					(s.Rating != Unrated) != (layout == Rated) ||
					len(s.IDs) != len(s.Labels) || s.Second > 50 || len(s.IDs)-s.Second > 50 {
					t.Errorf("%q as %s became %+v", text, layout, s)
				}
			}
		}
	})
}
