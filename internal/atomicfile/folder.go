package atomicfile

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

	"golang.org/x/sys/unix"
)

// Kind says what an entry of a folder is to the result that the folder holds.
type Kind int

// The kinds, in the order in which [Folder.Commit] puts files in place where it must move them one
// by one.
const (
	Other Kind = iota // not of the result: it stays when the result is replaced
	Part              // a file of the result
	Entry             // a file without which no reader takes the folder for a result
)

// Folder is a result, a folder, that is being made or replaced. Its files are written to Stage and
// flushed, then Commit puts them in place in one step: where the folder exists, by exchanging it
// with Stage. Entries of kind Other are then moved from the old folder to the new one.
//
// A file system that cannot exchange gets two renames, with a moment in between in which there is
// no folder. Where the folder cannot be renamed (it is a mount point or the working directory, or
// its parent cannot be written to), files are moved one by one: without its entry files the folder
// does not open meanwhile. In each case [Recover] completes what a killed process began.
type Folder struct {
	Path  string // of the result, without symbolic links
	Stage string // temporary folder
	kind  func(name string) Kind
	lock  *os.File // the stage, locked
	old   bool     // the folder exists
	fixed bool     // the folder cannot be renamed
}

const (
	// plan is a file in a finished stage that replaces a folder: it lists the names of the stage.
	// It stays in the folder until the old one has been removed.
	plan = ".replacing"
	// moving is the plan's name in a stage whose files are being moved one by one.
	moving = ".moving"
	// aside is appended to the name of an old folder between two renames.
	aside = ".replaced"
)

// OpenFolder begins to make the result at path, or to replace it. kind tells what the entry name of
// an existing folder is. If two processes write the same result at the same time, the second fails.
func OpenFolder(path string, kind func(name string) Kind) (*Folder, error) {
	if err := Recover(path, kind); err != nil {
		return nil, err
	}
	f, err := locate(path, kind)
	if err != nil {
		return nil, err
	}
	if !f.old {
		if err := MkdirAll(filepath.Dir(f.Path)); err != nil {
			return nil, err
		}
	}
	err = f.lockStage()
	if err != nil && f.old && !f.fixed && errors.Is(err, fs.ErrPermission) {
		f.inside()
		err = f.lockStage()
	}
	if err == nil {
		err = empty(f.Stage)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// locate finds out where the result is and whether its folder can be renamed.
func locate(path string, kind func(name string) Kind) (*Folder, error) {
	f := &Folder{kind: kind}
	var err error
	if f.Path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		if to, err := os.Readlink(f.Path); err == nil {
			return nil, fmt.Errorf("it is a symbolic link to %s, which does not exist", to)
		}
		f.Stage = f.Path + Suffix
		return f, nil
	} else if err != nil {
		return nil, err
	}
	f.Path, f.Stage, f.old = real, real+Suffix, true
	info, err := os.Stat(real)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, errors.New("it is a file, expected a folder")
	}
	if mount(real) != mount(filepath.Dir(real)) || holdsWorkingDirectory(real) {
		f.inside()
	}
	return f, nil
}

// inside puts the stage into the folder, whose files are then moved one by one.
func (f *Folder) inside() { f.Stage, f.fixed = filepath.Join(f.Path, Suffix), true }

// mount identifies the mounted file system that holds a folder.
func mount(dir string) (id [3]uint64) {
	var s unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &s) != nil {
		return id
	}
	return [3]uint64{s.Mnt_id, uint64(s.Dev_major), uint64(s.Dev_minor)}
}

// holdsWorkingDirectory reports whether the working directory is dir or a folder in it.
func holdsWorkingDirectory(dir string) bool {
	here, err := os.Getwd()
	if err != nil {
		return false
	}
	if here, err = filepath.EvalSymlinks(here); err != nil {
		return false
	}
	return here == dir || strings.HasPrefix(here, dir+string(filepath.Separator))
}

// lockStage makes the stage and locks it. If another process has exchanged it with the result
// meanwhile, it is the old folder, and the result has a plan.
func (f *Folder) lockStage() error {
	for range 100 {
		if err := current().Mkdir(f.Stage); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		stage, err := lockFolder(f.Stage)
		if err != nil {
			return err
		}
		if stage == nil {
			continue
		}
		if exists(filepath.Join(f.Path, plan)) {
			stage.Close()
			return fmt.Errorf("another process is writing %s", f.Path)
		}
		f.lock = stage
		return nil
	}
	return fmt.Errorf("%s is being replaced over and over", f.Stage)
}

// lockFolder locks a folder. It returns nil if the folder was renamed or removed meanwhile.
func lockFolder(name string) (*os.File, error) {
	dir, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := Lock(dir); err != nil {
		dir.Close()
		return nil, err
	}
	if replaced(dir, name) {
		dir.Close()
		return nil, nil
	}
	return dir, nil
}

// Close releases the folder's lock.
func (f *Folder) Close() {
	if f.lock != nil {
		f.lock.Close()
	}
	f.lock = nil
}

// Abort removes the stage. The old result stays.
func (f *Folder) Abort() {
	RemoveAll(f.Stage)
	f.Close()
}

// Commit puts the stage in place. After an error, the folder holds the whole old result or the
// whole new one.
func (f *Folder) Commit() error {
	defer f.Close()
	err := f.prepare()
	if err != nil {
		RemoveAll(f.Stage)
		return err
	}
	if f.old {
		return f.replace()
	}
	if err := current().Rename(f.Stage, f.Path); err != nil {
		RemoveAll(f.Stage)
		return err
	}
	return SyncFolder(filepath.Dir(f.Path))
}

// prepare flushes the stage and, if it replaces a folder, writes its plan. From then on the new
// result is complete, and Recover puts it in place.
func (f *Folder) prepare() error {
	if err := SyncFolder(f.Stage); err != nil {
		return err
	}
	if !f.old {
		return SyncFolder(filepath.Dir(f.Stage))
	}
	entries, err := os.ReadDir(f.Stage)
	if err != nil {
		return err
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	text, err := json.Marshal(names)
	if err != nil {
		return err
	}
	if info, err := os.Stat(f.Path); err == nil && !f.fixed {
		if err := os.Chmod(f.Stage, info.Mode().Perm()|info.Mode()&os.ModeSetgid); err != nil {
			return err
		}
	}
	if err := SyncFolder(filepath.Dir(f.Stage)); err != nil {
		return err
	}
	return WriteBytes(filepath.Join(f.Stage, plan), text)
}

// replace puts a prepared stage in the place of the old folder.
func (f *Folder) replace() error {
	if f.fixed {
		return f.moveFiles()
	}
	parent := filepath.Dir(f.Path)
	err := current().Exchange(f.Stage, f.Path)
	switch {
	case cannotRename(err):
		f.fixed = true
		return f.moveFiles()
	case isUnsupported(err):
		if err = current().Rename(f.Path, f.Path+aside); err == nil {
			err = completeRenames(f.Path)
		}
	}
	if err != nil {
		if exists(f.Path) && !exists(filepath.Join(f.Path, plan)) {
			RemoveAll(f.Stage)
		}
		return err
	}
	if err := SyncFolder(parent); err != nil {
		return err
	}
	return finish(f.Path, f.kind)
}

// completeRenames completes the renames that stand for an exchange, after the first of them.
func completeRenames(path string) error {
	if !exists(path) {
		if err := current().Rename(path+Suffix, path); err != nil {
			current().Rename(path+aside, path) // back to the old result
			return err
		}
	}
	if err := SyncFolder(filepath.Dir(path)); err != nil {
		return err
	}
	return current().Rename(path+aside, path+Suffix)
}

// finish ends a replacement after the exchange: it moves the entries of kind Other from the old
// folder to the new one at path, and removes the old folder and the plan.
func finish(path string, kind func(string) Kind) error {
	old := path + Suffix
	entries, err := os.ReadDir(old)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		for _, e := range entries {
			to := filepath.Join(path, e.Name())
			if kind(e.Name()) != Other || exists(to) || temporary(e.Name()) {
				continue
			}
			if err := current().Rename(filepath.Join(old, e.Name()), to); err != nil {
				return err
			}
		}
		for _, dir := range []string{path, old} {
			if err := SyncFolder(dir); err != nil {
				return err
			}
		}
		if err := RemoveAll(old); err != nil {
			return err
		}
		if err := SyncFolder(filepath.Dir(path)); err != nil {
			return err
		}
	}
	if err := current().Remove(filepath.Join(path, plan)); err != nil &&
		!errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return SyncFolder(path)
}

// moveFiles moves the files of a prepared stage into the folder. It first removes the old entry
// files and adds the new ones last. It can begin again after it was killed.
func (f *Folder) moveFiles() error {
	list := filepath.Join(f.Stage, moving)
	if !exists(list) {
		if err := current().Rename(filepath.Join(f.Stage, plan), list); err != nil {
			return err
		}
		if err := SyncFolder(f.Stage); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	var names []string
	if err := json.Unmarshal(text, &names); err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	entries, err := os.ReadDir(f.Path)
	if err != nil {
		return err
	}
	remove := func(which func(name string) bool) error {
		for _, e := range entries {
			if kind := f.kind(e.Name()); kind != Other && which(e.Name()) {
				if err := RemoveAll(filepath.Join(f.Path, e.Name())); err != nil {
					return err
				}
			}
		}
		return SyncFolder(f.Path)
	}
	// An entry file that is no longer in the stage is a new one.
	isOld := func(name string) bool {
		return !slices.Contains(names, name) || exists(filepath.Join(f.Stage, name))
	}
	err = remove(func(name string) bool { return f.kind(name) == Entry && isOld(name) })
	if err != nil {
		return err
	}
	move := func(entry bool) error {
		for _, name := range names {
			from, to := filepath.Join(f.Stage, name), filepath.Join(f.Path, name)
			if (f.kind(name) == Entry) != entry || !exists(from) {
				continue
			}
			if info, err := os.Lstat(to); err == nil && info.IsDir() {
				if err := RemoveAll(to); err != nil {
					return err
				}
			}
			if err := current().Rename(from, to); err != nil {
				return err
			}
		}
		if err := SyncFolder(f.Path); err != nil {
			return err
		}
		return SyncFolder(f.Stage)
	}
	if err := move(false); err != nil {
		return err
	}
	if err := remove(func(name string) bool { return !slices.Contains(names, name) }); err != nil {
		return err
	}
	if err := move(true); err != nil {
		return err
	}
	if err := RemoveAll(f.Stage); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(f.Stage))
}

// temporary reports whether an entry of a result's folder is of this package.
func temporary(name string) bool { return name == plan || name == moving || name == Suffix }

// Recover completes the replacement of the folder at path that a killed process had begun, and does
// nothing if there is none. It fails if a process is replacing the folder now. A stage that was not
// complete is left for the next [OpenFolder].
func Recover(path string, kind func(name string) Kind) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	outer, inner := path+Suffix, filepath.Join(path, Suffix)
	var held string
	switch {
	case exists(path + aside):
		held = path + aside
	case exists(filepath.Join(path, plan)):
		held = path
	case exists(filepath.Join(outer, plan)), exists(filepath.Join(outer, moving)):
		held = outer
	case exists(filepath.Join(inner, plan)), exists(filepath.Join(inner, moving)):
		held = inner
	default:
		return nil
	}
	lock, err := lockFolder(held)
	if err != nil {
		return err
	}
	if lock == nil {
		return fmt.Errorf("another process is writing %s", path)
	}
	defer lock.Close()
	switch held {
	case path + aside:
		if err := completeRenames(path); err != nil {
			return err
		}
		if err := SyncFolder(filepath.Dir(path)); err != nil {
			return err
		}
		return finish(path, kind)
	case path:
		return finish(path, kind)
	}
	f, err := locate(path, kind)
	if err != nil {
		return err
	}
	f.fixed = held == inner || exists(filepath.Join(held, moving))
	if f.Stage = held; f.old {
		return f.replace()
	}
	if err := current().Rename(f.Stage, f.Path); err != nil {
		return err
	}
	if err := SyncFolder(filepath.Dir(f.Path)); err != nil {
		return err
	}
	return finish(f.Path, kind)
}

// Interrupted reports whether there is nothing at path because a process was killed between the two
// renames that replace a folder.
func Interrupted(path string) bool { return !exists(path) && exists(filepath.Clean(path)+aside) }

// cannotRename reports whether err says that a folder cannot be renamed: it is a mount point, or
// belongs to a lower layer of an overlay.
func cannotRename(err error) bool {
	return errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EBUSY) ||
		errors.Is(err, fs.ErrPermission)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
