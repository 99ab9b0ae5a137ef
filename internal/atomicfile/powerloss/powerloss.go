// Package powerloss tests what a power failure, a kill or a failing disk leaves of files that
// package atomicfile writes.
//
// A [Recorder] performs the operations on a real folder and records them. [Recorder.Crashes] then
// makes the states that a crash may have left after each of them. What it assumes of a file system
// is less than ext4, xfs and btrfs promise:
//
//   - A write or truncation that no Sync of the file followed may be missing, complete, or its
//     first part with zeros after it, independently of the other ones.
//   - A change of names (create, mkdir, rename, exchange, remove) is atomic. Until a SyncFolder of
//     every folder that it changes, it may be missing, although later ones are there. Only changes
//     of the same name, and those inside a folder that was made, stay in order.
//   - Sync of a file does not keep its name.
package powerloss

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"conquer/internal/atomicfile"
)

// The operations of a disk.
const (
	Open       = "open"
	Write      = "write"
	Truncate   = "truncate"
	Sync       = "sync"
	Mkdir      = "mkdir"
	Rename     = "rename"
	Exchange   = "exchange"
	Remove     = "remove"
	SyncFolder = "sync folder"
)

// Op is an operation of a disk.
type Op struct {
	Kind string
	Name string // of the file or folder
	To   string // new name

	made   bool // the file is new
	file   int  // number of the open file
	offset int64
	data   []byte
}

func (o Op) String() string { return strings.TrimSpace(o.Kind + " " + o.Name + " " + o.To) }

// Memory is the system's disk without flushing, which is enough where nothing crashes.
var Memory atomicfile.Disk = memory{atomicfile.System}

type memory struct{ atomicfile.Disk }

func (memory) SyncFolder(name string) error {
	_, err := os.Stat(name)
	return err
}

func (m memory) Open(name string, flags int) (atomicfile.File, error) {
	f, err := m.Disk.Open(name, flags)
	if err != nil {
		return nil, err
	}
	return memoryFile{f}, nil
}

type memoryFile struct{ atomicfile.File }

func (memoryFile) Sync() error { return nil }

// Recorder is an [atomicfile.Disk] that records the operations below a folder.
type Recorder struct {
	// Fail, if not nil, is called before each operation with its index, and may return an error in
	// its place.
	Fail func(index int, op Op) error

	root   string
	before *node
	mu     sync.Mutex
	ops    []Op
	files  int
}

// NoExchange makes each exchange fail as on a file system that has none.
func NoExchange(_ int, op Op) error {
	if op.Kind == Exchange {
		return syscall.EINVAL
	}
	return nil
}

// Record records the operations of package atomicfile in the folder root until the test ends.
func Record(t testing.TB, root string) *Recorder {
	t.Helper()
	r := &Recorder{root: root}
	var err error
	if r.before, err = read(root); err != nil {
		t.Fatal(err)
	}
	old := atomicfile.Use(r)
	t.Cleanup(func() { atomicfile.Use(old) })
	return r
}

// Ops returns the operations so far.
func (r *Recorder) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ops)
}

// do performs an operation and records it, unless it fails.
func (r *Recorder) do(op Op, perform func() error) error {
	return r.doOpen(&op, perform)
}

// doOpen is do of an operation that perform completes.
func (r *Recorder) doOpen(op *Op, perform func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Fail != nil {
		if err := r.Fail(len(r.ops), *op); err != nil {
			return err
		}
	}
	if err := perform(); err != nil {
		return err
	}
	r.ops = append(r.ops, *op)
	return nil
}

// Open opens a real file.
func (r *Recorder) Open(name string, flags int) (atomicfile.File, error) {
	_, err := os.Lstat(name)
	op := Op{Kind: Open, Name: name, made: errors.Is(err, fs.ErrNotExist)}
	var f *recorded
	err = r.doOpen(&op, func() error {
		real, err := atomicfile.System.Open(name, flags)
		if err != nil {
			return err
		}
		r.files++
		op.file = r.files
		f = &recorded{File: real, r: r, number: r.files}
		if info, err := real.Handle().Stat(); err == nil && flags&os.O_APPEND != 0 {
			f.offset = info.Size()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Mkdir makes a real folder.
func (r *Recorder) Mkdir(name string) error {
	return r.do(Op{Kind: Mkdir, Name: name},
		func() error { return atomicfile.System.Mkdir(name) })
}

// Rename renames a real file.
func (r *Recorder) Rename(from, to string) error {
	return r.do(Op{Kind: Rename, Name: from, To: to},
		func() error { return atomicfile.System.Rename(from, to) })
}

// Exchange swaps real files.
func (r *Recorder) Exchange(a, b string) error {
	return r.do(Op{Kind: Exchange, Name: a, To: b},
		func() error { return atomicfile.System.Exchange(a, b) })
}

// Remove removes a real file.
func (r *Recorder) Remove(name string) error {
	return r.do(Op{Kind: Remove, Name: name},
		func() error { return atomicfile.System.Remove(name) })
}

// SyncFolder only records: what is in the page cache is enough for a test.
func (r *Recorder) SyncFolder(name string) error {
	return r.do(Op{Kind: SyncFolder, Name: name}, func() error {
		_, err := os.Stat(name)
		return err
	})
}

// recorded is a file whose writes are recorded.
type recorded struct {
	atomicfile.File
	r      *Recorder
	number int
	offset int64
}

func (f *recorded) Write(data []byte) (n int, err error) {
	op := Op{Kind: Write, Name: f.Name(), file: f.number, offset: f.offset,
		data: bytes.Clone(data)}
	err = f.r.do(op, func() error { n, err = f.File.Write(data); return err })
	f.offset += int64(n)
	return n, err
}

func (f *recorded) Truncate(size int64) error {
	return f.r.do(Op{Kind: Truncate, Name: f.Name(), file: f.number, offset: size},
		func() error { return f.File.Truncate(size) })
}

func (f *recorded) Sync() error {
	return f.r.do(Op{Kind: Sync, Name: f.Name(), file: f.number}, func() error { return nil })
}

// node is a file, a folder or a symbolic link.
type node struct {
	entries map[string]*node // of a folder
	data    []byte           // of a file
	link    string
	mode    fs.FileMode
}

// read reads a folder into memory.
func read(path string) (*node, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	n := &node{mode: info.Mode()}
	switch {
	case info.IsDir():
		n.entries = map[string]*node{}
		list, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if n.entries[e.Name()], err = read(filepath.Join(path, e.Name())); err != nil {
				return nil, err
			}
		}
	case info.Mode()&fs.ModeSymlink != 0:
		n.link, err = os.Readlink(path)
	default:
		n.data, err = os.ReadFile(path)
	}
	return n, err
}

// change gives a name in a folder to another node, or removes it.
type change struct {
	folder *node
	name   string
	to     *node
}

// step is an operation with the nodes that it works on.
type step struct {
	Op
	changes []change // of names
	node    *node    // of Write, Truncate, Sync and SyncFolder
	flushed int      // index of the step that flushes this one, the number of steps if none does
	needs   []int    // indexes of the earlier changes that this one builds on
}

// steps finds the nodes of the operations.
func (r *Recorder) steps() ([]step, error) {
	// The names as they are when all operations are done at once.
	now := map[*node]map[string]*node{}
	names := func(n *node) map[string]*node {
		if now[n] == nil {
			now[n] = maps.Clone(n.entries)
		}
		return now[n]
	}
	find := func(path string) (folder *node, name string, at *node, err error) {
		rest, err := filepath.Rel(r.root, path)
		if err != nil || strings.HasPrefix(rest, "..") {
			return nil, "", nil, fmt.Errorf("%s is not in the recorded folder", path)
		}
		at = r.before
		for _, name = range strings.Split(rest, string(filepath.Separator)) {
			if name == "." {
				continue
			}
			if folder = at; folder == nil {
				return nil, "", nil, fmt.Errorf("the folder of %s was not recorded", path)
			}
			at = names(folder)[name]
		}
		return folder, name, at, nil
	}
	files := map[int]*node{}
	var list []step
	for i, op := range r.ops {
		s := step{Op: op}
		set := func(folder *node, name string, to *node) {
			s.changes = append(s.changes, change{folder, name, to})
			if names(folder)[name] = to; to == nil {
				delete(names(folder), name)
			}
		}
		folder, name, at, err := find(op.Name)
		if err != nil {
			return nil, err
		}
		switch op.Kind {
		case Open:
			if at == nil {
				at = &node{mode: 0o666}
				set(folder, name, at)
			}
			files[op.file] = at
		case Mkdir:
			set(folder, name, &node{entries: map[string]*node{}, mode: fs.ModeDir | 0o777})
		case Remove:
			set(folder, name, nil)
		case Rename, Exchange:
			other, to, there, err := find(op.To)
			if err != nil {
				return nil, err
			}
			if at == nil {
				return nil, fmt.Errorf("operation %d, %v: its file was not recorded", i, op)
			}
			if op.Kind == Rename {
				there = nil
			}
			set(folder, name, there)
			set(other, to, at)
		case SyncFolder:
			s.node = at
		default:
			s.node = files[op.file]
		}
		list = append(list, s)
	}
	for i := range list {
		s := &list[i]
		s.flushed = flushedAt(list, i)
		for j := range list[:i] {
			if s.buildsOn(&list[j]) {
				s.needs = append(s.needs, j)
			}
		}
	}
	return list, nil
}

// flushedAt returns the index of the step by which all that step i changes is flushed.
func flushedAt(steps []step, i int) int {
	last := i
	flush := func(kind string, n *node) {
		for j := i + 1; j < len(steps); j++ {
			if steps[j].Kind == kind && steps[j].node == n {
				last = max(last, j)
				return
			}
		}
		last = len(steps)
	}
	for _, c := range steps[i].changes {
		flush(SyncFolder, c.folder)
	}
	if kind := steps[i].Kind; kind == Write || kind == Truncate {
		flush(Sync, steps[i].node)
	}
	return last
}

// Crashes calls check with a folder for each different state that a crash may leave: after each
// operation, with everything that was not flushed and without, and after random ones, with random
// parts of it. check gets the operations that were done; complete says that all were. It prints the
// number of states. During check, the disk [Memory] is in place.
func (r *Recorder) Crashes(
	t *testing.T, random int, check func(dir string, done []Op, complete bool) error,
) {
	t.Helper()
	steps, err := r.steps()
	if err != nil {
		t.Fatal(err)
	}
	there, err := read(r.root)
	if err != nil {
		t.Fatal(err)
	}
	all := crash(r.before, steps, func() int { return full })
	if got, want := there.list(""), all.list(""); got != want {
		t.Fatalf("the folder holds%s\nthe recorded operations make%s", got, want)
	}
	draw := rand.New(rand.NewPCG(1, uint64(len(steps))))
	seen, seed := map[uint64]bool{}, maphash.MakeSeed()
	base, failed := Folder(t), 0
	defer atomicfile.Use(atomicfile.Use(Memory))
	try := func(n int, how string, keep func() int) {
		state := crash(r.before, steps[:n], keep)
		var h maphash.Hash
		h.SetSeed(seed)
		maphash.WriteComparable(&h, n == len(steps))
		state.hash(&h)
		sum := h.Sum64()
		if seen[sum] || failed >= 5 {
			return
		}
		seen[sum] = true
		dir := filepath.Join(base, fmt.Sprint(len(seen)))
		if err := state.write(dir); err != nil {
			t.Fatal(err)
		}
		if err := check(dir, r.ops[:n], n == len(steps)); err != nil {
			failed++
			after := "nothing"
			if n > 0 {
				after = strings.ReplaceAll(r.ops[n-1].String(), r.root+"/", "")
			}
			t.Errorf("a crash after operation %d of %d (%s) with %s: %v\nit left %s", n, len(steps),
				after, how, err, state.list(""))
			return
		}
		os.RemoveAll(dir)
	}
	for n := range len(steps) + 1 {
		try(n, "everything", func() int { return full })
		try(n, "flushed data only", func() int { return none })
	}
	for range random {
		try(draw.IntN(len(steps)+1), "a random part", func() int { return draw.IntN(kinds) })
	}
	t.Logf("%d operations left %d different states", len(steps), len(seen))
}

// Folder makes a folder that is removed at the end of the test: in memory if there is /dev/shm.
func Folder(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "crashes")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Tree returns the text of the files below path (or of the file itself, as "."), by their paths. It
// leaves out temporary files, and is empty if there is nothing at path.
func Tree(path string) map[string]string {
	files := map[string]string{}
	filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		rest, _ := filepath.Rel(path, name)
		switch {
		case err != nil:
		case rest != "." && Temporary(rest) && e.IsDir():
			return fs.SkipDir
		case !e.IsDir() && (rest == "." || !Temporary(rest)):
			text, _ := os.ReadFile(name)
			files[rest] = string(text)
		}
		return nil
	})
	return files
}

// Temporary reports whether package atomicfile gives this name to a file or folder for a while.
func Temporary(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, atomicfile.Suffix) ||
		strings.HasSuffix(name, ".replaced")
}

// Remains returns an error if there is a temporary file or folder below a folder.
func Remains(dir string) (err error) {
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
		if path != dir && Temporary(path) {
			err = fmt.Errorf("%s is left", path)
		}
		return nil
	})
	return err
}

// Replacement is a write that replaces the result at Path, in the folder Root, from which it is
// relative.
type Replacement struct {
	Root, Path string
	Write      func() error
	// Recover is what the next start does with the path of the result. Nil does nothing.
	Recover func(path string) error
	// Prepare puts the old result back. It is called before each Write but the first.
	Prepare func()
	// Beside names entries of the folder that are not of the result. A reader may miss them until
	// the recovery.
	Beside []string
}

// result is a tree without the files beside the result.
func (p Replacement) result(tree map[string]string) map[string]string {
	tree = maps.Clone(tree)
	maps.DeleteFunc(tree, func(name, _ string) bool {
		first, _, _ := strings.Cut(name, string(filepath.Separator))
		return slices.Contains(p.Beside, first)
	})
	return tree
}

// Test fails the test unless each crash, and each error of the disk, leaves the whole old result or
// the whole new one, and Recover and the next write leave no temporary files.
func (p Replacement) Test(t *testing.T, random int) {
	t.Helper()
	old := Tree(filepath.Join(p.Root, p.Path))
	r := Record(t, p.Root)
	if err := p.Write(); err != nil {
		t.Fatal(err)
	}
	atomicfile.Use(Memory)
	if err := Remains(p.Root); err != nil {
		t.Error(err)
	}
	fresh := Tree(filepath.Join(p.Root, p.Path))
	if maps.Equal(old, fresh) {
		t.Fatal("the new result is the old one")
	}
	whole := func(root string, complete bool) error {
		path := filepath.Join(root, p.Path)
		for _, when := range []string{"before", "after"} {
			got, before, after := Tree(path), old, fresh
			if when == "before" {
				got, before, after = p.result(got), p.result(old), p.result(fresh)
			}
			if !maps.Equal(got, after) && (complete || !maps.Equal(got, before)) {
				return fmt.Errorf("%s recovery there are %v", when,
					slices.Sorted(maps.Keys(got)))
			}
			if when == "before" && p.Recover != nil {
				if err := p.Recover(path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	r.Crashes(t, random, func(root string, _ []Op, complete bool) error {
		return whole(root, complete)
	})
	for n, failed := 0, true; failed; n++ {
		p.Prepare()
		failed = false
		code := []syscall.Errno{syscall.ENOSPC, syscall.EIO}[n%2]
		r := Record(t, p.Root)
		op := Op{}
		r.Fail = func(i int, o Op) error {
			if i != n || failed {
				return nil
			}
			failed, op = true, o
			return code
		}
		err := p.Write()
		atomicfile.Use(Memory)
		if failed && !errors.Is(err, code) {
			t.Fatalf("%v failed with %v, and the write returned %v", op, code, err)
		}
		if err := whole(p.Root, false); err != nil {
			t.Fatalf("after %v failed: %v", op, err)
		}
		if err := p.Write(); err != nil {
			t.Fatalf("writing again after %v failed: %v", op, err)
		}
		if err := Remains(p.Root); err != nil {
			t.Fatalf("after %v failed and it was written again: %v", op, err)
		}
	}
}

// What is left of an operation that was not flushed.
const (
	none = iota
	full
	part
	kinds
)

// crash returns the tree that is left of before after steps. keep chooses what is left of each
// operation that was not flushed.
func crash(before *node, steps []step, keep func() int) *node {
	kept := make([]bool, len(steps))
	for i := range steps {
		if len(steps[i].changes) > 0 {
			kept[i] = steps[i].flushed < len(steps) || keep() != none
		}
	}
	// What a kept change builds on is kept too.
	for i := len(steps) - 1; i >= 0; i-- {
		for _, j := range steps[i].needs {
			kept[j] = kept[j] || kept[i]
		}
	}
	names := map[*node]map[string]*node{}
	for i := range steps {
		for _, c := range steps[i].changes {
			if !kept[i] {
				continue
			}
			if names[c.folder] == nil {
				names[c.folder] = maps.Clone(c.folder.entries)
			}
			if names[c.folder][c.name] = c.to; c.to == nil {
				delete(names[c.folder], c.name)
			}
		}
	}
	data := map[*node][]byte{}
	for i := range steps {
		s := &steps[i]
		if s.Kind != Write && s.Kind != Truncate {
			continue
		}
		old, known := data[s.node]
		if !known {
			old = s.node.data
		}
		left := full
		if s.flushed >= len(steps) {
			left = keep()
		}
		data[s.node] = s.apply(old, left)
	}
	return before.with(names, data)
}

// buildsOn reports whether s changes a name that the earlier step has changed, or a name in a
// folder that it has made.
func (s *step) buildsOn(earlier *step) bool {
	for _, c := range s.changes {
		for _, e := range earlier.changes {
			if c.folder == e.folder && c.name == e.name ||
				earlier.Kind == Mkdir && c.folder == e.to {
				return true
			}
		}
	}
	return false
}

// apply returns data after what is left of a write or truncation.
func (s *step) apply(data []byte, left int) []byte {
	if left == none {
		return data
	}
	data = bytes.Clone(data)
	if s.Kind == Truncate {
		if int64(len(data)) > s.offset {
			data = data[:s.offset]
		}
		return append(data, make([]byte, s.offset-int64(len(data)))...)
	}
	if grown := int(s.offset) + len(s.data) - len(data); grown > 0 {
		data = append(data, make([]byte, grown)...)
	}
	n := len(s.data)
	if left == part {
		n /= 2
	}
	copy(data[s.offset:], s.data[:n])
	return data
}

// with returns a copy of the tree with other names and data.
func (n *node) with(names map[*node]map[string]*node, data map[*node][]byte) *node {
	c := &node{mode: n.mode, link: n.link, data: n.data}
	if d, ok := data[n]; ok {
		c.data = d
	}
	if n.entries == nil {
		return c
	}
	entries, ok := names[n]
	if !ok {
		entries = n.entries
	}
	c.entries = map[string]*node{}
	for name, e := range entries {
		c.entries[name] = e.with(names, data)
	}
	return c
}

// write makes the tree at path.
func (n *node) write(path string) error {
	switch {
	case n.entries != nil:
		if err := os.Mkdir(path, 0o777); err != nil {
			return err
		}
		for name, e := range n.entries {
			if err := e.write(filepath.Join(path, name)); err != nil {
				return err
			}
		}
		return nil
	case n.link != "":
		return os.Symlink(n.link, path)
	}
	return os.WriteFile(path, n.data, 0o666)
}

// hash adds the tree to h.
func (n *node) hash(h *maphash.Hash) {
	for _, name := range slices.Sorted(maps.Keys(n.entries)) {
		maphash.WriteComparable(h, name)
		n.entries[name].hash(h)
	}
	maphash.WriteComparable(h, n.link)
	maphash.WriteComparable(h, len(n.data)-len(n.entries))
	h.Write(n.data)
}

// list names the files of a tree and their sizes.
func (n *node) list(path string) string {
	if n.entries == nil {
		return fmt.Sprintf(" %s(%d)", path, len(n.data))
	}
	text := ""
	for _, name := range slices.Sorted(maps.Keys(n.entries)) {
		text += n.entries[name].list(path + "/" + name)
	}
	if text == "" {
		return " " + path + "/"
	}
	return text
}
