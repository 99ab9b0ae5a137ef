package dataset

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/wangkuiyi/gotorch/tool/tgz"
)

// member is a file of an archive: bytes [start, end) of the unpacked data.
type member struct {
	name       string
	start, end int64
}

// openArchive opens the files in a .tar.gz. Their names appear only in messages:
// nothing is written under them.
func openArchive(path string, opts Options, maps *mappings) (
	files []file, chosen Chosen, err error,
) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, chosen, err
	}
	r, err := tgz.OpenFile(path)
	if err != nil {
		return nil, chosen, fmt.Errorf("%s: %w", path, err)
	}
	defer r.Close()
	return openMembers(path, int(info.Size()), r.Reader, opts, maps)
}

// openMembers unpacks an archive and opens the files in it. packed is the size of the archive.
func openMembers(path string, packed int, r *tar.Reader, opts Options, maps *mappings) (
	files []file, chosen Chosen, err error,
) {
	var members []member
	data, err := maps.unpack(packed, func(w io.Writer) (err error) {
		members, err = unpackMembers(r, w)
		return err
	})
	if err != nil {
		return nil, chosen, fmt.Errorf("%s: %w", path, err)
	}
	var names []string
	byName := map[string]member{}
	for _, m := range members {
		names, byName[m.name] = append(names, m.name), m
	}
	if chosen, err = Choose(names, opts.Validation); err != nil {
		return nil, chosen, fmt.Errorf("%s: %w", path, err)
	}
	files, err = chosen.open(func(name string) (file, error) {
		m := byName[name]
		return openFile(path+":"+name, data[m.start:m.end:m.end], opts.Layout, maps)
	})
	return files, chosen, err
}

// unpackMembers writes the content of the files in an archive to w. Each starts
// at a multiple of 64 bytes, because columns are read in place.
func unpackMembers(r *tar.Reader, w io.Writer) (members []member, err error) {
	at := int64(0)
	for {
		entry, err := r.Next()
		if err == io.EOF {
			return members, nil
		}
		if err != nil {
			return nil, err
		}
		if entry.Typeflag != tar.TypeReg || strings.HasPrefix(filepath.Base(entry.Name), ".") {
			continue
		}
		n, err := io.Copy(w, r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", entry.Name, err)
		}
		padding := -n & 63
		if _, err := w.Write(make([]byte, padding)); err != nil {
			return nil, err
		}
		members = append(members, member{entry.Name, at, at + n})
		at += n + padding
	}
}
