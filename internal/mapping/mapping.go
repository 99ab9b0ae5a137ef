// Package mapping maps files into memory for reading. Files whose bytes become tensors are mapped
// by torch.OpenMapping instead, because those tensors keep the mapping alive.
package mapping

import (
	"fmt"
	"os"
	"syscall"
)

// A Mapping is a file's contents in memory. The file must not be shortened while it is mapped: the
// system ends a process that touches the missing part.
type Mapping struct{ data []byte }

// Map maps a regular file that is open for reading and not empty. The file may be closed
// afterwards.
func Map(f *os.File) (*Mapping, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ,
		syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be mapped into memory: %w", f.Name(), err)
	}
	return &Mapping{data}, nil
}

// Bytes returns the contents, which are read-only and valid until Close.
func (m *Mapping) Bytes() []byte { return m.data }

// Close unmaps the file.
func (m *Mapping) Close() error {
	if m.data == nil {
		return nil
	}
	data := m.data
	m.data = nil
	return syscall.Munmap(data)
}
