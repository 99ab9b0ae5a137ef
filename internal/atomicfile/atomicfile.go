// Package atomicfile writes files so that readers see either the old file or the complete new one,
// also after a power failure: it writes under a temporary name, flushes the file, renames it and
// flushes the folder.
package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// Suffix is appended to the name of a file or folder while it is being written. The name is fixed,
// so the next attempt replaces what a killed process left behind.
const Suffix = ".partial"

// Write makes or replaces the file at path with what write writes. On failure the old file stays,
// the partial one is removed, and the error names the path; a full disk gets its own message. If
// two processes write the same file at the same time, the second fails.
func Write(path string, write func(io.Writer) error) error {
	f, err := createLocked(path + Suffix)
	if err != nil {
		return Explain(path, err)
	}
	defer f.Close()
	if err = fill(f, write); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return Explain(path, err)
	}
	return Explain(path, SyncFolder(filepath.Dir(path)))
}

// WriteBytes is Write of data.
func WriteBytes(path string, data []byte) error {
	return Write(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Create writes a new file and flushes it, without a temporary name: for files inside a folder that
// is itself renamed when it is complete. It fails if the file exists.
func Create(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	if err := fill(f, write); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// fill writes through a buffer and waits until the file is on the disk.
func fill(f *os.File, write func(io.Writer) error) error {
	b := bufio.NewWriterSize(f, 1<<20)
	if err := write(b); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return f.Sync()
}

// createLocked creates an empty file, or empties a left-over one, that no other process is writing.
func createLocked(name string) (*os.File, error) {
	for range 100 {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return nil, err
		}
		if err := Lock(f); err != nil {
			f.Close()
			return nil, err
		}
		// Another process may have finished and renamed this file between the open and the lock.
		if mine, err := f.Stat(); err == nil {
			if there, err := os.Stat(name); err == nil && os.SameFile(mine, there) {
				return f, f.Truncate(0)
			}
		}
		f.Close()
	}
	return nil, fmt.Errorf("%s is being replaced over and over", name)
}

// Lock takes the lock that distinguishes a file or folder being written from one left behind.
// Closing f releases it.
func Lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("another process is writing %s", f.Name())
	}
	if errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) || errors.Is(err,
		syscall.ENOLCK) {
		return nil // a file system without locks
	}
	return err
}

// SyncFolder waits until the names in a folder are on the disk.
func SyncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// Some file systems cannot flush a folder, and need not.
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// Explain adds the path that could not be written to err, and says when the disk is full. It
// returns nil for nil.
func Explain(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("no space left on the disk of %s: free some and try again; existing "+
			"files are unchanged (%w)", path, err)
	}
	return fmt.Errorf("writing %s: %w", path, err)
}
