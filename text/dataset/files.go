package dataset

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/wangkuiyi/gotorch/tool/tgz"

	"conquer/internal/mapping"
)

// file is a data file, mapped into memory, whose records are read when they
// are asked for. It serves several goroutines.
type file interface {
	// scan tells take where each record lies, in order.
	scan(take func(at int64) error) error
	// record reads the one at a position of scan's.
	record(at int64) (record, error)
	// where names it for people.
	where(at int64) string
	// passed is how many bytes lie before a position, or in the whole file for -1.
	passed(at int64) int64
}

// mappings are the files that a data set has mapped into memory. Its records
// are read while it is held open.
type mappings struct {
	mu     sync.RWMutex
	closed bool
	list   []*mapping.Mapping
}

// during calls read while the files are there.
func (m *mappings) during(read func() error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return errors.New("the data set is closed")
	}
	return read()
}

func (m *mappings) close() (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, file := range m.list {
		err = errors.Join(err, file.Close())
	}
	m.closed, m.list = true, nil
	return err
}

// An archive or a Parquet file is unpacked before it is read, and what a small
// one claims to hold may be more than the disk does: at most this many times
// its size is unpacked, or smallest.
const (
	mostUnpacked = 200
	smallest     = 1 << 30
)

// openFiles opens what lies at path: a file, a folder or an archive. skipped
// counts the files that hold no data.
func openFiles(path string, layout Layout, maps *mappings) (files []file, skipped int, err error) {
	switch layout {
	case AnyLayout, Instruction, Chat, RawText, Tokens, Preference:
	default:
		return nil, 0, fmt.Errorf("layout %q is not known; known are %s, %s, %s, %s and %s", layout, Instruction, Chat, RawText, Tokens, Preference)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	var names []string
	if !info.IsDir() {
		names = []string{path}
	} else if names, err = filesIn(path); err != nil {
		return nil, 0, err
	}
	columns := false // where there are files of columns, text beside them describes them
	for _, name := range names {
		columns = columns || isColumns(name)
	}
	for _, name := range names {
		data, err := maps.mapFile(name)
		if err != nil {
			return nil, 0, err
		}
		switch {
		case columns && !isColumns(name):
			skipped++
		case !info.IsDir() && (strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".tgz")):
			members, n, err := openArchive(name, layout, maps)
			if err != nil {
				return nil, 0, err
			}
			files, skipped = append(files, members...), skipped+n
		default:
			f, err := openFile(name, data, layout, maps)
			if errors.Is(err, errNotText) && info.IsDir() {
				skipped++
			} else if err != nil {
				return nil, 0, err
			} else {
				files = append(files, f)
			}
		}
	}
	return files, skipped, nil
}

// filesIn lists the files below a folder in the order of their names, but for
// those that begin with a dot.
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
		if entry.Type()&fs.ModeSymlink != 0 { // as in the folders of a hub's cache
			info, err := os.Stat(name)
			if errors.Is(err, fs.ErrNotExist) {
				target, _ := os.Readlink(name)
				return fmt.Errorf("%s is a link to %s, which is not there", name, target)
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

// openFile opens a file with the given name and content.
func openFile(name string, data []byte, layout Layout, maps *mappings) (f file, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	ext := strings.ToLower(filepath.Ext(name))
	if isColumns(name) {
		err = guarded(func() (err error) {
			if ext == ".parquet" {
				f, err = openParquet(name, data, layout, maps)
			} else {
				f, err = openArrow(name, data, layout, maps)
			}
			return err
		})
		return f, err
	}
	err = guarded(func() error {
		if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
			return errNotText
		}
		return nil
	})
	data = bytes.TrimPrefix(data, []byte("\xEF\xBB\xBF"))
	switch {
	case err != nil:
		return nil, err
	case ext == ".jsonl" || ext == ".ndjson" && layout != RawText:
		return &lines{name: name, data: data, layout: layout}, nil
	case ext == ".json" && layout != RawText:
		return &array{name: name, data: data, layout: layout}, nil
	case layout == AnyLayout || layout == RawText:
		return &plain{name: name, data: data}, nil
	}
	return nil, fmt.Errorf("plain text, expected records of layout %s in .jsonl, .json, .arrow or .parquet", layout)
}

func isColumns(name string) bool {
	ext := strings.ToLower(filepath.Ext(name))
	return ext == ".arrow" || ext == ".parquet"
}

// damage is what a file that cannot be read has led to.
type damage string

func (d damage) Error() string { return "the file is damaged: " + string(d) }

// guarded turns what reading a damaged file leads to into an error: a panic
// in a decoder, or a fault where a mapped file was cut short.
func guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damage(fmt.Sprintf("%.200s", strings.Join(strings.Fields(fmt.Sprint(p)), " ")))
		}
	}()
	return read()
}

// leastMapped is the size from which on a file is mapped: a process can have
// some 65,000 mappings, and a folder more files.
const leastMapped = 1 << 16

// errDevice refuses what may have no end.
var errDevice = errors.New("a device, expected a file or a pipe")

// ReadFile reads all of a file or a pipe. A device, which may have no end, is refused.
func ReadFile(name string) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func open(name string) (*os.File, error) {
	if info, err := os.Stat(name); err == nil && info.Mode()&fs.ModeDevice != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errDevice}
	}
	return os.Open(name)
}

// mapFile maps a file into memory.
func (m *mappings) mapFile(name string) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return m.mapped(f)
}

func (m *mappings) mapped(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // such as a pipe
		return io.ReadAll(f)
	}
	if info.Size() < leastMapped {
		data := make([]byte, info.Size())
		_, err := f.ReadAt(data, 0)
		return data, err
	}
	file, err := mapping.Map(f)
	if err != nil {
		return nil, err
	}
	m.list = append(m.list, file)
	return file.Bytes(), nil
}

// unpacked maps what write writes. It lies in a file of the folder for
// temporary files that has no name and is gone when it is unmapped. packed is
// the size of what it comes from.
func (m *mappings) unpacked(packed int, write func(io.Writer) error) ([]byte, error) {
	f, err := os.CreateTemp("", "conquer-data-*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	os.Remove(f.Name())
	w := bufio.NewWriterSize(&limited{f, max(smallest, mostUnpacked*int64(packed))}, 1<<20)
	if err := write(w); err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return m.mapped(f)
}

// limited is a file that refuses to grow beyond a size.
type limited struct {
	f    *os.File
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= int64(len(p)); l.left < 0 {
		return 0, fmt.Errorf("unpacks to more than %d times its size: unpack it by hand if that is meant", mostUnpacked)
	}
	n, err := l.f.Write(p)
	if err != nil {
		err = fmt.Errorf("unpacking to %s (TMPDIR): %w", filepath.Dir(l.f.Name()), err)
	}
	return n, err
}

// openArchive opens the files in a .tar.gz. Their names are for people alone:
// nothing is written under them.
func openArchive(path string, layout Layout, maps *mappings) (files []file, skipped int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	type member struct {
		name       string
		start, end int64
	}
	var members []member
	columns := false
	data, err := maps.unpacked(int(info.Size()), func(w io.Writer) error {
		r, err := tgz.OpenFile(path)
		if err != nil {
			return err
		}
		defer r.Close()
		at := int64(0)
		for {
			entry, err := r.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if entry.Typeflag != tar.TypeReg || strings.HasPrefix(filepath.Base(entry.Name), ".") {
				continue
			}
			n, err := io.Copy(w, r)
			if err != nil {
				return fmt.Errorf("%s: %w", entry.Name, err)
			}
			// Columns are read in place, so each member begins where they may.
			pad := -n & 63
			if _, err := w.Write(make([]byte, pad)); err != nil {
				return err
			}
			members = append(members, member{entry.Name, at, at + n})
			at += n + pad
			columns = columns || isColumns(entry.Name)
		}
	})
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
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

// lineAt numbers the line that a byte is on; where the file was cut short since,
// the byte has to do.
func lineAt(name string, data []byte, at int64) string {
	n := 1
	if guarded(func() error { n += bytes.Count(data[:at], []byte("\n")); return nil }) != nil {
		return fmt.Sprintf("%s byte %d", strings.TrimSuffix(name, " row "), at)
	}
	return fmt.Sprintf("%s%d", name, n)
}

// lines is a file of one JSON record a line; a Parquet file is unpacked into
// one, with a line for each row.
type lines struct {
	name   string
	data   []byte
	layout Layout
	rows   bool
}

func (l *lines) scan(take func(at int64) error) error {
	for at := 0; at < len(l.data); {
		line := l.line(at)
		if len(bytes.TrimSpace(line)) > 0 {
			if err := take(int64(at)); err != nil {
				return err
			}
		}
		at += len(line) + 1
	}
	return nil
}

func (l *lines) line(at int) []byte {
	line, _, _ := bytes.Cut(l.data[at:], []byte("\n"))
	return line
}

func (l *lines) record(at int64) (record, error) { return parseRecord(l.line(int(at)), l.layout) }

func (l *lines) where(at int64) string {
	if l.rows {
		return lineAt(l.name+": row ", l.data, at)
	}
	return lineAt(l.name+":", l.data, at)
}

func (l *lines) passed(at int64) int64 { return passed(at, l.data) }

// passed is a position that is a byte's, or the length of the data.
func passed(at int64, data []byte) int64 {
	if at < 0 {
		return int64(len(data))
	}
	return at
}

// array is a file with a JSON array of records.
type array struct {
	name   string
	data   []byte
	layout Layout
}

func (a *array) scan(take func(at int64) error) error {
	d := json.NewDecoder(bytes.NewReader(a.data))
	next := func() int64 { // where the next value begins
		at := int(d.InputOffset())
		for at < len(a.data) && strings.IndexByte(" \t\r\n,", a.data[at]) >= 0 {
			at++
		}
		return int64(at)
	}
	fail := func(at int64, err error) error { return fmt.Errorf("%s: %w", a.where(at), err) }
	at := next()
	if token, err := d.Token(); err != nil || token != json.Delim('[') {
		return fail(at, errors.New("expected an array of records (for one record a line, name the file .jsonl)"))
	}
	for d.More() {
		at = next()
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return fail(at, jsonProblem(err))
		}
		if err := take(at); err != nil {
			return err
		}
	}
	at = next()
	if _, err := d.Token(); err != nil {
		return fail(at, fmt.Errorf("the array does not end: %w", jsonProblem(err)))
	}
	if _, err := d.Token(); err != io.EOF {
		return fail(next(), errors.New("something follows the array of records"))
	}
	return nil
}

func (a *array) record(at int64) (r record, err error) {
	var raw json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(a.data[at:])).Decode(&raw); err != nil {
		return r, jsonProblem(err)
	}
	return parseRecord(raw, a.layout)
}

func (a *array) where(at int64) string {
	return lineAt(a.name+":", a.data, at)
}

func (a *array) passed(at int64) int64 { return passed(at, a.data) }

// plain is one text. It is read in blocks, which end with a line where that is
// possible: a sample out of a long text takes a block's encoding, not all of it.
type plain struct {
	name string
	data []byte
}

const blockBytes = 64 << 10

// seam is where block k begins.
func (p *plain) seam(k int) int {
	at := k * blockBytes
	if k == 0 || at >= len(p.data) {
		return min(at, len(p.data))
	}
	before := p.data[at-blockBytes/2 : at]
	for _, separator := range []byte("\n ") {
		if i := bytes.LastIndexByte(before, separator); i >= 0 {
			return at - len(before) + i + 1
		}
	}
	for !utf8.RuneStart(p.data[at]) {
		at--
	}
	return at
}

func (p *plain) scan(take func(at int64) error) error {
	if len(bytes.TrimSpace(p.data)) == 0 {
		return nil
	}
	for k := 0; p.seam(k) < len(p.data); k++ {
		if err := take(int64(k)); err != nil {
			return err
		}
	}
	return nil
}

// leadBytes is how much of a block the next one looks at for its first token's
// predecessor.
const leadBytes = 256

func (p *plain) record(at int64) (record, error) {
	start, end := p.seam(int(at)), p.seam(int(at)+1)
	r := record{layout: RawText, text: string(p.data[start:end]), open: end < len(p.data)}
	if at > 0 {
		lead := max(0, start-leadBytes)
		for !utf8.RuneStart(p.data[lead]) {
			lead++
		}
		r.lead = string(p.data[lead:start])
	}
	return r, nil
}

func (p *plain) where(at int64) string {
	return lineAt(p.name+":", p.data, min(at*blockBytes, int64(len(p.data)))) // at most half a block after its first line
}

func (p *plain) passed(at int64) int64 { return passed(at*blockBytes, p.data) }
