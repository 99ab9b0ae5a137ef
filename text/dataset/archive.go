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
	maps.packed += info.Size()
	return openMembers(path, int(info.Size()), r.Reader, opts, maps)
}

// openMembers unpacks an archive and opens the files in it. packed is the size of the archive.
func openMembers(path string, packed int, r *tar.Reader, opts Options, maps *mappings) (
	files []file, chosen Chosen, err error,
) {
	var members []member
	data, err := maps.unpack(packed, func(w io.Writer) (err error) {
		members, err = unpackMembers(r, w, unpackLimit(packed))
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
		return openFile(path+":"+name, data[m.start:m.end:m.end], opts, maps)
	})
	return files, chosen, err
}

// maxMembers and maxNames limit the files of an archive and the bytes of their names, which pack to
// almost nothing.
const (
	maxMembers = 1 << 20
	maxNames   = 64 << 20
)

// unpackMembers writes the content of the files in an archive to w. Each starts
// at a multiple of 64 bytes, because columns are read in place. Members that it
// skips, which are unpacked all the same, have at most limit bytes.
func unpackMembers(r *tar.Reader, w io.Writer, limit int64) (members []member, err error) {
	at, names := int64(0), 0
	for {
		entry, err := r.Next()
		if err == io.EOF {
			return members, nil
		}
		if err != nil {
			return nil, err
		}
		if entry.Typeflag != tar.TypeReg || strings.HasPrefix(filepath.Base(entry.Name), ".") {
			if limit -= entry.Size; limit < 0 {
				return nil, fmt.Errorf("%s: %w", entry.Name, errUnpacks)
			}
			continue
		}
		if names += len(entry.Name); len(members) >= maxMembers || names > maxNames {
			return nil, fmt.Errorf("it holds more than %d files, or their names have more than %d "+
				"bytes: unpack it by hand if that is intended", maxMembers, maxNames)
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
