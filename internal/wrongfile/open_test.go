package wrongfile_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"conquer/internal/wrongfile"
)

func TestOpen_RefusesWhatIsNoRegularFileByItsKind(t *testing.T) {
	dir := t.TempDir()
	pipe, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket")
	if err := syscall.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(pipe, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{pipe: "it is a pipe", link: "it is a pipe",
		socket: "it is a socket", "/dev/zero": "it is a device", dir: "it is a folder"} {
		f, err := wrongfile.Open(path) // without a writer of the pipe
		if err == nil {
			f.Close()
			t.Errorf("%s was opened", path)
		} else if text := err.Error(); !strings.Contains(text, path) ||
			!strings.Contains(text, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := wrongfile.Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestRead_RefusesALongFileBeforeItReadsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("12345"), 0o666); err != nil {
		t.Fatal(err)
	}
	if data, err := wrongfile.Read(path, 5); err != nil || string(data) != "12345" {
		t.Errorf("%q, %v", data, err)
	}
	_, err := wrongfile.Read(path, 4)
	if want := path + " has 5 bytes, expected at most 4"; err == nil || err.Error() != want {
		t.Errorf("%v, expected %s", err, want)
	}
	if err := os.Truncate(path, 1<<40); err != nil { // without blocks on the disk
		t.Fatal(err)
	}
	if _, err := wrongfile.Read(path, 1<<20); err == nil {
		t.Error("a file of 1 TB was read")
	}
}
