// Package state keeps the checkpoints of a run in a folder.
//
// A checkpoint is a folder step-00000100 that appears in one atomic step: the model (or an
// adapter), the optimizer's state, and state.json. The file latest names the checkpoint to resume
// from. It moves when the checkpoint is complete.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/text/dataset"
)

const (
	file       = "state.json"
	latestFile = "latest"
	stepPrefix = "step-"
)

// State is what a checkpoint holds besides tensors.
type State struct {
	Step      int           `json:"step"`
	Taken     int           `json:"optimizer_steps"` // without skipped steps
	Validated int           `json:"validated"`       // last step after which a validation was done
	Data      dataset.State `json:"data"`
	Began     time.Time     `json:"began,omitzero"` // when the run began
	Identity
}

// Write writes s into a checkpoint that is being made.
func (s State) Write(stage string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(stage, file), append(text, '\n'))
}

// Folder is a folder of checkpoints.
type Folder struct {
	Path string
	Keep int // number of checkpoints that stay
}

// Step returns the path of the checkpoint after a step.
func (f Folder) Step(step int) string {
	return filepath.Join(f.Path, fmt.Sprintf("%s%08d", stepPrefix, step))
}

// Commit makes the checkpoint after a step, which is complete, the one to resume from, and removes
// old ones.
func (f Folder) Commit(step int) error {
	name := filepath.Base(f.Step(step))
	if err := atomicfile.WriteBytes(filepath.Join(f.Path, latestFile),
		[]byte(name+"\n")); err != nil {
		return err
	}
	return f.prune(step)
}

// prune removes all checkpoints except the last Keep, and what killed runs left unfinished.
func (f Folder) prune(step int) error {
	entries, err := os.ReadDir(f.Path)
	if err != nil {
		return err
	}
	var complete []string
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), stepPrefix) {
			continue
		}
		if strings.HasSuffix(e.Name(), ".partial") {
			if err := os.RemoveAll(filepath.Join(f.Path, e.Name())); err != nil {
				return err
			}
			continue
		}
		complete = append(complete, e.Name())
	}
	slices.Sort(complete)
	at := slices.Index(complete, filepath.Base(f.Step(step)))
	for i, name := range complete { // a folder of a later step was never committed
		if i > at-f.Keep && i <= at {
			continue
		}
		if err := os.RemoveAll(filepath.Join(f.Path, name)); err != nil {
			return err
		}
	}
	return nil
}

// Clear removes all checkpoints. The pointer to the latest goes first.
func (f Folder) Clear() error {
	entries, err := os.ReadDir(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	err = os.Remove(filepath.Join(f.Path, latestFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := atomicfile.SyncFolder(f.Path); err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), stepPrefix) {
			if err := os.RemoveAll(filepath.Join(f.Path, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Latest returns the path and the state of the checkpoint to resume from, "" if the folder has
// none.
func (f Folder) Latest() (dir string, s State, err error) {
	pointer, err := os.ReadFile(filepath.Join(f.Path, latestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", s, nil
	} else if err != nil {
		return "", s, err
	}
	name := strings.TrimSpace(string(pointer))
	if !filepath.IsLocal(name) || !strings.HasPrefix(name, stepPrefix) {
		return "", s, fmt.Errorf("%s holds %.80q, expected the name of a checkpoint",
			filepath.Join(f.Path, latestFile), name)
	}
	dir = filepath.Join(f.Path, name)
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return "", s, fmt.Errorf("the latest checkpoint cannot be read: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return "", s, fmt.Errorf("%s: %w", filepath.Join(dir, file), err)
	}
	return dir, s, nil
}

// Native reports whether the checkpoint dir has the native format.
func Native(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, checkpoint.NativeFile))
	return err == nil
}

// Lock keeps a second run out of a folder of checkpoints.
type Lock struct{ dir *os.File }

// NewLock creates the folder at path if necessary and locks it. It fails if another run holds the
// lock.
func NewLock(path string) (*Lock, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.MkdirAll(path, 0o777); err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		dir.Close()
		return nil, fmt.Errorf("another run is writing its checkpoints to %s", path)
	}
	return &Lock{dir}, nil
}

// Release releases the lock, and removes the folder if it is empty.
func (l *Lock) Release() {
	if l != nil {
		os.Remove(l.dir.Name())
		l.dir.Close()
	}
}
