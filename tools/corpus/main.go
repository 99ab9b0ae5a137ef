// Command corpus makes the data of `make experiment` from the sources of the Go toolchain:
//
//	corpus "$(go env GOROOT)/src" OUT
//
// It writes
//
//   - OUT/train and OUT/heldout, which have no package in common;
//   - OUT/validation, some of the held-out files, for validation during training;
//   - OUT/prompts.json, passages of held-out files with the text that follows them;
//   - OUT/lengths.json, one prompt of each length, to measure speed.
//
// The same toolchain gives the same files. File names end with .txt, so that the go command
// does not treat them as packages of this module.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// packages are the folders of the standard library to read, with all folders below them.
var packages = []string{"archive", "bufio", "bytes", "compress", "container", "context", "crypto",
	"database/sql", "debug",
	"encoding", "errors", "expvar", "flag", "fmt", "go", "hash", "html", "image", "index", "io",
	"log", "maps", "math", "mime",
	"net", "os", "path", "reflect", "regexp", "slices", "sort", "strconv", "strings", "sync",
	"testing", "text", "time"}

// heldOut are the folders that are not in the training set. None has a near copy among the
// others, such as strings and bytes.
var heldOut = []string{"archive/zip", "bufio", "container", "encoding/csv", "go/doc",
	"net/textproto", "regexp/syntax", "text/template"}

// watched are the held-out files of OUT/validation.
var watched = []string{"bufio/scan.go", "container/heap/heap.go", "encoding/csv/reader.go"}

// Lengths of the prompts in characters. The model is trained on texts of 1024 characters.
var (
	promptLengths = []int{256, 512, 1024, 2048}
	speedLengths  = []int{256, 512, 1024, 2048, 4096}
)

const (
	promptsPerLength = 12
	answerLength     = 128     // characters of the text that follows a prompt
	chunkSize        = 16      // chunk size of the variant "bytes", for num_chunks
	largest          = 100_000 // bytes; most larger files are tables
)

type prompt struct {
	Prompt    string `json:"prompt"`
	Answer    string `json:"answer"`
	TokenLen  int    `json:"token_len"`
	NumChunks int    `json:"num_chunks"`
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, `usage: corpus "$(go env GOROOT)/src" OUT`)
		os.Exit(2)
	}
	if err := gather(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

// gather writes all files of OUT.
func gather(src, out string) error {
	for _, sub := range []string{"train", "heldout", "validation", "prompts.json", "lengths.json"} {
		if err := os.RemoveAll(filepath.Join(out, sub)); err != nil {
			return err
		}
	}
	sizes, unseen, err := copySources(src, out)
	if err != nil {
		return err
	}
	prompts := passages(unseen, promptLengths, promptsPerLength)
	lengths := passages(unseen, speedLengths, 1)
	if len(prompts) < promptsPerLength*len(promptLengths) || len(lengths) < len(speedLengths) ||
		sizes["train"] < 1<<20 || sizes["validation"] == 0 {
		return fmt.Errorf("%s does not hold the sources of Go's standard library", src)
	}
	// prompts.json is last: if it exists, all files do.
	for _, file := range []struct {
		name string
		list []prompt
	}{{"lengths.json", lengths}, {"prompts.json", prompts}} {
		data, err := json.MarshalIndent(file.list, "", " ")
		if err != nil {
			return err
		}
		if err := write(filepath.Join(out, file.name), data); err != nil {
			return err
		}
	}
	fmt.Printf("%.1f MB of Go for training, %.2f MB of other packages held out, "+
		"%d prompts from these\n",
		float64(sizes["train"])/1e6, float64(sizes["heldout"])/1e6, len(prompts))
	return nil
}

// copySources copies the sources into the folders of OUT. It returns the bytes of each folder
// and the texts of the held-out files.
func copySources(src, out string) (sizes map[string]int, unseen []string, err error) {
	sizes = map[string]int{}
	visit := func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if entry.Name() == "testdata" || entry.Name() == "vendor" {
				return fs.SkipDir
			}
			return nil
		}
		data, ok, err := source(path)
		if !ok || err != nil {
			return err
		}
		name, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		sets := []string{"train"}
		if below(name, heldOut) {
			sets = []string{"heldout"}
			unseen = append(unseen, string(data))
			if slices.Contains(watched, name) {
				sets = append(sets, "validation")
			}
		}
		for _, set := range sets {
			sizes[set] += len(data)
			if err := write(filepath.Join(out, set, name+".txt"), data); err != nil {
				return err
			}
		}
		return nil
	}
	for _, pkg := range packages {
		if err := filepath.WalkDir(filepath.Join(src, pkg), visit); err != nil {
			return nil, nil, err
		}
	}
	return sizes, unseen, nil
}

// source reads a Go file. ok is false for tests, generated files and large files.
func source(path string) (data []byte, ok bool, err error) {
	if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
		return nil, false, nil
	}
	data, err = os.ReadFile(path)
	if err != nil || len(data) > largest {
		return nil, false, err
	}
	head, _, _ := bytes.Cut(data, []byte("\npackage "))
	return data, !bytes.Contains(head, []byte("DO NOT EDIT")), nil
}

// below reports whether a file is in one of the folders or below it.
func below(name string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool {
		return strings.HasPrefix(name,
			folder+"/")
	})
}

func write(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o666)
}

// passages returns the given number of prompts of each length, each from another file while
// there are enough. A prompt begins at the beginning of a line; the answer is the text after
// it. Passages with characters outside ASCII are skipped.
func passages(files []string, lengths []int, each int) []prompt {
	var prompts []prompt
	next := 0
	for _, length := range lengths {
		for taken, tried := 0, 0; taken < each && tried < len(files); tried++ {
			text := files[next%len(files)]
			next++
			start := strings.Index(text[len(text)/3:], "\n") + 1 + len(text)/3
			end := start + length + answerLength
			if end > len(text) || strings.ContainsFunc(text[start:end],
				func(r rune) bool { return r > 127 }) {
				continue
			}
			prompts = append(prompts, prompt{text[start : start+length], text[start+length : end],
				length, (length + chunkSize - 1) / chunkSize})
			taken++
		}
	}
	return prompts
}
