package checkpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// What a file or folder that is still being written is called: its name with this behind it. The name is fixed, so that
// what a killed process left behind is replaced by the next attempt instead of filling the disk.
const partial = ".partial"

// WriteFile makes or replaces the file at path with what write writes, in one step: readers, and a machine that loses its
// power, see either the old file or the complete new one. It writes to path.partial, waits for the disk, renames, and
// waits for the disk again. When anything fails, the old file stays, the partial one is removed, and the error names the
// path; a full disk says so. Two processes that write the same file at once are told apart: the second fails.
func WriteFile(path string, write func(io.Writer) error) error {
	f, err := createLocked(path + partial)
	if err != nil {
		return explain(path, err)
	}
	defer f.Close()
	if err = fill(f, write); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return explain(path, err)
	}
	return explain(path, syncFolder(filepath.Dir(path)))
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
		if err := lock(f); err != nil {
			f.Close()
			return nil, err
		}
		// Between the opening and the lock another process may have finished and renamed this very file away.
		if mine, err := f.Stat(); err == nil {
			if there, err := os.Stat(name); err == nil && os.SameFile(mine, there) {
				return f, f.Truncate(0)
			}
		}
		f.Close()
	}
	return nil, fmt.Errorf("%s is being replaced over and over", name)
}

// lock takes the lock that tells a file or folder in work from one left behind; closing f, or dying, gives it back.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("another process is writing %s", f.Name())
	}
	if errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.ENOLCK) {
		return nil // a file system without locks
	}
	return err
}

// syncFolder waits until the names in a folder are on the disk.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems cannot, and need not
		return err
	}
	return nil
}

// explain names the path that could not be written, and says in plain words when the disk is full. It keeps nil.
func explain(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("no space left on the disk of %s: free some and try again; what was there is unchanged (%w)", path, err)
	}
	return fmt.Errorf("writing %s: %w", path, err)
}
