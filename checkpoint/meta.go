package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"conquer/internal/atomicfile"
	"conquer/internal/wrongfile"
)

// Meta's layout is params.json and consolidated.00.pth, …, one file for each process that runs the
// model. Matrices are divided by rows or by columns, as their layers are divided over the
// processes.

const paramsFile = "params.json"

// MetaFamily describes the models of a family in Meta's layout.
type MetaFamily struct {
	Names Names // of tensors, without .weight and .bias
	// Split is the dimension along which the parts hold slices of a tensor, by Meta's name and the
	// shape of one part; width is the model's. Replicated means that every part holds the whole
	// tensor.
	Split func(name string, shape []int, width int) int
	// Read reads params.json.
	Read func(params []byte) (*MetaModel, error)
	// Write gives params.json by config.json.
	Write func(config []byte) (*MetaModel, error)
}

// MetaModel is what params.json says of a model.
type MetaModel struct {
	Width, Heads, KeyHeads, HeadDim, Vocabulary int
	Tied                                        bool
	Params                                      any // params.json, of a model that is written
	// Config gives config.json, of a model that is read. info describes tensors by their Hugging
	// Face names.
	Config func(info func(name string) (Info, bool), tied bool) (map[string]any, error)
	// SplitEmbedding is the dimension along which a written embedding is cut.
	SplitEmbedding int
}

// Replicated is the "dimension" of tensors of which every part holds a complete copy.
const Replicated = -1

var metaPart = regexp.MustCompile(`^consolidated\.([0-9]{2})\.pth$`)

func isMetaPart(name string) bool { return metaPart.MatchString(name) }

// readMeta reads Meta's layout. If there is a config.json beside params.json, as this package
// writes, it is used instead, because it says more.
func readMeta(o *opener, dir string) (format string, c contents, err error) {
	family, ok := familyOf(func(f Family) bool { return f.Meta != nil })
	if !ok {
		return Meta, c, fmt.Errorf("%s: Meta's layout needs a family that has it, such as llama",
			dir)
	}
	path := filepath.Join(dir, paramsFile)
	text, err := o.readConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: it belongs beside consolidated.00.pth", err)
	}
	if err != nil {
		return Meta, c, err
	}
	params, err := family.Meta.Read(text)
	if err != nil {
		return Meta, c, fmt.Errorf("%s: %w", path, wrongfile.Explain(text, wrongfile.JSON, err))
	}
	if c.config, c.generation, err = readConfigs(o, dir); err != nil {
		return Meta, c, err
	}
	parts, err := metaParts(o, dir)
	if err != nil {
		return Meta, c, err
	}
	tied := false
	if out := parts[0].find("output.weight"); out != nil && c.config == nil {
		embedding := parts[0].find("tok_embeddings.weight")
		tied = embedding != nil && out.offset == embedding.offset // one storage under two names
	}
	infos := map[string]Info{}
	for i, r := range parts[0].records {
		// both follow from the config
		if r.name == "rope.freqs" || tied && r.name == "output.weight" {
			continue
		}
		s, err := joinParts(parts, i, func(name string, shape []int) int {
			return family.Meta.Split(name, shape, params.Width)
		})
		if err != nil {
			return Meta, c, err
		}
		if s.name, ok = family.Meta.Names.HuggingFace(r.name); !ok {
			return Meta, c, fmt.Errorf("%s: models in Meta's layout have no tensor %.80q",
				s.file.path, r.name)
		}
		if n := params.interleaved(s.name); n > 0 {
			if len(s.shape) == 0 || s.shape[0]%(2*n) != 0 || s.shape[0] != n*params.HeadDim {
				return Meta, c, fmt.Errorf("%s: tensor %.80q has shape %v in %d parts, %s asks "+
					"for %d heads: is a part missing?",
					s.file.path, r.name, s.shape, len(parts), paramsFile, n)
			}
			s.headRows = s.shape[0] / n
		}
		infos[s.name] = s.info()
		c.tensors = append(c.tensors, s)
	}
	if config := decoded(c.config); config != nil {
		if tied, _ = config["tie_word_embeddings"].(bool); tied {
			err = c.tie(Family{}.embedding() + ".weight")
		}
		return Meta, c, err
	}
	info := func(name string) (Info, bool) {
		found, ok := infos[name]
		return found, ok
	}
	config, err := params.Config(info, tied)
	if err != nil {
		return Meta, c, fmt.Errorf("%s: %w", path, err)
	}
	asDecimals(config)
	c.config, err = jsonText(config)
	return Meta, c, err
}

// interleaved gives the number of heads whose rows Meta's layout holds interleaved, or 0.
func (m *MetaModel) interleaved(name string) int {
	switch {
	case strings.Contains(name, ".q_proj."):
		return m.Heads
	case strings.Contains(name, ".k_proj."):
		return m.KeyHeads
	}
	return 0
}

type metaFile struct {
	file    *mapping
	records []record
	byName  map[string]*record
}

func (f *metaFile) find(name string) *record { return f.byName[name] }

// metaParts opens consolidated.00.pth and those that follow it.
func metaParts(o *opener, dir string) ([]*metaFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var parts []*metaFile
	for _, e := range entries { // sorted by name
		match := metaPart.FindStringSubmatch(e.Name())
		if match == nil {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if n, _ := strconv.Atoi(match[1]); n != len(parts) {
			return nil, fmt.Errorf("%s: the part before it, consolidated.%02d.pth, is missing",
				path, len(parts))
		}
		file, err := o.open(path)
		if err != nil {
			return nil, err
		}
		records, err := parseTorch(file.Bytes(), o.budget)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path,
				wrongfile.Explain(file.Bytes(), wrongfile.PyTorch, err))
		}
		part := &metaFile{file, records, map[string]*record{}}
		for i := range records {
			part.byName[records[i].name] = &records[i]
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("%s: there is %s, but no consolidated.00.pth; %s", dir, paramsFile,
			nameForeign(dir))
	}
	for _, p := range parts[1:] {
		if len(p.records) != len(parts[0].records) {
			return nil, fmt.Errorf("%s: it has %d tensors, %s has %d: a part of another model?",
				p.file.path, len(p.records), parts[0].file.path, len(parts[0].records))
		}
	}
	return parts, nil
}

// joinParts joins the parts' slices of the tensor that is the i-th of the first part.
func joinParts(parts []*metaFile, i int, split func(name string, shape []int) int) (*stored,
	error) {
	first := parts[0].records[i]
	whole := &stored{record: first, file: parts[0].file}
	if len(parts) == 1 {
		return whole, nil
	}
	whole.joined = split(first.name, first.shape)
	for _, p := range parts {
		r := &p.records[i]
		if r.name != first.name {
			r = p.find(first.name)
		}
		if r == nil || r.dtype != first.dtype || !slices.Equal(r.shape, first.shape) {
			return nil, fmt.Errorf("%s: tensor %.80q is missing, or not %s of shape %v as in %s: "+
				"a part of another model?", p.file.path,
				first.name, first.dtype, first.shape, parts[0].file.path)
		}
		s := &stored{record: *r, file: p.file}
		if whole.joined == Replicated {
			if !bytes.Equal(s.data(), whole.data()) {
				return nil, fmt.Errorf("%s: tensor %.80q differs from that of %s: a part of "+
					"another model?", p.file.path, first.name, parts[0].file.path)
			}
			continue
		}
		whole.parts = append(whole.parts, s)
	}
	if whole.parts != nil {
		whole.strides = nil
		whole.shape = slices.Clone(first.shape)
		whole.shape[whole.joined] *= len(parts)
		whole.bytes *= len(parts)
	}
	return whole, nil
}

// SaveMeta writes source into the folder dir in Meta's layout: params.json and options.Parts files
// consolidated.NN.pth, one for each process. torch.load reads them with weights_only and mmap.
// config.json, generation_config.json and what options.Also writes are stored beside them, because
// params.json cannot hold all that they say. If Meta's code cannot run a model (biases, other
// rotary scalings), that code refuses its params.json. Like [Save] it replaces the old files and
// holds one tensor in memory at a time.
func SaveMeta(dir string, source Source, options Options) error {
	return saveFolder(dir, func(stage string) error { return fillMeta(stage, source, options) })
}

func fillMeta(dir string, source Source, options Options) error {
	family, err := familyFor(options.Config, "Meta's layout",
		func(f Family) bool { return f.Meta != nil })
	if err != nil {
		return err
	}
	model, err := family.Meta.Write(options.Config)
	if err != nil {
		return err
	}
	shards, err := plan(source, Options{DType: options.DType, ShardBytes: math.MaxInt})
	if err != nil {
		return err
	}
	parts := max(options.Parts, 1)
	var entries []torchEntry
	for _, r := range shards[0] {
		if ignored(r.name) || model.Tied && r.name == "lm_head.weight" {
			continue
		}
		name, ok := family.Meta.Names.Foreign(r.name)
		if !ok {
			return fmt.Errorf("tensor %.120q has no place in Meta's layout: use --format hf",
				r.name)
		}
		e := torchEntry{record: r, source: r.name, heads: model.interleaved(r.name),
			split: family.Meta.Split(name, r.shape, model.Width)}
		e.name = name
		if name == "tok_embeddings.weight" {
			e.split = model.SplitEmbedding
		}
		if parts > 1 && e.split != Replicated {
			whole := parts
			if e.heads > 0 {
				whole = e.heads
			}
			if len(r.shape) <= e.split || r.shape[e.split]%parts != 0 || whole%parts != 0 {
				heads := ""
				if e.heads > 0 {
					heads = fmt.Sprintf(", of %d heads,", e.heads)
				}
				return fmt.Errorf("tensor %.120q of shape %v%s cannot be divided into %d equal "+
					"parts: choose another number of shards", r.name, r.shape, heads, parts)
			}
			e.shape = slices.Clone(r.shape)
			e.shape[e.split] /= parts
			e.bytes /= parts
		}
		entries = append(entries, e)
	}
	if i := slices.IndexFunc(entries,
		func(e torchEntry) bool { return e.name == "tok_embeddings.weight" }); model.Tied &&
		i >= 0 {
		e := entries[i]
		e.name = "output.weight"
		if parts == 1 || e.split == 0 {
			e.shares = i + 1
		} else {
			e.split = 0
			e.shape = slices.Clone(shards[0][slices.IndexFunc(shards[0],
				func(r record) bool { return r.name == e.source })].shape)
			if e.shape[0]%parts != 0 {
				return fmt.Errorf("the vocabulary of %d cannot be divided into %d equal parts: "+
					"choose another number of shards", e.shape[0], parts)
			}
			e.shape[0] /= parts
		}
		entries = append(entries, e)
	}
	for part := range parts {
		name := fmt.Sprintf("consolidated.%02d", part)
		if err := atomicfile.Create(filepath.Join(dir, name+".pth"),
			func(w io.Writer) error {
				return writeTorch(w, name, source, entries,
					part)
			}); err != nil {
			return err
		}
	}
	texts := map[string][]byte{generationFile: options.GenerationConfig}
	if texts[configFile], err = configFor(options.Config, shards); err != nil {
		return err
	}
	if texts[paramsFile], err = jsonText(model.Params); err != nil {
		return err
	}
	return writeTexts(dir, texts, options)
}

// ignored reports whether a tensor follows from the config; older programs stored some.
func ignored(name string) bool { return strings.HasSuffix(name, ".rotary_emb.inv_freq") }
