package atomicfile

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Disk is every operation by which this package changes a file system. Tests put one in place that
// records the operations or lets one fail.
type Disk interface {
	// Open opens a file for writing, with the flags of os.OpenFile.
	Open(name string, flags int) (File, error)
	Mkdir(name string) error
	Rename(from, to string) error
	// Exchange swaps two files or folders in one atomic step. It fails with EINVAL, ENOSYS or
	// ENOTSUP where the file system cannot.
	Exchange(a, b string) error
	// Remove removes a file or an empty folder.
	Remove(name string) error
	// SyncFolder waits until the names in a folder are on the disk.
	SyncFolder(name string) error
}

// File is an open file of a [Disk].
type File interface {
	Name() string
	Write(data []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
	// Handle is the file itself, to lock and to describe it.
	Handle() *os.File
}

var disk atomic.Pointer[Disk]

func init() { Use(System) }

// Use puts a disk in place and returns the previous one.
func Use(d Disk) Disk {
	if old := disk.Swap(&d); old != nil {
		return *old
	}
	return nil
}

func current() Disk { return *disk.Load() }

// System is the operating system's disk.
var System Disk = systemDisk{}

type systemDisk struct{}

type systemFile struct{ *os.File }

func (f systemFile) Handle() *os.File { return f.File }

func (systemDisk) Open(name string, flags int) (File, error) {
	f, err := os.OpenFile(name, flags, 0o666)
	if err != nil {
		return nil, err
	}
	return systemFile{f}, nil
}

func (systemDisk) Mkdir(name string) error      { return os.Mkdir(name, 0o777) }
func (systemDisk) Rename(from, to string) error { return os.Rename(from, to) }
func (systemDisk) Remove(name string) error     { return os.Remove(name) }

func (systemDisk) Exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	return nil
}

func (systemDisk) SyncFolder(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	// Some file systems cannot flush a folder, and need not.
	if err := f.Sync(); err != nil && !isUnsupported(err) {
		return err
	}
	return nil
}
