// Package atomicfile writes files so that readers see either the old file or the complete new one,
// also after a power failure: it writes under a temporary name, flushes the file, renames it and
// flushes the folder.
package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
		err = current().Rename(f.Name(), path)
	}
	if err != nil {
		current().Remove(f.Name())
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
	f, err := current().Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	if err := fill(f, write); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// Append opens a file to append to, and makes it if there is none. What is written to it is on the
// disk after its Sync.
func Append(path string) (File, error) {
	f, err := current().Open(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return nil, err
	}
	if err := SyncFolder(filepath.Dir(path)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fill writes through a buffer and waits until the file is on the disk.
func fill(f File, write func(io.Writer) error) error {
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
func createLocked(name string) (File, error) {
	for range 100 {
		f, err := current().Open(name, os.O_RDWR|os.O_CREATE)
		if err != nil {
			return nil, err
		}
		if err := Lock(f.Handle()); err != nil {
			f.Close()
			return nil, err
		}
		if !replaced(f.Handle(), name) {
			if err := f.Truncate(0); err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("%s is being replaced over and over", name)
}

// replaced reports whether another process has renamed or removed the file or folder between its
// opening and its locking.
func replaced(f *os.File, name string) bool {
	mine, err := f.Stat()
	if err != nil {
		return true
	}
	there, err := os.Stat(name)
	return err != nil || !os.SameFile(mine, there)
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
func SyncFolder(dir string) error { return current().SyncFolder(dir) }

// Rename renames a file or folder. The caller flushes the folders that hold the names.
func Rename(from, to string) error { return current().Rename(from, to) }

// Remove removes a file or an empty folder.
func Remove(name string) error { return current().Remove(name) }

// MkdirAll makes a folder and its missing parents, and flushes the folders that it made them in.
func MkdirAll(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := current().Mkdir(dir); err != nil {
		if info, stat := os.Stat(dir); stat == nil && info.IsDir() {
			return nil // another process was faster
		}
		return err
	}
	return SyncFolder(parent)
}

// RemoveAll removes a file, or a folder with all that it holds. It does nothing if there is none.
func RemoveAll(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if info.IsDir() {
		if err := empty(path); err != nil {
			return err
		}
	}
	if err := current().Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// empty removes all that a folder holds.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Discard removes a folder so that no part of it stays under its name: it first renames it.
func Discard(dir string) error {
	if err := RemoveAll(dir + Suffix); err != nil {
		return err
	}
	err := current().Rename(dir, dir+Suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := SyncFolder(filepath.Dir(dir)); err != nil {
		return err
	}
	return RemoveAll(dir + Suffix)
}

// isUnsupported reports whether the file system does not know the operation that failed with err.
func isUnsupported(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) ||
		errors.Is(err, syscall.ENOTSUP)
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
