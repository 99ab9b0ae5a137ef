package atomicfile_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	. "conquer/internal/atomicfile"
	"conquer/internal/atomicfile/powerloss"
)

// content is what a folder holds: the text of each file by its path.
type content map[string]string

var (
	oldResult = content{"config": "old", "weights": "old weights", "weights-2": "w", "words": "a"}
	newResult = content{"config": "new", "weights": "new, longer weights", "words": "b"}
	// others are files of the folder that do not belong to the result.
	others = content{"README": "mine", "checkpoints/latest": "step-3", "checkpoints/step-3/s": "3"}
)

func kindOf(name string) Kind {
	switch name {
	case "config":
		return Entry
	case "weights", "weights-2", "words":
		return Part
	}
	return Other
}

func (c content) write(t testing.TB, dir string) {
	t.Helper()
	for name, text := range c {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// read reads a folder without what a killed replacement leaves in it.
func read(dir string) content {
	c := content{}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if name, _ := filepath.Rel(dir, path); err == nil && !e.IsDir() &&
			!strings.HasPrefix(name, ".") {
			text, _ := os.ReadFile(path)
			c[name] = string(text)
		}
		return nil
	})
	return c
}

// result is the part of c that belongs to a result.
func (c content) result() content {
	r := maps.Clone(c)
	maps.DeleteFunc(r, func(name, _ string) bool { return kindOf(name) == Other })
	return r
}

// replace writes newResult to path.
func replace(path string) error {
	f, err := OpenFolder(path, kindOf)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(newResult)) {
		err := Create(filepath.Join(f.Stage, name), func(w io.Writer) error {
			_, err := io.WriteString(w, newResult[name])
			return err
		})
		if err != nil {
			f.Abort()
			return err
		}
	}
	return f.Commit()
}

// checkCrash returns an error unless the folder at path holds a whole result, alone or with others,
// before and after it was recovered, and no other file.
func checkCrash(path string, existed, complete, byMoves bool) error {
	before := read(path).result()
	_, opens := before["config"]
	whole := maps.Equal(before, oldResult) && existed || maps.Equal(before, newResult)
	missing := len(before) == 0 && !existed || !opens && byMoves
	if !whole && !missing {
		return fmt.Errorf("a reader sees %v", before)
	}
	if err := Recover(path, kindOf); err != nil {
		return fmt.Errorf("recovering: %w", err)
	}
	after := read(path)
	if existed {
		for name, text := range others {
			if after[name] != text {
				return fmt.Errorf("after it was recovered it has no %s: %v", name, after)
			}
		}
	}
	isOld, isNew := maps.Equal(after.result(), oldResult), maps.Equal(after.result(), newResult)
	if complete && !isNew || existed && !isOld && !isNew || !existed && !isNew && len(after) > 0 {
		return fmt.Errorf("after it was recovered it holds %v", after)
	}
	if err := replace(path); err != nil {
		return fmt.Errorf("writing again: %w", err)
	}
	want := maps.Clone(newResult)
	if existed {
		maps.Copy(want, others)
	}
	if got := read(path); !maps.Equal(got, want) {
		return fmt.Errorf("written again, it holds %v", got)
	}
	return noRemains(filepath.Dir(path))
}

// noRemains returns an error if a folder holds a temporary file.
func noRemains(dir string) (err error) {
	filepath.WalkDir(dir, func(path string, e os.DirEntry, _ error) error {
		if name := filepath.Base(path); strings.HasPrefix(name, ".") ||
			strings.HasSuffix(name, Suffix) || strings.HasSuffix(name, ".replaced") {
			err = fmt.Errorf("%s is left", path)
		}
		return nil
	})
	return err
}

// replacements are the ways to replace a folder. begin returns the folder's path in root.
var replacements = map[string]struct {
	begin  func(t testing.TB, root string) string
	fail   func(int, powerloss.Op) error
	exists bool
	moves  bool // files are moved, or the folder is missing for a moment
}{
	"new": {begin: func(_ testing.TB, root string) string {
		return filepath.Join(root, "a/b/out")
	}},
	"by an exchange": {begin: existing, exists: true},
	"by two renames": {begin: existing, fail: powerloss.NoExchange, exists: true, moves: true},
	"by moving files": {exists: true, moves: true,
		begin: func(t testing.TB, root string) string {
			path := existing(t, root)
			t.Chdir(path)
			return "."
		}},
	"on an overlay": {begin: existing, exists: true, moves: true,
		fail: func(_ int, op powerloss.Op) error {
			if op.Kind == powerloss.Exchange {
				return syscall.EXDEV
			}
			return nil
		}},
	"through a link": {exists: true, begin: func(t testing.TB, root string) string {
		existing(t, root)
		link := filepath.Join(root, "link")
		if err := os.Symlink("out", link); err != nil {
			t.Fatal(err)
		}
		return link
	}},
}

func existing(t testing.TB, root string) string {
	path := filepath.Join(root, "out")
	oldResult.write(t, path)
	others.write(t, path)
	return path
}

func TestFolder_SurvivesPowerLoss(t *testing.T) {
	for name, c := range replacements {
		t.Run(name, func(t *testing.T) {
			root := powerloss.Folder(t)
			path := c.begin(t, root)
			r := powerloss.Record(t, root)
			r.Fail = c.fail
			if err := replace(path); err != nil {
				t.Fatal(err)
			}
			if path == "." {
				path = filepath.Join(root, "out")
			}
			Use(powerloss.Memory)
			if err := noRemains(root); err != nil {
				t.Error(err)
			}
			inRoot, _ := filepath.Rel(root, path)
			r.Crashes(t, 1000, func(dir string, _ []powerloss.Op, complete bool) error {
				return checkCrash(filepath.Join(dir, inRoot), c.exists, complete, c.moves)
			})
		})
	}
}

// Each operation fails in turn. An error leaves a whole result and no temporary files, and what
// could not be removed is removed by the next writer.
func TestFolder_SurvivesFailingDisk(t *testing.T) {
	for name, c := range replacements {
		t.Run(name, func(t *testing.T) {
			for n, failed := 0, true; failed; n++ {
				root := powerloss.Folder(t)
				path := c.begin(t, root)
				r := powerloss.Record(t, root)
				failed = false
				r.Fail = func(i int, op powerloss.Op) error {
					if c.fail != nil {
						if err := c.fail(i, op); err != nil {
							return err
						}
					}
					if i == n && !failed {
						failed = true
						return fmt.Errorf("operation %d, %v: %w", n, op, syscall.ENOSPC)
					}
					return nil
				}
				err := replace(path)
				Use(powerloss.Memory)
				if failed && !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("operation %d failed, and the error is %v", n, err)
				}
				if path == "." {
					path = filepath.Join(root, "out")
				}
				got := read(path).result()
				if !maps.Equal(got, newResult) && !maps.Equal(got, oldResult) && len(got) > 0 {
					_, opens := got["config"]
					if !c.moves || opens {
						t.Fatalf("after %v the folder holds %v", err, got)
					}
				}
				if err := checkCrash(path, c.exists, !failed, c.moves); err != nil {
					t.Fatalf("after operation %d failed: %v", n, err)
				}
			}
		})
	}
}

func TestFolder_SecondWriterFails(t *testing.T) {
	path := existing(t, t.TempDir())
	first, err := OpenFolder(path, kindOf)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Abort()
	if _, err := OpenFolder(path, kindOf); err == nil ||
		!strings.Contains(err.Error(), "another process is writing") {
		t.Errorf("a second writer got %v", err)
	}
}

func TestFolder_KeepsTheMode(t *testing.T) {
	path := existing(t, t.TempDir())
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := replace(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestWrite_SurvivesPowerLoss(t *testing.T) {
	for _, old := range []string{"", "old"} {
		root := t.TempDir()
		path := filepath.Join(root, "f")
		if old != "" {
			content{"f": old, "f" + Suffix: "left by a killed process, longer"}.write(t, root)
		}
		r := powerloss.Record(t, root)
		if err := WriteBytes(path, []byte("new")); err != nil {
			t.Fatal(err)
		}
		r.Crashes(t, 1000, func(dir string, _ []powerloss.Op, complete bool) error {
			got, err := os.ReadFile(filepath.Join(dir, "f"))
			if text := string(got); text == "new" || !complete && text == old &&
				(err == nil || old == "") {
				return nil
			}
			return fmt.Errorf("the file holds %q (%v)", got, err)
		})
	}
}

// A recorder that found nothing would prove nothing: writers that leave out a step must fail.
func TestCrashes_FindWhatWasNotFlushed(t *testing.T) {
	write := func(path string, flush, flushName bool) error {
		f, err := powerlossOpen(path + Suffix)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write([]byte("new")); err != nil {
			return err
		}
		if flush {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if err := Rename(path+Suffix, path); err != nil || !flushName {
			return err
		}
		return SyncFolder(filepath.Dir(path))
	}
	for _, c := range []struct{ flush, flushName, lost bool }{
		{true, true, false}, {false, true, true}, {true, false, true},
	} {
		root := t.TempDir()
		content{"f": "old"}.write(t, root)
		r := powerloss.Record(t, root)
		if err := write(filepath.Join(root, "f"), c.flush, c.flushName); err != nil {
			t.Fatal(err)
		}
		lost := false
		r.Crashes(t, 100, func(dir string, _ []powerloss.Op, complete bool) error {
			got, _ := os.ReadFile(filepath.Join(dir, "f"))
			lost = lost || string(got) != "new" && (complete || string(got) != "old")
			return nil
		})
		if lost != c.lost {
			t.Errorf("flushed %v, name flushed %v: found a loss: %v", c.flush, c.flushName, lost)
		}
	}
}

// powerlossOpen opens a new file on the recorded disk.
func powerlossOpen(path string) (File, error) {
	d := Use(System)
	defer Use(d)
	return d.Open(path, os.O_WRONLY|os.O_CREATE)
}
