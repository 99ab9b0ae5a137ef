package wrongfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Open opens a regular file for reading. Another kind of file is refused by its name: reading a
// device need not end, and opening a pipe waits for a writer.
func Open(path string) (*os.File, error) {
	if err := Regular(path); err != nil { // opening some devices has an effect
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat() // the path may have become another file
	if err == nil {
		err = regular(path, info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Regular returns an error that names the kind of the file at path, unless it is a regular file.
func Regular(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return regular(path, info)
}

func regular(path string, info fs.FileInfo) error {
	what := ""
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		what = "a folder"
	case mode&fs.ModeNamedPipe != 0:
		what = "a pipe"
	case mode&fs.ModeSocket != 0:
		what = "a socket"
	case mode&fs.ModeDevice != 0:
		what = "a device"
	default:
		what = "not a regular file"
	}
	return &fs.PathError{Op: "open", Path: path,
		Err: errors.New("it is " + what + ", expected a regular file")}
}

// Read reads a regular file of at most the given number of bytes.
func Read(path string, most int64) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := info.Size()
	var data bytes.Buffer
	if size <= most {
		data.Grow(int(size) + bytes.MinRead)
		size, err = data.ReadFrom(io.LimitReader(f, most+1)) // it may grow
	}
	if err == nil && size > most {
		err = fmt.Errorf("%s has %d bytes, expected at most %d", path, size, most)
	}
	return data.Bytes(), err
}
