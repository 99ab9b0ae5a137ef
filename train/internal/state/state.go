// Package state keeps the checkpoints of a run in a folder.
//
// A checkpoint is a folder step-00000100 that appears in one atomic step: the model (or an
// adapter), the optimizer's state, state.json, and checksums.json with the checksums of all files.
// The file latest names the checkpoint to resume from. It moves when the checkpoint is complete.
package state

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/internal/wrongfile"
	"conquer/text/dataset"
)

const (
	file       = "state.json"
	latestFile = "latest"
	stepPrefix = "step-"
)

// The largest sizes of files, in bytes: that of a name, and of a file that has a model's config or
// lists a checkpoint's files.
const (
	maxName = 4 << 10
	maxFile = 32 << 20
)

// State is what a checkpoint holds besides tensors.
type State struct {
	Step      int           `json:"step"`
	Taken     int           `json:"optimizer_steps"` // without skipped steps
	Validated int           `json:"validated"`       // last step after which a validation was done
	Data      dataset.State `json:"data"`
	Began     time.Time     `json:"began,omitzero"` // when the run began
	Best      Best          `json:"best,omitzero"`
	Identity
}

// Best is what the validations of a run have shown, if there was one after a step.
type Best struct {
	Step  int     `json:"step"` // of the lowest validation loss; 0 if there is none
	Loss  float64 `json:"loss"`
	Mark  float64 `json:"mark"`  // the loss that an improvement must be below
	Stale int     `json:"stale"` // validations since the last improvement
}

// check returns an error if s cannot be the state of a run in the checkpoint name.
func (s State) check(name string) error {
	switch {
	case s.Step < 0 || stepName(s.Step) != name:
		return fmt.Errorf("step %d, expected that of the folder's name", s.Step)
	case s.Taken < 0 || s.Taken > s.Step:
		return fmt.Errorf("%d steps of the optimizer, expected 0 to %d", s.Taken, s.Step)
	case s.Validated < -1 || s.Validated > s.Step:
		return fmt.Errorf("a validation after step %d, expected -1 to %d", s.Validated, s.Step)
	case s.Data.Epoch < 0 || s.Data.Epoch > s.Step || s.Data.Index < 0:
		return fmt.Errorf("position %d of epoch %d of the data, expected epochs from 0 to %d",
			s.Data.Index, s.Data.Epoch, s.Step)
	case s.Best.Step < 0 || s.Best.Step > s.Step || s.Best.Stale < 0 || s.Best.Stale > s.Step:
		return fmt.Errorf("a best validation after step %d, and %d since the last improvement, "+
			"expected 0 to %d", s.Best.Step, s.Best.Stale, s.Step)
	}
	return nil
}

// parse reads the state.json of the checkpoint name.
func parse(name string, text []byte) (s State, err error) {
	if err := decode(text, &s); err != nil {
		return s, err
	}
	return s, s.check(name)
}

func stepName(step int) string { return fmt.Sprintf("%s%08d", stepPrefix, step) }

// isStep reports whether name is that of a checkpoint.
func isStep(name string) bool {
	step, err := strconv.Atoi(strings.TrimPrefix(name, stepPrefix))
	return err == nil && step >= 0 && name == stepName(step)
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
	Best int // the step of a further one that stays; 0 for none
}

// Step returns the path of the checkpoint after a step.
func (f Folder) Step(step int) string {
	return filepath.Join(f.Path, stepName(step))
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

// prune removes all checkpoints except Best and the last Keep others, and what killed runs left
// unfinished.
func (f Folder) prune(step int) error {
	entries, err := os.ReadDir(f.Path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), stepPrefix) &&
			strings.HasSuffix(e.Name(), atomicfile.Suffix) {
			if err := atomicfile.RemoveAll(filepath.Join(f.Path, e.Name())); err != nil {
				return err
			}
		}
	}
	complete, err := f.checkpoints()
	if err != nil {
		return err
	}
	best := filepath.Base(f.Step(f.Best))
	at := slices.Index(complete, filepath.Base(f.Step(step)))
	kept := 0
	for i, name := range slices.Backward(complete) {
		switch {
		case i > at: // a folder of a later step was never committed
		case f.Best > 0 && name == best:
			continue
		case kept < f.Keep:
			kept++
			continue
		}
		if err := atomicfile.Discard(filepath.Join(f.Path, name)); err != nil {
			return err
		}
	}
	return nil
}

// checkpoints lists the names of the complete checkpoints, the latest last.
func (f Folder) checkpoints() (names []string, err error) {
	entries, err := os.ReadDir(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() && isStep(e.Name()) {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int { // longer numbers are larger
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
	return names, err
}

// Count returns the number of complete checkpoints.
func (f Folder) Count() (int, error) {
	names, err := f.checkpoints()
	return len(names), err
}

// Clear removes all checkpoints. The latest goes last, and the pointer to it after that.
func (f Folder) Clear() error {
	names, err := f.checkpoints()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := atomicfile.Discard(filepath.Join(f.Path, name)); err != nil {
			return err
		}
	}
	err = atomicfile.Remove(filepath.Join(f.Path, latestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return atomicfile.SyncFolder(f.Path)
}

// Latest returns the path and the state of the checkpoint to resume from, "" if the folder has
// none. A run that was killed between its first checkpoint and the pointer has no pointer: then it
// is the last checkpoint.
func (f Folder) Latest() (dir string, s State, err error) {
	path := filepath.Join(f.Path, latestFile)
	pointer, err := wrongfile.Read(path, maxName)
	name := strings.TrimSuffix(string(pointer), "\n")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		names, err := f.checkpoints()
		if err != nil || len(names) == 0 {
			return "", s, err
		}
		name = names[len(names)-1]
	case err != nil:
		return "", s, err
	case !isStep(name):
		return "", s, f.Damaged(path, fmt.Errorf("%s holds %.80q, expected the name of a "+
			"checkpoint", path, name))
	}
	dir = filepath.Join(f.Path, name)
	if s, err = read(dir); err != nil {
		return "", s, f.Damaged(dir, err)
	}
	return dir, s, nil
}

// read reads the state of the checkpoint dir.
func read(dir string) (s State, err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%s, which %s names, does not exist", dir, latestFile)
	}
	list, err := readSums(dir)
	if err != nil {
		return s, err
	}
	if err := list.check(dir, file); err != nil {
		return s, err
	}
	path := filepath.Join(dir, file)
	text, err := wrongfile.Read(path, maxFile)
	if err != nil {
		return s, err
	}
	if s, err = parse(filepath.Base(dir), text); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Damaged adds to err, which says why the checkpoint dir cannot be read, how to resume from the
// last one before it that can be read.
func (f Folder) Damaged(dir string, err error) error {
	names, _ := f.checkpoints()
	for _, name := range slices.Backward(names) {
		other := filepath.Join(f.Path, name)
		if other == dir || isStep(filepath.Base(dir)) && name > filepath.Base(dir) {
			continue
		}
		if _, bad := read(other); bad != nil || VerifyAll(other) != nil {
			continue
		}
		return fmt.Errorf("%w; the checkpoint %s is intact: to resume from it, write its name "+
			"into the file %s", err, name, filepath.Join(f.Path, latestFile))
	}
	return fmt.Errorf("%w; no other checkpoint in %s is intact: start again with --overwrite", err,
		f.Path)
}

// VerifyAll is [Verify], also for the files of all ranks if the checkpoint has the native format.
func VerifyAll(dir string) error {
	if err := Verify(dir); err != nil || !Native(dir) {
		return err
	}
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.CheckFiles()
}

// Native reports whether the checkpoint dir has the native format.
func Native(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, checkpoint.NativeFile))
	return err == nil
}

// Lock keeps a second run out of the folders that a run writes to.
type Lock struct{ dirs []*os.File }

// NewLock creates the folders if necessary and locks them. It fails if another run holds a lock.
// Empty names, and further names of a folder, do nothing.
func NewLock(paths ...string) (*Lock, error) {
	l := &Lock{}
	for _, path := range paths {
		if path == "" {
			continue
		}
		if err := l.add(path); err != nil {
			l.Release()
			return nil, err
		}
	}
	return l, nil
}

func (l *Lock) add(path string) error {
	if err := atomicfile.MkdirAll(path); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := dir.Stat()
	if err != nil {
		dir.Close()
		return err
	}
	for _, other := range l.dirs {
		if locked, err := other.Stat(); err == nil && os.SameFile(locked, info) {
			return dir.Close()
		}
	}
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		dir.Close()
		return fmt.Errorf("another run is writing to %s", path)
	}
	l.dirs = append(l.dirs, dir)
	return nil
}

// Release releases the locks, and removes folders that are empty, the last one first. Symbolic
// links to folders stay.
func (l *Lock) Release() {
	if l == nil {
		return
	}
	for _, dir := range slices.Backward(l.dirs) {
		if info, err := os.Lstat(dir.Name()); err == nil && info.IsDir() {
			atomicfile.Remove(dir.Name()) // fails if there are files in it
		}
		dir.Close()
	}
	l.dirs = nil
}
