package tokenizer

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestParity_HuggingFace encodes the strings in the folder TEXT_PARITY for
// tools/parity/text_tokenizers.py, which compares the results. It is skipped if
// TEXT_PARITY is not set.
func TestParity_HuggingFace(t *testing.T) {
	dir := os.Getenv("TEXT_PARITY")
	if dir == "" {
		t.Skip("run tools/parity/text_tokenizers.py, which sets TEXT_PARITY")
	}
	var job struct {
		Open string // path for Open
		GGUF string // or a JSON file of GGUF metadata for FromGGUF
		Save string // where to save the tokenizer, if anywhere
		IDs  [][]int32
		Chat [][]Message
	}
	readTestJSON(t, filepath.Join(dir, "job.json"), &job)
	var tok *Tokenizer
	var err error
	if job.GGUF != "" {
		tok, err = FromGGUF(readGGUFMeta(t, job.GGUF))
	} else {
		tok, err = Open(job.Open)
	}
	if err != nil {
		t.Fatal(err)
	}
	if job.Save != "" {
		if err := tok.Save(job.Save); err != nil {
			t.Fatal(err)
		}
	}
	var texts []string
	readTestJSON(t, filepath.Join(dir, "texts.json"), &texts)
	ends, err := json.Marshal(tok.EOS())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "ends.json"), ends, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "go.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	defer w.Flush()
	out := json.NewEncoder(w)
	for _, s := range texts {
		plain, special := tok.Encode(s, false), tok.Encode(s, true)
		out.Encode(map[string]any{"plain": plain, "special": special, "text": tok.Decode(special,
			false), "skipped": tok.Decode(special, true)})
	}
	for _, ids := range job.IDs {
		out.Encode(map[string]any{"text": tok.Decode(ids, false), "skipped": tok.Decode(ids, true)})
	}
	for _, messages := range job.Chat {
		for _, generate := range []bool{false, true} {
			s, err := tok.Chat(messages, generate)
			if err != nil {
				s = "error: " + err.Error()
			}
			out.Encode(s)
		}
	}
}

func readTestJSON(t testing.TB, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// readGGUFMeta reads GGUF metadata that a script wrote as JSON. The values have the
// types that a GGUF reader gives.
func readGGUFMeta(t testing.TB, path string) map[string]any {
	t.Helper()
	var raw map[string]json.RawMessage
	readTestJSON(t, path, &raw)
	meta := map[string]any{}
	for key, value := range raw {
		for _, into := range []any{new(string), new(bool), new(uint32), new([]string), new([]int32),
			new([]float32)} {
			if json.Unmarshal(value, into) != nil {
				continue
			}
			switch v := into.(type) {
			case *string:
				meta[key] = *v
			case *bool:
				meta[key] = *v
			case *uint32:
				meta[key] = *v
			case *[]string:
				meta[key] = *v
			case *[]int32:
				meta[key] = *v
			case *[]float32:
				meta[key] = *v
			}
			break
		}
	}
	return meta
}
