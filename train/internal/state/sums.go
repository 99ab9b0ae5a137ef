package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"conquer/internal/atomicfile"
	"conquer/internal/wrongfile"
)

// sumsFile lists the sizes and checksums of a checkpoint's files.
const sumsFile = "checksums.json"

// sums is the content of sumsFile.
type sums struct {
	Version int            `json:"version"`
	Files   map[string]sum `json:"files"` // by the path in the checkpoint, with slashes
}

type sum struct {
	Bytes int64  `json:"bytes"`
	CRC   uint32 `json:"crc32c"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum reads a file.
func checksum(path string) (s sum, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	h := crc32.New(castagnoli)
	s.Bytes, err = io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 64<<10))
	s.CRC = h.Sum32()
	return s, err
}

// WriteSums completes a checkpoint that is being made: it writes the checksums of its files. It
// leaves out the files of ranks, whose checksums are in native.json.
func WriteSums(stage string) error {
	list := sums{Version: 1, Files: map[string]sum{}}
	err := filepath.WalkDir(stage, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(stage, path)
		if ranks, _ := filepath.Match("rank-*-of-*.safetensors", name); ranks || err != nil {
			return err
		}
		list.Files[filepath.ToSlash(name)], err = checksum(path)
		return err
	})
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(stage, sumsFile), append(text, '\n'))
}

// readSums reads the checksums of the checkpoint dir.
func readSums(dir string) (sums, error) {
	path := filepath.Join(dir, sumsFile)
	text, err := wrongfile.Read(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return sums{}, fmt.Errorf("%s does not exist: the checkpoint is incomplete, or an earlier "+
			"version wrote it", path)
	} else if err != nil {
		return sums{}, err
	}
	list, err := parseSums(text)
	if err != nil {
		return list, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

func parseSums(text []byte) (list sums, err error) {
	if err := decode(text, &list); err != nil {
		return list, err
	}
	if list.Version != 1 {
		return list, fmt.Errorf("version %d, expected 1", list.Version)
	}
	if _, ok := list.Files[file]; !ok {
		return list, fmt.Errorf("it does not list %s", file)
	}
	for name, s := range list.Files {
		if !filepath.IsLocal(name) || strings.Contains(name, "\\") {
			return list, fmt.Errorf("%.80q is not the path of a file in this folder", name)
		}
		if s.Bytes < 0 {
			return list, fmt.Errorf("%.80q has a size of %d", name, s.Bytes)
		}
	}
	return list, nil
}

// check returns an error unless a file of the checkpoint dir has its size and checksum.
func (list sums) check(dir, name string) error {
	path, want := filepath.Join(dir, filepath.FromSlash(name)), list.Files[name]
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is missing: %s lists it", path, sumsFile)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file, expected one of %d bytes", path, want.Bytes)
	case info.Size() != want.Bytes:
		return fmt.Errorf("%s has %d bytes, expected %d: it is truncated or belongs to another "+
			"checkpoint", path, info.Size(), want.Bytes)
	}
	got, err := checksum(path)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s does not have the checksum that %s gives it: it is damaged, or "+
			"belongs to another checkpoint", path, sumsFile)
	}
	return nil
}

// Verify returns an error unless all files of the checkpoint dir have the sizes and checksums with
// which they were written. Those of ranks are checked when they are read.
func Verify(dir string) error {
	list, err := readSums(dir)
	if err != nil {
		return err
	}
	for name := range list.Files {
		if err := list.check(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// decode reads one JSON object into value. It refuses unknown keys, keys that are there twice and
// anything after the object.
func decode(text []byte, value any) error {
	if err := checkKeys(json.NewDecoder(bytes.NewReader(text))); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(value); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is more text after the JSON object")
	}
	return nil
}

// checkKeys returns an error if an object has a key twice. Upper and lower case count as the same,
// as they do for encoding/json.
func checkKeys(d *json.Decoder) error {
	type level struct {
		keys  map[string]bool // nil in a list
		value bool            // the next token is a value
	}
	var stack []level
	for {
		token, err := d.Token()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		top := len(stack) - 1
		if top >= 0 && stack[top].keys != nil && token != json.Delim('}') {
			if !stack[top].value {
				key := strings.ToLower(token.(string))
				if stack[top].keys[key] {
					return fmt.Errorf("the key %.80q is there twice", token)
				}
				stack[top].keys[key], stack[top].value = true, true
				continue
			}
			stack[top].value = false
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, level{keys: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
		}
	}
}
