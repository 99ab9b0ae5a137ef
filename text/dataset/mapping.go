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
	m.closed, m.list = true, nil
	return err
}

// mapFile maps a file into memory.
func (m *mappings) mapFile(name string) ([]byte, error) {
	f, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return m.mapOpen(f)
}

// minMapped is the size from which a file is mapped rather than read. A process
// can have about 65,000 mappings, and a folder may have more files.
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
	if info.Size() < minMapped {
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

// A small archive or Parquet file may claim to hold more than fits on the disk.
// It is unpacked to at most maxUnpackRatio times its size or minUnpackLimit
// bytes, whichever is larger.
const maxUnpackRatio = 200

var minUnpackLimit int64 = 1 << 30 // tests lower it

// unpack returns what write writes. Up to minMapped bytes stay in memory. More are in a mapped,
// unlinked file in TMPDIR, which the system deletes when it is unmapped. packed is the size of the
// source.
func (m *mappings) unpack(packed int, write func(io.Writer) error) ([]byte, error) {
	u := &unpacked{left: max(minUnpackLimit, maxUnpackRatio*int64(packed))}
	err := write(u)
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
