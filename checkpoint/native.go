package checkpoint

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"conquer/internal/atomicfile"
	"conquer/internal/budget"
	"conquer/internal/wrongfile"
	"conquer/torch"
)

// Native is this project's own format for runs of several processes: a folder in which each process
// writes the fragments of tensors that it holds to a safetensors file of its own. native.json lists
// the fragments and the files' checksums. Any number of processes can read it, each what it needs.
// Besides weights it holds the state of a training run, in tensors whose names contain a colon.
const (
	Native     = "native"
	NativeFile = "native.json"
)

// Fragment is a contiguous run of a tensor's elements in row-major order. If Every is not 0, it is
// columns of a matrix: Run elements at Start, Start+Every, Start+2·Every, …, where Every is the
// length of a row.
type Fragment struct {
	Name       string // of the tensor
	Start      int    // index of the first element
	Run, Every int
	Data       torch.Tensor // contiguous, on the CPU
}

// ProcessFile describes the file of one process in a native checkpoint.
type ProcessFile struct {
	File      string         `json:"name"`
	Bytes     int64          `json:"bytes"`
	CRC       uint32         `json:"crc32c"`
	Fragments []nativeRecord `json:"stretches"`
}

type nativeRecord struct {
	Name   string `json:"name"`
	Start  int    `json:"start"`
	Length int    `json:"length"`
	Run    int    `json:"run,omitempty"`
	Every  int    `json:"every,omitempty"`
	DType  string `json:"dtype"`
}

func (r nativeRecord) key() string { return fmt.Sprintf("%s@%d", r.Name, r.Start) }

// NativeTensor describes the tensor that fragments of its name make up.
type NativeTensor struct {
	Shape []int `json:"shape"`
	// DType is the tensor's dtype in the model. Its fragments may be float32 master weights.
	DType string `json:"dtype"`
}

type nativeIndex struct {
	Version int                     `json:"version"`
	Files   []ProcessFile           `json:"files"`
	Tensors map[string]NativeTensor `json:"tensors"`
}

// TensorType describes a tensor of a native checkpoint.
func TensorType(dtype torch.DType, shape []int) NativeTensor {
	return NativeTensor{Shape: append([]int{}, shape...), DType: safetensorsName(dtype)}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteFragments writes the file of process rank of ranks into dir, flushes it to the disk, and
// describes it.
func WriteFragments(dir string, rank, ranks int, list []Fragment) (ProcessFile, error) {
	part := ProcessFile{File: fmt.Sprintf("rank-%05d-of-%05d.safetensors", rank, ranks)}
	list = slices.Clone(list)
	slices.SortStableFunc(list,
		func(a, b Fragment) int { return b.Data.DType().Size() - a.Data.DType().Size() })
	var records []record
	for _, s := range list {
		r := nativeRecord{s.Name, s.Start, s.Data.Numel(), s.Run, s.Every,
			safetensorsName(s.Data.DType())}
		part.Fragments = append(part.Fragments, r)
		records = append(records, record{name: r.key(), dtype: r.DType, shape: []int{r.Length},
			bytes: s.Data.Bytes()})
	}
	path := filepath.Join(dir, part.File)
	header, err := safetensorsHeader(records)
	if err != nil {
		return part, atomicfile.Explain(path, err)
	}
	sum := crc32.New(castagnoli)
	err = atomicfile.Create(path, func(w io.Writer) error {
		w = io.MultiWriter(w, sum)
		n, err := w.Write(header)
		part.Bytes = int64(n)
		for _, s := range list {
			if err != nil {
				break
			}
			n, err = w.Write(s.Data.Data())
			part.Bytes += int64(n)
		}
		return err
	})
	part.CRC = sum.Sum32()
	return part, atomicfile.Explain(path, err)
}

// WriteNativeIndex writes native.json into dir, which completes the checkpoint.
func WriteNativeIndex(dir string, parts []ProcessFile, tensors map[string]NativeTensor) error {
	text, err := json.Marshal(nativeIndex{Version: 1, Files: parts, Tensors: tensors})
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, NativeFile),
		func(w io.Writer) error { _, err := w.Write(text); return err })
}

// Commit flushes the finished folder dir.partial to the disk and renames it to dir.
func Commit(dir string) error {
	if err := atomicfile.SyncFolder(dir + atomicfile.Suffix); err != nil {
		return atomicfile.Explain(dir, err)
	}
	if err := atomicfile.Rename(dir+atomicfile.Suffix, dir); err != nil {
		return atomicfile.Explain(dir, err)
	}
	return atomicfile.Explain(dir, atomicfile.SyncFolder(filepath.Dir(dir)))
}

// Partial is the name of the folder dir until [Commit].
func Partial(dir string) string { return dir + atomicfile.Suffix }

// nativeFile is an open file of a native checkpoint.
type nativeFile struct {
	*mapping
	part    ProcessFile
	checked sync.Once
	bad     error
}

// check compares the file with its checksum, once.
func (f *nativeFile) check() error {
	f.checked.Do(func() {
		if crc32.Checksum(f.Bytes(), castagnoli) != f.part.CRC {
			f.bad = fmt.Errorf("%s does not have the checksum that %s gives it: it is damaged, "+
				"or belongs to another run", f.path, NativeFile)
		}
	})
	return f.bad
}

// nativeTensor is a tensor and the places of its fragments.
type nativeTensor struct {
	NativeTensor
	fragments []nativeFragment // in order, without gaps
}

type nativeFragment struct {
	start, length, offset int
	run, every            int // as in Fragment
	dtype                 string
	file                  *nativeFile
}

// readNative reads a native checkpoint. It checks that the fragments of each tensor cover it
// exactly.
func readNative(o *opener, dir string, text []byte) (c contents, err error) {
	path := filepath.Join(dir, NativeFile)
	counts := budget.Count(text)
	err = o.budget.Take(len(text) + counts.StringBytes + 8*counts.Values + 192*counts.Objects)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	var index nativeIndex
	if err := json.Unmarshal(text, &index); err != nil {
		return c, fmt.Errorf("%s: %w", path, wrongfile.Explain(text, wrongfile.JSON, err))
	}
	if index.Version != 1 {
		return c, fmt.Errorf("%s has version %d, expected 1", path, index.Version)
	}
	if c.config, c.generation, err = readConfigs(o, dir); err != nil {
		return c, err
	}
	c.native = map[string]*nativeTensor{}
	for name, t := range index.Tensors {
		dtype, known := safetensorsTorch[t.DType]
		if _, ok := sizeInBits(t.Shape, 64); !known || !ok || slices.ContainsFunc(t.Shape,
			func(n int) bool { return n < 0 }) {
			return c, fmt.Errorf("%s: tensor %.120q has the unknown type %.20q or the impossible "+
				"shape %v", path, name, t.DType, t.Shape)
		}
		c.native[name] = &nativeTensor{NativeTensor: t}
		if !strings.Contains(name, ":") {
			c.tensors = append(c.tensors, &stored{record: record{name: name, dtype: t.DType,
				shape: t.Shape, bytes: numel(t.Shape) * dtype.Size()},
				file: &mapping{path: path}})
		}
	}
	slices.SortFunc(c.tensors, func(a, b *stored) int { return strings.Compare(a.name, b.name) })
	for _, part := range index.Files {
		if err := c.addPart(o, dir, part); err != nil {
			return c, err
		}
	}
	for name, t := range c.native {
		slices.SortFunc(t.fragments, func(a, b nativeFragment) int { return a.start - b.start })
		if slices.ContainsFunc(t.fragments, func(s nativeFragment) bool { return s.every != 0 }) {
			if !t.tiled() {
				return c, fmt.Errorf("%s: the parts of tensor %.120q do not cover it exactly: "+
					"one is missing, or there twice, or they are more than %d", path, name,
					maxTiles)
			}
			continue
		}
		next := 0
		for _, s := range t.fragments {
			if s.start != next {
				return c, fmt.Errorf("%s: tensor %.120q continues at element %d, expected %d: a "+
					"part is missing, or there twice", path, name, s.start, next)
			}
			next += s.length
		}
		if next != numel(t.Shape) {
			return c, fmt.Errorf("%s: tensor %.120q ends after %d of its %d elements: a part is "+
				"missing", path, name, next, numel(t.Shape))
		}
	}
	return c, nil
}

// maxTiles is the largest number of tiles of one tensor: each is compared with the others. A tensor
// has a few for each process of a run.
const maxTiles = 1 << 13

// tile is rows [top, bottom) and columns [left, right) of a matrix.
type tile struct{ top, bottom, left, right int }

// tiled reports whether the fragments, some of which are columns, cover the matrix exactly: whether
// they are tiles that do not overlap and together have its area.
func (t *nativeTensor) tiled() bool {
	all, width := numel(t.Shape), 0
	for _, s := range t.fragments {
		width = max(width, s.every)
	}
	if width < 1 || width > all || all%width != 0 {
		return false
	}
	var tiles []tile
	area := 0
	for _, s := range t.fragments {
		area += s.length
		if s.length > all || s.start > all {
			return false
		}
		if s.every != 0 {
			if s.every != width || s.run < 1 || s.start%width+s.run > width || s.length%s.run != 0 {
				return false
			}
			row := s.start / width
			tiles = append(tiles, tile{row, row + s.length/s.run, s.start % width,
				s.start%width + s.run})
			continue
		}
		for at, end := s.start, s.start+s.length; at < end; {
			row, column := at/width, at%width
			n := min(width-column, end-at)
			rows := 1
			if n == width {
				rows = (end - at) / width
			}
			tiles = append(tiles, tile{row, row + rows, column, column + n})
			at += n * rows
		}
	}
	if len(tiles) > maxTiles {
		return false
	}
	for i, a := range tiles {
		if a.bottom > all/width {
			return false
		}
		for _, b := range tiles[:i] {
			if a.top < b.bottom && b.top < a.bottom && a.left < b.right && b.left < a.right {
				return false
			}
		}
	}
	return area == all
}

func numel(shape []int) int {
	n := 1
	for _, s := range shape {
		n *= s
	}
	return n
}

// addPart opens a process's file and locates its fragments.
func (c *contents) addPart(o *opener, dir string, part ProcessFile) error {
	index := filepath.Join(dir, NativeFile)
	if part.File == "" || part.File != filepath.Base(part.File) || !filepath.IsLocal(part.File) {
		return fmt.Errorf("%s: %.80q is not the name of a file in this folder", index, part.File)
	}
	path := filepath.Join(dir, part.File)
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w: %s names it, and the checkpoint is incomplete without it", err,
			index)
	}
	if info.Size() != part.Bytes {
		return fmt.Errorf("%s has %d bytes, expected %d: it is truncated or belongs to another run",
			path, info.Size(), part.Bytes)
	}
	mapped, err := o.open(path)
	if err != nil {
		return err
	}
	file := &nativeFile{mapping: mapped, part: part}
	records, _, err := parseSafetensors(mapped.Bytes(), o.budget)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	there := map[string]record{}
	for _, r := range records {
		there[r.name] = r
	}
	for _, s := range part.Fragments {
		t, r := c.native[s.Name], there[s.key()]
		dtype, plain := safetensorsTorch[s.DType]
		switch {
		case t == nil:
			return fmt.Errorf("%s: %s holds a part of tensor %.120q, which it does not describe",
				index, part.File, s.Name)
		case r.name == "" || r.dtype != s.DType || !plain || len(r.shape) != 1 ||
			r.shape[0] != s.Length || s.Start < 0 || s.Run < 0 || s.Every < 0 ||
			r.offset%dtype.Size() != 0:
			return fmt.Errorf("%s does not hold elements %d to %d of tensor %.120q as %s: it "+
				"belongs to another run", path, s.Start, s.Start+s.Length, s.Name, s.DType)
		case len(t.fragments) > 0 && t.fragments[0].dtype != s.DType:
			return fmt.Errorf("%s: the parts of tensor %.120q have several dtypes", index, s.Name)
		}
		t.fragments = append(t.fragments, nativeFragment{s.Start, s.Length, r.offset, s.Run,
			s.Every, s.DType, file})
	}
	return nil
}

// Range returns elements [start, start+length) of a tensor of a native checkpoint, in row-major
// order and in their stored dtype. It reads only the files that hold them.
func (c *Checkpoint) Range(name string, start, length int) (torch.Tensor, error) {
	t := c.native[name]
	if t == nil {
		return torch.Tensor{}, fmt.Errorf("%s has no tensor %.120q",
			filepath.Join(c.Path, NativeFile), name)
	}
	if start < 0 || length < 0 || start+length > numel(t.Shape) {
		return torch.Tensor{}, fmt.Errorf("%s: tensor %.120q has %d elements, which exclude "+
			"elements %d to %d", c.Path, name, numel(t.Shape), start, start+length)
	}
	if length == 0 {
		return torch.Empty([]int{0}, safetensorsTorch[t.DType], torch.CPU), nil
	}
	dtype := safetensorsTorch[t.fragments[0].dtype]
	result := torch.Empty([]int{length}, dtype, torch.CPU)
	into, size := result.Data(), dtype.Size()
	for _, s := range t.fragments {
		runs, run := 1, s.length
		if s.every != 0 {
			runs, run = s.length/s.run, s.run
		}
		for i := range runs {
			first := s.start + i*s.every
			from, to := max(start, first), min(start+length, first+run)
			if from >= to {
				continue
			}
			if err := s.file.check(); err != nil {
				return torch.Tensor{}, err
			}
			at := s.offset + (i*run+from-first)*size
			copy(into[(from-start)*size:(to-start)*size], s.file.Bytes()[at:at+(to-from)*size])
		}
	}
	return result, nil
}

// CheckFiles returns an error unless all files of a native checkpoint have their checksums.
func (c *Checkpoint) CheckFiles() error {
	for _, t := range c.native {
		for _, f := range t.fragments {
			if err := f.file.check(); err != nil {
				return err
			}
		}
	}
	return nil
}

// HasRange reports whether a native checkpoint has a tensor of that name.
func (c *Checkpoint) HasRange(name string) bool { return c.native[name] != nil }

// nativeWeight joins a weight, in the model's dtype.
func (c *Checkpoint) nativeWeight(name string) (torch.Tensor, error) {
	t := c.native[name]
	all, err := c.Range(name, 0, numel(t.Shape))
	if err != nil {
		return all, err
	}
	return all.To(safetensorsTorch[t.DType]).View(t.Shape...), nil
}

// SaveNative writes source into the folder dir as a native checkpoint of whole tensors, in files of
// at most options.ShardBytes, beside the configs. Like [Save] it replaces the old files. It holds
// one file's tensors in memory at a time.
func SaveNative(dir string, source Source, options Options) error {
	return saveFolder(dir, func(stage string) error {
		shards, err := plan(source, options)
		if err != nil {
			return err
		}
		tensors := map[string]NativeTensor{}
		var parts []ProcessFile
		for i, records := range shards {
			torch.Scoped(func() {
				var list []Fragment
				for _, r := range records {
					var t torch.Tensor
					if t, err = readAs(source, r); err != nil {
						return
					}
					tensors[r.name] = TensorType(safetensorsTorch[r.dtype], r.shape)
					list = append(list, Fragment{Name: r.name, Data: t.Reshape(-1)})
				}
				var part ProcessFile
				part, err = WriteFragments(stage, i, len(shards), list)
				parts = append(parts, part)
			})
			if err != nil {
				return err
			}
		}
		if err := WriteNativeIndex(stage, parts, tensors); err != nil {
			return err
		}
		texts := map[string][]byte{generationFile: options.GenerationConfig}
		if texts[configFile], err = configFor(options.Config, shards); err != nil {
			return err
		}
		return writeTexts(stage, texts, options)
	})
}
