package dataset

import (
	"archive/tar"
	"errors"
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
func openArchive(path string, layout Layout, maps *mappings) (
	files []file, skipped int, err error,
) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	var members []member
	data, err := maps.unpack(int(info.Size()), func(w io.Writer) (err error) {
		members, err = unpackMembers(path, w)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	columns := false
	for _, m := range members {
		columns = columns || isColumns(m.name)
	}
	for _, m := range members {
		if columns && !isColumns(m.name) {
			skipped++
			continue
		}
		f, err := openFile(path+":"+m.name, data[m.start:m.end:m.end], layout, maps)
		if errors.Is(err, errNotText) {
			skipped++
		} else if err != nil {
			return nil, 0, err
		} else {
			files = append(files, f)
		}
	}
	return files, skipped, nil
}

// unpackMembers writes the content of the files in an archive to w. Each starts
// at a multiple of 64 bytes, because columns are read in place.
func unpackMembers(path string, w io.Writer) (members []member, err error) {
	r, err := tgz.OpenFile(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
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
