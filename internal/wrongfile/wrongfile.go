// Package wrongfile recognizes what lies in the place of an expected file, such as the pointer that
// a git clone without LFS leaves or the error page of a download server. Readers ask it when they
// fail, so that all of them name such a file in the same words.
package wrongfile

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Kind is a format that a reader expects.
type Kind string

// The formats of readers. A file that is of the expected kind, but damaged, is not a wrong file.
const (
	SafeTensors Kind = "a safetensors file"
	GGUF        Kind = "a GGUF file"
	PyTorch     Kind = "a PyTorch file"
	JSON        Kind = "JSON"
	Parquet     Kind = "a Parquet file"
	Text        Kind = "text" // any text, so that only a pointer is wrong
	Other       Kind = ""     // none of these
)

// headBytes is how much of a file is looked at.
const headBytes = 4096

// magics are the first bytes of formats, with what to do with a file of that format.
var magics = []struct {
	kind  Kind
	bytes string
	what  string
}{
	{Other, "\x1f\x8b", "it is compressed by gzip: decompress it with gzip -d"},
	{Other, "\x28\xb5\x2f\xfd", "it is compressed by zstd: decompress it with zstd -d"},
	{Other, "\xfd7zXZ\x00", "it is compressed by xz: decompress it with xz -d"},
	{Other, "BZh", "it is compressed by bzip2: decompress it with bzip2 -d"},
	{Other, "7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive: unpack it first"},
	{Other, "Rar!\x1a\x07", "it is a RAR archive: unpack it first"},
	{PyTorch, "PK\x03\x04", "it is a zip archive: unpack it, or name it .bin if PyTorch wrote it"},
	{GGUF, "GGUF", "it is a GGUF file: name it .gguf"},
	{Other, "ggjt", "it is of GGML, the format before GGUF: convert it with llama.cpp"},
	{Other, "tjgg", "it is of GGML, the format before GGUF: convert it with llama.cpp"},
	{Other, "lmgg", "it is of GGML, the format before GGUF: convert it with llama.cpp"},
	{Other, "\x89HDF\r\n\x1a\n", "it is an HDF5 file of Keras or TensorFlow: use the model's " +
		"safetensors files"},
	{Other, "\x93NUMPY", "it is a NumPy array: save the tensors as safetensors"},
	{Parquet, "PAR1", "it is a Parquet file, which holds a data set"},
	{Other, "\x7fELF", "it is a program"},
	{Other, "%PDF-", "it is a PDF document"},
	{Other, "\x89PNG", "it is an image"},
	{Other, "\xff\xd8\xff", "it is an image"},
	{PyTorch, "\x80\x02", "it is a Python pickle: if PyTorch wrote it, name it .bin"},
}

// encodings are the first bytes of texts that are not JSON, although they look like it.
var encodings = []struct{ bytes, what string }{
	{"\xef\xbb\xbf", "it begins with a byte order mark, which JSON does not allow: save it " +
		"without one"},
	{"\xff\xfe", "it is UTF-16 text: save it as UTF-8"},
	{"\xfe\xff", "it is UTF-16 text: save it as UTF-8"},
}

var pointerSize = regexp.MustCompile(`(?m)^size ([0-9]+)$`)

// Describe says what a file is, by its first bytes, and what to do about it; "" if it may be of the
// expected kind, or is nothing known. data may be the whole file.
func Describe(data []byte, expected Kind) string {
	if len(data) == 0 {
		return "it is empty: download or copy it again"
	}
	head := data[:min(len(data), headBytes)]
	if what := pointer(head); what != "" || expected == Text {
		return what
	}
	for _, m := range magics {
		right := m.kind == expected && m.kind != Other
		// The first three letters of a text prove nothing.
		certain := len(m.bytes) > 3 || !printable(head)
		if strings.HasPrefix(string(head), m.bytes) && certain && !right {
			return m.what
		}
	}
	for _, e := range encodings {
		if expected == JSON && strings.HasPrefix(string(head), e.bytes) {
			return e.what
		}
	}
	if len(head) >= 262 && string(head[257:262]) == "ustar" {
		return "it is a tar archive: unpack it first"
	}
	if expected != SafeTensors && isSafetensors(data) {
		return "it is a safetensors file: name it .safetensors"
	}
	if len(head) >= 16 && len(bytes.Trim(head, "\x00")) == 0 {
		return "it begins with zeros only: the download or copy is not complete, repeat it"
	}
	return describeText(head, expected)
}

// pointer recognizes the text that Git LFS keeps in the place of a large file.
func pointer(head []byte) string {
	if !bytes.HasPrefix(head, []byte("version https://git-lfs.github.com/spec/")) &&
		!bytes.HasPrefix(head, []byte("version https://hawser.github.com/spec/")) {
		return ""
	}
	stands := ""
	if size := pointerSize.FindSubmatch(head); size != nil {
		stands = fmt.Sprintf(" of %s bytes", size[1])
	}
	return fmt.Sprintf("it is a Git LFS pointer, which stands for the file%s: fetch the file "+
		"with git lfs pull", stands)
}

// describeText recognizes the answers of servers.
func describeText(head []byte, expected Kind) string {
	text := bytes.ToLower(bytes.TrimLeft(head, "\ufeff \t\r\n"))
	for _, tag := range []string{"<!doctype html", "<html", "<head", "<body"} {
		if bytes.HasPrefix(text, []byte(tag)) {
			return "it is an HTML page, such as a download server's error or login page: " +
				"download the file itself"
		}
	}
	switch {
	case bytes.HasPrefix(text, []byte("<?xml")), bytes.HasPrefix(text, []byte("<error")):
		return "it is an XML document, such as a download server's error message" + quoted(head) +
			": download the file again"
	case expected == JSON:
		if isServerError(head) {
			return "it is a server's error message" + quoted(head) + ": download the file again"
		}
	case len(head) >= 10 && len(head) < headBytes && printable(head):
		return "it is a short text, such as a server's error message" + quoted(head) +
			": download the file again"
	}
	return ""
}

// isServerError recognizes the JSON or plain text with which servers refuse a download.
func isServerError(head []byte) bool {
	var body map[string]any
	if json.Unmarshal(head, &body) == nil {
		_, failed := body["error"].(string)
		return failed && len(body) <= 4
	}
	return len(head) >= 10 && len(head) < headBytes && printable(head) &&
		!bytes.ContainsAny(head, "{}[]")
}

// isSafetensors reports whether the header of a safetensors file is there.
func isSafetensors(data []byte) bool {
	return len(data) > 10 && binary.LittleEndian.Uint64(data) < 100_000_000 && data[8] == '{' &&
		data[9] == '"'
}

// printable reports whether data is text. The last letter may be cut off.
func printable(data []byte) bool {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size <= 1 && i < len(data)-utf8.UTFMax ||
			r < ' ' && r != '\n' && r != '\r' && r != '\t' {
			return false
		}
		i += size
	}
	return true
}

// quoted is the beginning of a text in parentheses.
func quoted(head []byte) string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(head), "")), " ")
	if runes := []rune(text); len(runes) > 80 {
		text = string(runes[:80]) + "…"
	}
	return fmt.Sprintf(" (%q)", text)
}

// Explain returns err, with which a reader failed on the file in data, or a better one: what the
// file is if it is not of the expected kind, or that JSON is cut off. nil stays nil.
func Explain(data []byte, expected Kind, err error) error {
	if err == nil {
		return nil
	}
	if what := Describe(data, expected); what != "" {
		return errors.New(what)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok &&
		syntax.Offset >= int64(len(data)) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: truncated? Download or copy it again", err)
	}
	return err
}
