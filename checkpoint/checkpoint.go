// Package checkpoint reads and writes the files that hold a model's weights.
//
// [Open] takes a Hugging Face folder (config.json beside model.safetensors or pytorch_model.bin, or
// beside shards with an index), a folder in Meta's layout (params.json beside consolidated.NN.pth),
// a native checkpoint, or one .safetensors, .bin, .pth or .gguf file, which may be the first of
// several. It gives a [Checkpoint]:
// tensors by their Hugging Face names and the config that describes the model. Files are mapped
// into memory: opening reads the headers only, and a tensor of a plain type is a view of the file.
// Quantized tensors are decoded when they are read. Pickles are read without executing them.
//
// What is particular to a model family, such as its names in GGUF, is a [Family] that the family
// registers.
//
//	c, err := checkpoint.Open("SmolLM2-135M-Instruct.Q4_1.gguf")
//	if err != nil { … }
//	defer c.Close()
//	w, err := c.Tensor("model.embed_tokens.weight")
//
// [Save] writes any [Source], a Checkpoint or a model in training, as a Hugging Face folder.
// [Formats] lists the other layouts. All writes are atomic: a result gets its name when it is
// complete and on the disk.
//
// Files are not trusted. Every length, count and offset is checked before it is used, and an error
// names the file and the tensor. An open file may be replaced, but must not be shortened in place:
// the system then ends a process that touches the missing part.
package checkpoint

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"conquer/internal/atomicfile"
	"conquer/internal/budget"
	"conquer/internal/wrongfile"
	"conquer/quant"
	"conquer/torch"
)

// Info describes a tensor of a [Source].
type Info struct {
	// of the tensor that Tensor returns: float32 if it is quantized, [Unsupported] if Tensor fails
	DType torch.DType
	Shape []int
	// the type in the file, by its name there, such as "BF16"; empty for a tensor in no file
	Stored string
	File   string // the path of that file
	Bytes  int    // the size in the file
}

// Unsupported is the dtype of a stored type that this package does not decode, such as F8_E4M3 or
// IQ2_XS.
const Unsupported torch.DType = -1

// Source gives tensors by their Hugging Face names. Its methods may be called from several
// goroutines.
type Source interface {
	// Names lists the tensors, in the order of the files.
	Names() []string
	// Info describes a tensor without reading it; false if there is none of that name.
	Info(name string) (Info, bool)
	// Tensor returns a contiguous CPU tensor that belongs to the innermost open scope. It may share
	// memory with the source: a caller that writes to it changes what the next caller sees.
	Tensor(name string) (torch.Tensor, error)
}

// The formats of a [Checkpoint].
const (
	SafeTensors = "safetensors"
	PyTorch     = "pytorch" // pickles in Hugging Face's layout
	Meta        = "meta"    // consolidated.NN.pth
	GGUF        = "gguf"
)

// Checkpoint is an open set of weight files. Its tensors stay valid after Close.
type Checkpoint struct {
	Path   string // as given to Open
	Format string // SafeTensors, PyTorch, Meta, GGUF or Native

	contents
	files   []*mapping
	names   []string
	tensors map[string]*stored

	converted int // see Converted
	why       string
}

var _ Source = (*Checkpoint)(nil)

// contents is what a reader returns: the places of the tensors, by their Hugging Face names, and
// the configs.
type contents struct {
	tensors            []*stored
	config, generation []byte                   // JSON, or nil
	metadata           map[string]any           // of a GGUF file
	native             map[string]*nativeTensor // of a native checkpoint
	unread             string                   // see Unread
}

// mapping is a weight file that is mapped into memory. Tensors that view it keep it mapped.
type mapping struct {
	path string
	*torch.Mapping
}

// opener maps the files that readers open, and holds the budget of what they read.
type opener struct {
	files  []*mapping
	budget *budget.Budget
}

func (o *opener) open(path string) (*mapping, error) {
	if err := wrongfile.Regular(path); err != nil {
		return nil, err
	}
	m, err := torch.OpenMapping(path)
	if err != nil {
		return nil, err
	}
	file := &mapping{path, m}
	o.files = append(o.files, file)
	return file, nil
}

// stored is a tensor's place in the files.
type stored struct {
	record
	file     *mapping
	headRows int       // rows per head whose rotary dimensions alternate (see Mapped), or 0
	parts    []*stored // of a tensor that several model-parallel files share, else nil
	joined   int       // the dimension, 0 or 1, along which the parts lie side by side

	transform *Transform // to Hugging Face's form; the shape is already converted
	packed    *packed    // of a matrix that a library quantized, else nil
}

// safetensorsTorch maps safetensors' and ggml's names of plain types to libtorch's dtypes.
var safetensorsTorch = map[string]torch.DType{
	"F64": torch.Float64, "F32": torch.Float32, "F16": torch.Float16, "BF16": torch.BFloat16,
	"I64": torch.Int64, "I32": torch.Int32, "U8": torch.Uint8, "BOOL": torch.Bool,
}

// Open opens the checkpoint at path: a folder as Hugging Face or Meta lays it out, a .safetensors,
// .bin or .pth file, or a .gguf file. It reads no weights. The error names the file, and the tensor
// if it concerns one.
func Open(path string) (*Checkpoint, error) {
	info, err := os.Stat(path)
	if atomicfile.Interrupted(path) {
		return nil, fmt.Errorf("%s does not exist: a program was killed while it replaced this "+
			"folder: run it again, which completes that", path)
	} else if err != nil {
		return nil, err
	}
	o, read := &opener{budget: budget.New(budget.Model)}, readFile
	if info.IsDir() {
		read = readFolder
	}
	format, found, err := read(o, path)
	if err == nil && (format == SafeTensors || format == PyTorch) {
		if err = found.unpack(path); err == nil {
			err = found.conform(path)
		}
	}
	c := assemble(path, format, found, o)
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// assemble makes a checkpoint of what a reader found.
func assemble(path, format string, found contents, o *opener) *Checkpoint {
	c := &Checkpoint{Path: path, Format: format, contents: found, files: o.files,
		tensors: map[string]*stored{}}
	for _, s := range found.tensors {
		c.names = append(c.names, s.name)
		c.tensors[s.name] = s
	}
	return c
}

// readFile reads a single file, and the configs beside it.
func readFile(o *opener, path string) (format string, c contents, err error) {
	if isMetaPart(filepath.Base(path)) {
		return readMeta(o, filepath.Dir(path))
	}
	file, err := o.open(path)
	if err != nil {
		return "", c, err
	}
	if data := file.Bytes(); strings.HasSuffix(path,
		".gguf") || string(data[:min(len(data), 4)]) == "GGUF" {
		parts, err := readGGUFParts(o, file)
		if err != nil {
			return GGUF, c, err
		}
		if c, err = readGGUF(parts); err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return GGUF, c, err
	}
	if format, c.tensors, err = readWeights(o, file, nil); err == nil {
		c.config, c.generation, err = readConfigs(o, filepath.Dir(path))
	}
	return format, c, err
}

// readWeights finds the tensors of a safetensors or PyTorch file: all, or those wanted.
func readWeights(o *opener, file *mapping, wanted map[string]bool) (format string,
	tensors []*stored, err error) {
	var records []record
	kind := wrongfile.SafeTensors
	if format = SafeTensors; isTorchFile(file.path, file.Bytes()) {
		format, kind = PyTorch, wrongfile.PyTorch
		records, err = parseTorch(file.Bytes(), o.budget)
	} else {
		records, _, err = parseSafetensors(file.Bytes(), o.budget)
	}
	if err != nil {
		return format, nil, fmt.Errorf("%s: %w", file.path,
			wrongfile.Explain(file.Bytes(), kind, err))
	}
	for _, r := range records {
		if wanted == nil || wanted[r.name] {
			tensors = append(tensors, &stored{record: r, file: file})
		}
	}
	return format, tensors, nil
}

// Names lists the tensors by their Hugging Face names, in the order in which they lie in the files.
func (c *Checkpoint) Names() []string { return slices.Clone(c.names) }

// Info describes a tensor.
func (c *Checkpoint) Info(name string) (Info, bool) {
	s, ok := c.tensors[name]
	if !ok {
		return Info{}, false
	}
	return s.info(), true
}

func (s *stored) info() Info {
	return Info{DType: s.torchDType(), Shape: slices.Clone(s.shape), Stored: s.dtype,
		File: s.file.path, Bytes: s.bytes}
}

// torchDType is the dtype of the tensor that Tensor returns for s.
func (s *stored) torchDType() torch.DType {
	if d, ok := safetensorsTorch[s.dtype]; ok {
		return d
	}
	if s.packed != nil || quant.Unpacks(s.dtype) {
		return torch.Float32
	}
	return Unsupported
}

// Tensor returns a tensor by its Hugging Face name. A tensor of a plain type is a view of the
// mapped file; writing to it does not change the file. A quantized one is decoded to float32 at
// each call. A tensor whose rows lie in another order in the file (see [Mapped]) is copied.
func (c *Checkpoint) Tensor(name string) (torch.Tensor, error) {
	s, err := c.find(name)
	if err != nil {
		return torch.Tensor{}, err
	}
	if c.native != nil {
		return c.nativeWeight(name)
	}
	t, err := s.read(s.torchDType())
	if err == nil && s.transform != nil && s.transform.From != nil {
		t = s.transform.From(t).Contiguous()
	}
	return t, err
}

// read returns the tensor as dtype, which is its own unless it is quantized.
func (s *stored) read(dtype torch.DType) (torch.Tensor, error) {
	_, plain := safetensorsTorch[s.dtype]
	switch {
	case dtype == Unsupported:
		return torch.Tensor{}, s.unsupported()
	case plain && s.whole() && s.offset%dtype.Size() == 0:
		return s.file.Tensor(s.offset, dtype, s.shape), nil
	case plain && s.whole(): // the format allows unaligned offsets, libtorch does not
		return torch.FromBytes(s.data(), dtype, s.shape), nil
	}
	t := torch.Empty(s.shape, dtype, torch.CPU)
	return t, s.decode(t.Data(), dtype)
}

// TensorAs returns a tensor as dtype. It refuses to read integers as floating-point numbers. It
// decodes a quantized tensor to bfloat16 or float16 without a float32 copy; others are
// [Checkpoint.Tensor] and a conversion.
func (c *Checkpoint) TensorAs(name string, dtype torch.DType) (torch.Tensor, error) {
	s, err := c.find(name)
	if err != nil {
		return torch.Tensor{}, err
	}
	_, plain := safetensorsTorch[s.dtype]
	if !plain && s.transform == nil && s.torchDType() != Unsupported && (dtype == torch.BFloat16 ||
		dtype == torch.Float16) {
		t := torch.Empty(s.shape, dtype, torch.CPU)
		return t, s.decode(t.Data(), dtype)
	}
	if d := s.torchDType(); dtype.Floating() && d != Unsupported && !d.Floating() {
		return torch.Tensor{}, fmt.Errorf("%s: tensor %.120q is stored as %s, expected "+
			"floating-point numbers: the integers of a quantized model are no weights",
			s.file.path, name, s.dtype)
	}
	t, err := c.Tensor(name)
	if err != nil || t.DType() == dtype {
		return t, err
	}
	return t.To(dtype), nil
}

func (c *Checkpoint) find(name string) (*stored, error) {
	s, ok := c.tensors[name]
	if !ok {
		return nil, fmt.Errorf("%s has no tensor %.120q", c.Path, name)
	}
	if c.files == nil {
		return nil, fmt.Errorf("%s: closed before tensor %.120q was read", c.Path, name)
	}
	return s, nil
}

func (s *stored) unsupported() error {
	return fmt.Errorf("%s: tensor %.120q is stored as %s, which is not supported: expected one "+
		"of F64, F32, F16, BF16, I64, I32, U8, BOOL, or in GGUF files %s",
		s.file.path, s.name, s.dtype, quant.Unpacked)
}

// whole reports whether the tensor's bytes lie in one file, in order.
func (s *stored) whole() bool {
	return s.headRows == 0 && s.parts == nil && s.strides == nil && s.packed == nil
}

// mixed reports whether the tensor's parts have different types, as those of a quantized file may.
func (s *stored) mixed() bool {
	return slices.ContainsFunc(s.parts, func(p *stored) bool { return p.dtype != s.dtype })
}

// data returns the stored bytes in order: a view of the mapping, or a copy.
func (s *stored) data() []byte {
	if s.parts == nil && s.strides == nil {
		return s.file.Bytes()[s.offset : s.offset+s.bytes]
	}
	all := make([]byte, s.bytes)
	if s.parts == nil {
		copyStrided(all, s.file.Bytes()[s.offset:], safetensorsBits[s.dtype]/8, s.shape, s.strides)
		return all
	}
	// A row of the whole is the parts' rows side by side. If the parts lie below each other, the
	// whole counts as one row.
	rows, at := 1, 0
	if s.joined == 1 {
		rows = s.shape[0]
	}
	for _, p := range s.parts {
		from, size := p.data(), p.bytes/max(rows, 1)
		for r := range rows {
			copy(all[r*s.bytes/rows+at:], from[r*size:(r+1)*size])
		}
		at += size
	}
	return all
}

// quantNames are package quant's names of the dtypes to which it decodes.
var quantNames = map[torch.DType]string{torch.Float32: "F32", torch.BFloat16: "BF16",
	torch.Float16: "F16"}

// decode fills dst with s as dtype, rows in Hugging Face's order.
func (s *stored) decode(dst []byte, dtype torch.DType) error {
	if s.packed != nil {
		return s.unpackTo(dst, quantNames[dtype])
	}
	if s.mixed() {
		size, matrices := len(dst)/len(s.parts), 1
		if s.joined == 1 {
			matrices = s.shape[0]
		}
		part := make([]byte, size)
		for i, p := range s.parts {
			if err := p.decode(part, dtype); err != nil {
				return err
			}
			for m, n := 0, size/matrices; m < matrices; m++ {
				copy(dst[(m*len(s.parts)+i)*n:], part[m*n:(m+1)*n])
			}
		}
		return nil
	}
	rows, columns := 1, 1
	for i, n := range s.shape {
		// the bias of a permuted matrix has rows of one number
		if i < len(s.shape)-1 || s.headRows > 0 && i == 0 {
			rows *= n
		} else {
			columns *= n
		}
	}
	var source func(int) int
	if s.headRows > 0 {
		source = unpermute(s.headRows)
	}
	if plain, ok := safetensorsTorch[s.dtype]; ok && plain == dtype {
		if source == nil {
			copy(dst, s.data())
		} else {
			copyRows(dst, s.data(), rows, source)
		}
		return nil
	}
	err := quant.UnpackRows(dst, quantNames[dtype], s.data(), s.dtype, rows, columns, source)
	if err != nil {
		return fmt.Errorf("%s: tensor %.120q: %w", s.file.path, s.name, err)
	}
	return nil
}

// ConfigJSON returns the text of config.json, or what it would be for a GGUF file; nil if there is
// none. Python's bare words, such as Infinity, are {"__float__": "Infinity"}, as in transformers 5.
func (c *Checkpoint) ConfigJSON() []byte { return slices.Clone(c.config) }

// Config returns config.json as encoding/json decodes it, numbers as float64; nil if there is none.
func (c *Checkpoint) Config() map[string]any { return decoded(c.config) }

// GenerationConfigJSON returns the text of generation_config.json, or what it would be for a GGUF
// file; nil if there is none.
func (c *Checkpoint) GenerationConfigJSON() []byte { return slices.Clone(c.generation) }

// GenerationConfig returns generation_config.json as encoding/json decodes it; nil if there is
// none.
func (c *Checkpoint) GenerationConfig() map[string]any { return decoded(c.generation) }

func decoded(text []byte) map[string]any {
	var m map[string]any
	if text == nil || json.Unmarshal(text, &m) != nil { // readConfigs has checked it
		return nil
	}
	return m
}

// GGUFMetadata returns a GGUF file's metadata, nil for other formats. A value has the Go type of
// its width (uint32, float32, string, …), an array is a slice of it. The caller must not change it.
func (c *Checkpoint) GGUFMetadata() map[string]any { return c.metadata }

// Files lists the paths of the weight files.
func (c *Checkpoint) Files() []string {
	paths := make([]string, len(c.files))
	for i, f := range c.files {
		paths[i] = f.path
	}
	return paths
}

// Release returns the memory of a tensor's part of the file to the system, which reads it again if
// it is needed. What was written to a view of the tensor is lost. A program that reads each tensor
// once uses it to process models larger than memory.
func (c *Checkpoint) Release(name string) {
	s, ok := c.tensors[name]
	if !ok || c.files == nil {
		return
	}
	parts := s.parts
	if s.packed != nil {
		parts = s.packed.parts
	}
	if parts == nil {
		parts = []*stored{s}
	}
	page := os.Getpagesize()
	for _, p := range parts {
		// of a native checkpoint, whose tensors are joined from many files
		if p.file.Mapping == nil {
			continue
		}
		data := p.file.Bytes()
		// whole pages: neighbours may be in use
		first, last := (p.offset+page-1)/page*page, (p.offset+p.bytes)/page*page
		if p.strides == nil && first < last {
			syscall.Madvise(data[first:last], syscall.MADV_DONTNEED) // a hint: it may fail
		}
	}
}

// Close closes the files. Tensors taken from the checkpoint stay valid; Tensor fails from now on.
func (c *Checkpoint) Close() {
	for _, f := range c.files {
		f.Mapping.Close()
	}
	c.files = nil
}
