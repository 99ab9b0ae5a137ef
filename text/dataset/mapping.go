package dataset

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"conquer/internal/mapping"
)

// mappings are the files that a data set has mapped into memory.
type mappings struct {
	mu     sync.RWMutex
	closed bool
	list   []*mapping.Mapping
	small  int64 // bytes of the files that were read into memory

	packed, unpacked int64 // bytes of the files, and bytes that were unpacked from them

	bundle *bundle // of the files that are too many, nil if there are none
}

// whileOpen calls read and keeps the files mapped until it returns. It fails if
// they are unmapped already.
func (m *mappings) whileOpen(read func() error) error {
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
	if m.bundle != nil {
		err = errors.Join(err, m.bundle.file.Close())
	}
	m.closed, m.list, m.bundle = true, nil, nil
	return err
}

// mapFile maps a file into memory.
func (m *mappings) mapFile(name string) ([]byte, error) {
	f, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := m.mapOpen(f)
	m.packed += int64(len(data))
	return data, err
}

// minMapped is the size from which a file is mapped rather than read.
const minMapped = 1 << 16

// mapOpen maps an open file, or reads it if it is small or not regular.
func (m *mappings) mapOpen(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return io.ReadAll(f)
	}
	small := info.Size() < minMapped
	if (small && m.small >= maxSmall || !small && len(m.list) >= maxMapped) &&
		info.Size() <= bundleBytes/4 {
		return m.bundled(f, int(info.Size()))
	}
	if small {
		m.small += info.Size()
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

// A process can have about 65,000 mappings (vm.max_map_count), and a folder may have more files.
// When maxMapped files are mapped, or maxSmall bytes of small ones are in memory, the next ones are
// copied into bundles.
var (
	maxMapped       = 16384     // tests lower it
	maxSmall  int64 = 256 << 20 // tests lower it
)

// bundleBytes is the size of a bundle.
const bundleBytes = 1 << 30

// bundle is an unlinked file in TMPDIR that holds many files one after the other. It is mapped as a
// whole, and takes the space on the disk that is used.
type bundle struct {
	file *os.File
	data []byte
	used int
}

// bundled copies a file of the given size into a bundle and returns its place there.
func (m *mappings) bundled(f *os.File, size int) ([]byte, error) {
	if m.bundle == nil || m.bundle.used+size > bundleBytes {
		if err := m.newBundle(); err != nil {
			return nil, fmt.Errorf("copying files to %s (TMPDIR): %w", os.TempDir(), err)
		}
	}
	p := m.bundle
	at := p.used
	_, err := io.Copy(io.NewOffsetWriter(p.file, int64(at)),
		io.NewSectionReader(f, 0, int64(size)))
	if err != nil {
		return nil, fmt.Errorf("copying files to %s (TMPDIR): %w", os.TempDir(), err)
	}
	p.used = (at + size + 63) &^ 63 // columns are read in place
	return p.data[at : at+size : at+size], nil
}

func (m *mappings) newBundle() error {
	f, err := os.CreateTemp("", "conquer-data-*")
	if err != nil {
		return err
	}
	os.Remove(f.Name())
	var file *mapping.Mapping
	if err = f.Truncate(bundleBytes); err == nil {
		file, err = mapping.Map(f)
	}
	if err != nil {
		f.Close()
		return err
	}
	if m.bundle != nil {
		m.bundle.file.Close()
	}
	m.list, m.bundle = append(m.list, file), &bundle{file: f, data: file.Bytes()}
	return nil
}

// A small archive or Parquet file may claim to hold more than fits on the disk.
// It is unpacked to at most maxUnpackRatio times its size or minUnpackLimit
// bytes, whichever is larger.
var maxUnpackRatio int64 = 100 // tests lower it

var minUnpackLimit int64 = 64 << 20 // tests lower it

// unpack returns what write writes. Up to minMapped bytes stay in memory. More are in a mapped,
// unlinked file in TMPDIR, which the system deletes when it is unmapped. packed is the size of the
// source, which may have been unpacked itself: all that is unpacked counts against the files.
func (m *mappings) unpack(packed int, write func(io.Writer) error) ([]byte, error) {
	limit := min(unpackLimit(packed), unpackLimit(int(m.packed))-m.unpacked)
	u := &unpacked{left: limit}
	err := write(u)
	m.unpacked += limit - max(0, u.left)
	if u.file == nil {
		return u.start, err
	}
	defer u.file.Close()
	if err == nil {
		err = u.buffer.Flush()
	}
	if err != nil {
		return nil, err
	}
	return m.mapOpen(u.file)
}

// unpackLimit is the most bytes that packed bytes may unpack to.
func unpackLimit(packed int) int64 { return max(minUnpackLimit, maxUnpackRatio*int64(packed)) }

var errUnpacks = fmt.Errorf("unpacks to more than %d times its size: "+
	"unpack it by hand if that is intended", maxUnpackRatio)

// unpacked accepts at most left bytes more. It moves them to a file when they get many.
type unpacked struct {
	left   int64
	start  []byte // all of it, while file is nil
	file   *os.File
	buffer *bufio.Writer
}

func (u *unpacked) Write(p []byte) (int, error) {
	if u.left -= int64(len(p)); u.left < 0 {
		return 0, errUnpacks
	}
	if u.file == nil {
		if len(u.start)+len(p) < minMapped {
			u.start = append(u.start, p...)
			return len(p), nil
		}
		f, err := os.CreateTemp("", "conquer-data-*")
		if err != nil {
			return 0, err
		}
		os.Remove(f.Name())
		u.file, u.buffer = f, bufio.NewWriterSize(f, 1<<20)
		u.buffer.Write(u.start) // fits
	}
	n, err := u.buffer.Write(p)
	if err != nil {
		err = fmt.Errorf("unpacking to %s (TMPDIR): %w", filepath.Dir(u.file.Name()), err)
	}
	return n, err
}
