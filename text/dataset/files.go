package dataset

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"conquer/internal/wrongfile"
)

// file is an open data file. Its records are read when they are needed, by
// several goroutines at once. A position identifies a record; what it counts
// depends on the format.
type file interface {
	// scan calls take with the position of each record, in order.
	scan(take func(at int64) error) error
	// record reads the record at a position.
	record(at int64) (record, error)
	// title is the name of the file.
	title() string
	// where names the file and the line or row of a position.
	where(at int64) string
	// offset returns the number of bytes before a position.
	offset(at int64) int64
	// size returns the number of bytes of the file.
	size() int64
}

// openFiles opens path: a file, a folder or an archive. skipped counts the files
// without data.
func openFiles(path string, opts Options, maps *mappings) (files []file, chosen Chosen, err error) {
	layout := opts.Layout
	if layout != AnyLayout && !slices.Contains(layouts, layout) {
		return nil, chosen, fmt.Errorf("layout %q is not known; known are %s", layout,
			strings.Trim(fmt.Sprint(layouts), "[]"))
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, chosen, err
	}
	if !info.IsDir() {
		if strings.HasSuffix(path, ".tar.gz") || strings.HasSuffix(path, ".tgz") {
			return openArchive(path, opts, maps)
		}
		data, err := maps.mapFile(path)
		if err != nil {
			return nil, chosen, err
		}
		f, err := openFile(path, data, opts, maps)
		return []file{f}, chosen, err
	}
	if chosen, err = chooseIn(path, opts); err != nil {
		return nil, chosen, err
	}
	files, err = chosen.open(func(name string) (file, error) {
		name = filepath.Join(path, filepath.FromSlash(name))
		data, err := maps.mapFile(name)
		if err != nil {
			return nil, err
		}
		return openFile(name, data, opts, maps)
	})
	return files, chosen, err
}

// chooseIn chooses files of a folder.
func chooseIn(path string, opts Options) (chosen Chosen, err error) {
	names, err := filesIn(path)
	if err != nil {
		return chosen, err
	}
	for i, name := range names {
		relative, err := filepath.Rel(path, name)
		if err != nil {
			return chosen, err
		}
		names[i] = filepath.ToSlash(relative)
	}
	if chosen, err = Choose(names, opts.Validation); err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return chosen, err
}

// open opens the chosen files. Those that are not text are skipped.
func (c *Chosen) open(open func(name string) (file, error)) (files []file, err error) {
	var kept []string
	for _, name := range c.Files {
		f, err := open(name)
		if errors.Is(err, errNotText) {
			c.Skipped = append(c.Skipped, name)
			continue
		}
		if err != nil {
			return nil, err
		}
		files, kept = append(files, f), append(kept, name)
	}
	c.Files = kept
	return files, nil
}

// filesIn lists the files below a folder in the order of their names, without
// those whose name begins with a dot.
func filesIn(folder string) (names []string, err error) {
	err = filepath.WalkDir(folder, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(entry.Name(), ".") && name != folder {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.Type()&fs.ModeSymlink != 0 { // a hub's cache holds links
			info, err := os.Stat(name)
			if errors.Is(err, fs.ErrNotExist) {
				target, _ := os.Readlink(name)
				return fmt.Errorf("%s is a link to %s, which does not exist", name, target)
			}
			if err != nil || !info.Mode().IsRegular() {
				return err
			}
		} else if !entry.Type().IsRegular() {
			return nil
		}
		names = append(names, name)
		return nil
	})
	return names, err
}

var errNotText = errors.New("not a text file in UTF-8")

// openFile opens a file with the given name and content. The extension of the
// name selects the format.
func openFile(name string, data []byte, opts Options, maps *mappings) (f file, err error) {
	layout := opts.Layout
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	opts.longest = longestRecord(maps.packed)
	if data, err = uncompressed(name, data, maps); err != nil {
		return nil, err
	}
	ext := extension(name)
	kinds := map[string]wrongfile.Kind{".parquet": wrongfile.Parquet, ".arrow": wrongfile.Other,
		".json": wrongfile.JSON, ".jsonl": wrongfile.JSON, ".ndjson": wrongfile.JSON}
	kind, known := kinds[ext]
	if !known || layout == RawText {
		kind = wrongfile.Text
	}
	err = guarded(func() error {
		what := wrongfile.Describe(bytes.TrimPrefix(data, []byte("\xEF\xBB\xBF")), kind)
		if len(data) > 0 && what != "" {
			return errors.New(what)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if isColumns(name) {
		err = guarded(func() (err error) {
			if ext == ".parquet" {
				f, err = openParquet(name, data, opts, maps)
			} else {
				f, err = openArrow(name, data, opts, maps)
			}
			return err
		})
		return f, err
	}
	data = bytes.TrimPrefix(data, []byte("\xEF\xBB\xBF"))
	perLine := (ext == ".jsonl" || ext == ".ndjson" || ext == ".json" && isLines(data)) &&
		layout != RawText
	err = guarded(func() error {
		if perLine && opts.SkipBad {
			return nil // each line is checked for itself
		}
		return checkText(data, known || slices.Contains([]string{".csv", ".tsv", ".txt"}, ext))
	})
	switch {
	case err != nil:
		return nil, err
	case ext == ".csv":
		return openTable(name, data, opts, ',')
	case ext == ".tsv":
		return openTable(name, data, opts, '\t')
	case perLine:
		return &lines{name: name, data: data, opts: opts, names: opts.Columns.checker()}, nil
	case ext == ".json" && layout != RawText:
		return &array{name: name, data: data, opts: opts, names: opts.Columns.checker()}, nil
	case layout == AnyLayout || layout == RawText:
		return &plain{name: name, data: data}, nil
	}
	return nil, fmt.Errorf("plain text, expected records of layout %s "+
		"in .jsonl, .json, .csv, .tsv, .arrow or .parquet", layout)
}

// checkText returns an error unless data is text in UTF-8. It names the first line that is not if
// the file holds records, which are not left out silently.
func checkText(data []byte, records bool) error {
	at := bytes.IndexByte(data, 0)
	what := "a zero byte"
	if at < 0 {
		if utf8.Valid(data) {
			return nil
		}
		for at = 0; at < len(data); {
			r, size := utf8.DecodeRune(data[at:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			at += size
		}
		what = fmt.Sprintf("the byte 0x%02x", data[at])
	}
	if known := wrongfile.Describe(data, wrongfile.Other); known != "" && !isText(data) {
		return fmt.Errorf("%w: %s", errNotText, known)
	}
	if !records {
		return fmt.Errorf("%w: line %d holds %s; records are read from .jsonl, .json, .csv, .tsv, "+
			".parquet and .arrow", errNotText, 1+bytes.Count(data[:at], []byte("\n")), what)
	}
	return fmt.Errorf("line %d holds %s, which is not text in UTF-8: save the file as UTF-8, or "+
		"correct the line", 1+bytes.Count(data[:at], []byte("\n")), what)
}

// isText reports whether data begins as text does, rather than as a compressed or binary file.
func isText(data []byte) bool {
	isControl := func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' }
	first, size := utf8.DecodeRune(data)
	return !bytes.ContainsFunc(data[:min(len(data), 4)], isControl) &&
		(first != utf8.RuneError || size > 1)
}

// isColumns reports whether a file of this name holds columns.
func isColumns(name string) bool {
	ext := extension(name)
	return ext == ".arrow" || ext == ".parquet"
}

// extension returns the extension of a name in lower case, without that of a
// compression.
func extension(name string) string {
	name = strings.ToLower(name)
	return filepath.Ext(strings.TrimSuffix(strings.TrimSuffix(name, ".gz"), ".zst"))
}

// maxWindow is the memory that unpacking a .zst file may take: the limit of the command zstd.
const maxWindow = 128 << 20

// uncompressed unpacks the data of a .gz or .zst file.
func uncompressed(name string, data []byte, maps *mappings) ([]byte, error) {
	var open func(io.Reader) (io.ReadCloser, error)
	switch strings.ToLower(filepath.Ext(name)) {
	case ".gz":
		open = func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }
	case ".zst":
		open = func(r io.Reader) (io.ReadCloser, error) {
			d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, err
			}
			return d.IOReadCloser(), nil
		}
	default:
		return data, nil
	}
	return maps.unpack(len(data), func(w io.Writer) error {
		r, err := open(bytes.NewReader(data))
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(w, r)
		return err
	})
}

// damage describes a panic or a fault while a file was read.
type damage string

func (d damage) Error() string { return "the file is damaged: " + string(d) }

// guarded runs read and turns a panic into an error: one of a decoder that reads
// a damaged file, or a fault because a mapped file was truncated.
func guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			message := strings.Join(strings.Fields(fmt.Sprint(p)), " ")
			err = damage(fmt.Sprintf("%.200s", message))
		}
	}()
	return read()
}

// Stdin is the name of standard input for [ReadFile].
const Stdin = "-"

// ReadFile reads a whole file of text, or a pipe. The name - stands for standard
// input. A byte order mark of UTF-8 is dropped, and UTF-16 is refused. A device is
// refused too, because it may have no end.
func ReadFile(name string) ([]byte, error) {
	f := os.Stdin
	if name != Stdin {
		var err error
		if f, err = openRegular(name); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	for _, mark := range []string{"\xff\xfe", "\xfe\xff"} {
		if bytes.HasPrefix(data, []byte(mark)) {
			return nil, fmt.Errorf("%s is UTF-16, expected UTF-8: convert it with "+
				"`iconv -f UTF-16 -t UTF-8`", name)
		}
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), nil
}

var errDevice = errors.New("a device, expected a file or a pipe")

// openRegular opens a file or a pipe.
func openRegular(name string) (*os.File, error) {
	if info, err := os.Stat(name); err == nil && info.Mode()&fs.ModeDevice != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errDevice}
	}
	return os.Open(name)
}
