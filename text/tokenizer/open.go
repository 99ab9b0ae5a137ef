package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"conquer/internal/wrongfile"
)

// source is what Save writes: the files of the folder that the tokenizer was
// opened from, or the tokenizer.json that was made for it.
type source struct {
	folder string
	files  []string
	spec   *fileSpec
}

// CharTokenizer is the name that opens the character tokenizer of IBM's
// foundation-model-stack, in which every character is a token.
const CharTokenizer = "char_tokenizer"

// Open opens a tokenizer. path is one of
//
//   - a model folder with a tokenizer.json or, if that is missing, a
//     tokenizer.model;
//   - one of these two files (the other files of its folder are used too);
//   - [CharTokenizer].
//
// tokenizer_config.json and special_tokens_map.json name the special tokens and
// hold the chat template; generation_config.json and config.json hold the ids
// that end a turn. For GGUF files see [FromGGUF]. Errors name the file.
func Open(path string) (*Tokenizer, error) {
	if path == CharTokenizer {
		return openChars()
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	folder, file := filepath.Dir(path), path
	if info.IsDir() {
		folder, file = path, ""
		for _, name := range []string{"tokenizer.json", "tokenizer.model"} {
			if _, err := os.Stat(filepath.Join(path, name)); err == nil {
				file = filepath.Join(path, name)
				break
			}
		}
		if file == "" {
			return nil, fmt.Errorf("tokenizer: %s holds neither tokenizer.json nor tokenizer.model",
				path)
		}
	}
	data, err := readFile(file, maxFile)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	about, err := readFolder(folder)
	if err != nil {
		return nil, err
	}
	t, err := parseFile(data, about)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %s: %w", file, err)
	}
	if t.source.spec == nil {
		t.source.collect(folder)
	}
	return t, nil
}

// parseFile reads a tokenizer.json or tokenizer.model.
func parseFile(data []byte, about *folderInfo) (*Tokenizer, error) {
	switch {
	case bytes.HasPrefix(data, []byte("GGUF")):
		return nil, fmt.Errorf(
			"it is a GGUF file, whose tokenizer can only be used with its own model: " +
				"give a folder with a tokenizer.json or a tokenizer.model")
	case bytes.HasPrefix(data, byteOrderMark):
		return nil, fmt.Errorf("it begins with a byte order mark, which JSON does not allow: " +
			"save it without one")
	case tiktokenLine.Match(data[:min(len(data), 1024)]):
		return nil, fmt.Errorf(
			"it is a list of ranks in the format of Llama 3, which is not supported: " +
				"give the folder of the model's tokenizer.json with --tokenizer")
	}
	read, kind := about.specFromSentencePiece, wrongfile.Other
	isJSON := len(data) > 0 && looksLikeJSON(data)
	if isJSON {
		read, kind = parseSpec, wrongfile.JSON
	} else if looksLikeText(data) {
		err := fmt.Errorf("it is text that begins with %.40q, "+
			"neither a tokenizer.json nor a SentencePiece model", data)
		return nil, wrongfile.Explain(data, wrongfile.JSON, err)
	}
	spec, err := read(data)
	if err != nil {
		return nil, wrongfile.Explain(data, kind, err)
	}
	if isJSON {
		about.addTo(spec)
	}
	t, err := spec.build()
	if err != nil {
		return nil, err
	}
	if !isJSON {
		t.source.spec = spec // there is no tokenizer.json to copy
	}
	about.apply(t)
	return t, nil
}

// tiktokenLine matches the first line of Meta's tokenizer file of Llama 3: a token
// in base64 and its rank.
var tiktokenLine = regexp.MustCompile(`^[A-Za-z0-9+/]+={0,2} [0-9]+\n`)

var byteOrderMark = []byte("\xEF\xBB\xBF")

// looksLikeJSON reports whether a file is a tokenizer.json rather than a
// tokenizer.model. The latter begins with the tag of its first piece, which is a
// line feed.
func looksLikeJSON(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) &&
		(data[0] != '\n' || looksLikeText(data))
}

// looksLikeText reports whether the beginning of data has no control characters.
// A tokenizer.model has many.
func looksLikeText(data []byte) bool {
	isControl := func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' }
	return !bytes.ContainsFunc(data[:min(len(data), 1024)], isControl)
}

// openChars opens CharTokenizer. The token of a character is its code, or 0 for a
// code of 256 or more. 2 begins a text and 3 ends it (STX and ETX of ASCII).
func openChars() (*Tokenizer, error) {
	zero := "\x00"
	spec := newSpec(256)
	spec.Decoder = json.RawMessage(`{"type":"Fuse"}`)
	spec.PostProcessor = templateProcessing("\x02", 2, "", 0)
	spec.Model.UnkToken = &zero
	for c := range int32(256) {
		spec.Model.Vocab[string(rune(c))] = c
	}
	t, err := spec.build()
	if err != nil {
		return nil, err
	}
	t.bos, t.eos, t.source.spec = 2, []int32{3}, spec
	t.setNames()
	return t, nil
}
