package dataset

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"conquer/internal/atomicfile"
	"conquer/text/tokenizer"
)

// store is the place of one call of Load in a folder with encoded samples.
type store struct {
	key    [sha256.Size]byte
	path   string
	inputs []input
	notice func(string)
}

// storeExt is the extension of the files in the folder.
const storeExt = ".tokens"

// maxStore is the most bytes that a folder with encoded samples holds.
var maxStore int64 = 64 << 30 // tests lower it

// newStore finds the place of the samples of path. It returns nil if they cannot be kept: path is
// not a regular file or a folder.
func newStore(path string, tok *tokenizer.Tokenizer, opts Options) (*store, error) {
	s := &store{notice: opts.Notice}
	if s.notice == nil {
		s.notice = func(string) {}
	}
	names, err := inputNames(path, opts)
	if err != nil || names == nil {
		return nil, err
	}
	h := sha256.New()
	add := func(parts ...any) {
		text, _ := json.Marshal(parts) // texts, numbers and bytes can be encoded
		h.Write(append(text, '\n'))
	}
	program, err := programHash()
	if err != nil {
		return nil, err
	}
	tokens, err := tok.Fingerprint()
	if err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	add(program[:], tokens[:], absolute, opts.MaxLength, opts.Layout, opts.Inputs.Tools,
		opts.Inputs.Documents, opts.Inputs.Kwargs, opts.Validation, opts.LastAnswer, opts.SkipBad,
		opts.Columns.list())
	for _, name := range names {
		in, err := readInput(name)
		if err != nil {
			return nil, err
		}
		s.inputs = append(s.inputs, in)
		add(name, in.size, in.hash[:])
		if opts.Progress != nil { // it can end a long reading
			if err := opts.Progress(0, in.size); err != nil {
				return nil, err
			}
		}
	}
	h.Sum(s.key[:0])
	s.path = filepath.Join(opts.Cache, hex.EncodeToString(s.key[:16])+storeExt)
	return s, nil
}

// inputNames lists the files that Load reads. It returns nil for a pipe.
func inputNames(path string, opts Options) ([]string, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.Mode().IsRegular():
		return []string{path}, nil
	case !info.IsDir():
		return nil, nil
	}
	chosen, err := chooseIn(path, opts)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, name := range chosen.Files {
		names = append(names, filepath.Join(path, filepath.FromSlash(name)))
	}
	return names, nil
}

// input is a file with the hash of its content.
type input struct {
	name  string
	size  int64
	hash  [sha256.Size]byte
	inode uint64
	time  time.Time
}

func readInput(name string) (in input, err error) {
	f, err := openRegular(name)
	if err != nil {
		return in, err
	}
	defer f.Close()
	in.name = name
	if in.size, in.inode, in.time, err = identity(f.Stat()); err != nil {
		return in, err
	}
	in.hash, err = contentHash(f, in.size)
	return in, err
}

func identity(info fs.FileInfo, err error) (size int64, inode uint64, at time.Time, _ error) {
	if err != nil {
		return 0, 0, at, err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = stat.Ino
	}
	return info.Size(), inode, info.ModTime(), nil
}

// size returns the bytes of the files.
func (s *store) size() (n int64) {
	for _, in := range s.inputs {
		n += in.size
	}
	return n
}

// changed reports whether a file is not the one that was hashed.
func (in input) changed() bool {
	size, inode, at, err := identity(os.Stat(in.name))
	return err != nil || size != in.size || inode != in.inode || !at.Equal(in.time)
}

// contentHash hashes a file in pieces on all cores.
func contentHash(f io.ReaderAt, size int64) (sum [sha256.Size]byte, err error) {
	const piece = 4 << 20
	sums := make([][sha256.Size]byte, (size+piece-1)/piece)
	failed := make([]error, len(sums))
	var wg sync.WaitGroup
	workers := max(1, min(runtime.GOMAXPROCS(0), len(sums)))
	for w := range workers {
		wg.Go(func() {
			buffer := make([]byte, min(size, piece))
			for i := w; i < len(sums); i += workers {
				part := buffer[:min(piece, size-int64(i)*piece)]
				if n, err := f.ReadAt(part, int64(i)*piece); n < len(part) {
					failed[i] = err
					return
				}
				sums[i] = sha256.Sum256(part)
			}
		})
	}
	wg.Wait()
	h := sha256.New()
	binary.Write(h, binary.LittleEndian, size)
	for i := range sums {
		if failed[i] != nil {
			return sum, failed[i]
		}
		h.Write(sums[i][:])
	}
	h.Sum(sum[:0])
	return sum, nil
}

// programHash is a hash of the running program, whose code decides what becomes of a record.
var programHash = sync.OnceValues(func() (sum [sha256.Size]byte, err error) {
	name, err := os.Executable()
	if err != nil {
		return sum, err
	}
	in, err := readInput(name)
	return in.hash, err
})

// load returns the samples if the folder has them, else nil. A damaged file is removed.
func (s *store) load(opts Options) *Dataset {
	maps := new(mappings)
	if _, err := os.Stat(s.path); err != nil {
		return nil
	}
	data, err := maps.mapFile(s.path)
	var samples *stored
	var refs []ref
	if err == nil {
		err = guarded(func() (err error) {
			samples, refs, err = openStored(s.path, data, s.key)
			return err
		})
	}
	if err != nil {
		maps.close()
		s.notice(fmt.Sprintf("%s: %v: the data is encoded again", s.path, err))
		os.Remove(s.path)
		return nil
	}
	now := time.Now()
	os.Chtimes(s.path, now, now) // the file that was used the longest ago is removed first
	opts.Columns.noteFound(samples.MappedColumns, samples.ColumnsOfAFile)
	return samples.dataset(refs, maps)
}

// lock waits until no other process encodes the same samples. It returns nil, without an error, if
// the folder cannot be written.
func (s *store) lock(opts Options) (unlock func(), err error) {
	name := strings.TrimSuffix(s.path, storeExt) + ".lock"
	waiting := false
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		s.notice(fmt.Sprintf("the cache of encoded data cannot be used: %v", err))
		return nil, nil
	}
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			s.notice(fmt.Sprintf("the cache of encoded data cannot be used: %v", err))
			return nil, nil
		}
		if atomicfile.Lock(f) == nil {
			mine, err := f.Stat()
			there, gone := os.Stat(name)
			if err == nil && gone == nil && os.SameFile(mine, there) {
				return func() { os.Remove(name); f.Close() }, nil
			}
			f.Close()
			continue // the process that had it has removed it
		}
		f.Close()
		if !waiting {
			s.notice("waiting for another process that encodes the same data")
			waiting = true
		}
		if opts.Progress != nil {
			if err := opts.Progress(0, s.size()); err != nil {
				return nil, err
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// fill encodes the files of path and keeps the samples in the folder. If they cannot be kept, it
// says why and returns them all the same.
func (s *store) fill(tok *tokenizer.Tokenizer, opts Options,
	encode func(*storedWriter) (*Dataset, error)) (*Dataset, error) {
	var d *Dataset
	var failed, problem error
	err := atomicfile.Write(s.path, func(to io.Writer) error {
		w := newStoredWriter(to, s.key, tok.VocabSize(), maxStore)
		if d, failed = encode(w); failed != nil {
			return failed
		}
		if problem = w.finish(d.describe(opts.Columns)); problem == nil {
			if i := slices.IndexFunc(s.inputs, input.changed); i >= 0 {
				problem = fmt.Errorf("%s has changed", s.inputs[i].name)
			}
		}
		return problem
	})
	if failed != nil {
		return nil, failed
	}
	if d == nil { // not even the file could be made
		if d, failed = encode(nil); failed != nil {
			return nil, failed
		}
	}
	if err != nil {
		if problem == nil || errors.Is(err, syscall.ENOSPC) {
			problem = err
		}
		s.notice(fmt.Sprintf("the encoded data is not kept in %s: %v", filepath.Dir(s.path),
			problem))
		return d, nil
	}
	s.evict()
	if again := s.load(opts); again != nil {
		d.Close()
		again.Cached = false
		return again, nil
	}
	return d, nil
}

// evict removes the files that were used the longest ago until the folder is small enough, and what
// killed processes have left.
func (s *store) evict() {
	entries, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil {
		return
	}
	type kept struct {
		path string
		size int64
		used time.Time
	}
	var files []kept
	total := int64(0)
	for _, e := range entries {
		path := filepath.Join(filepath.Dir(s.path), e.Name())
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if strings.HasSuffix(path, storeExt+atomicfile.Suffix) {
			removeAbandoned(path)
		}
		if strings.HasSuffix(path, storeExt) {
			total += info.Size()
			files = append(files, kept{path, info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b kept) int { return a.used.Compare(b.used) })
	for _, f := range files {
		if total <= maxStore {
			break
		}
		if f.path != s.path && os.Remove(f.path) == nil {
			total -= f.size
		}
	}
}

// removeAbandoned removes a partial file that no process is writing.
func removeAbandoned(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	if atomicfile.Lock(f) == nil {
		os.Remove(path)
	}
}
