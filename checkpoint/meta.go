package checkpoint

import (
	"bytes"
	"encoding/json"
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
	"conquer/torch"
)

// Meta's layout: params.json and consolidated.00.pth, …, one file for each process that was to run the model. Matrices are
// cut by rows or by columns, as the layer they belong to is split among the processes.

const paramsFile = "params.json"

// metaNames maps Meta's names of whole-model tensors, and of a block's behind "layers.N.", to those of Hugging Face.
var metaNames = map[string]string{
	"tok_embeddings": "model.embed_tokens",
	"norm":           "model.norm",
	"output":         "lm_head",

	"attention_norm":  "input_layernorm",
	"attention.wq":    "self_attn.q_proj",
	"attention.wk":    "self_attn.k_proj",
	"attention.wv":    "self_attn.v_proj",
	"attention.wo":    "self_attn.o_proj",
	"ffn_norm":        "post_attention_layernorm",
	"feed_forward.w1": "mlp.gate_proj",
	"feed_forward.w3": "mlp.up_proj",
	"feed_forward.w2": "mlp.down_proj",
}

// replicated is the "dimension" of tensors that every part holds whole.
const replicated = -1

// metaSplit is the dimension along which the parts hold slices of a tensor of Meta's name and the shape of one part; width
// is the model's. Llama 1 and 2 cut the embedding by columns, Llama 3 by rows.
func metaSplit(name string, shape []int, width int) int {
	stem, kind, _ := cutLast(name, ".")
	switch part := stem[strings.LastIndexByte(stem, '.')+1:]; part {
	case "wq", "wk", "wv", "w1", "w3", "output":
		return 0
	case "wo", "w2":
		if kind == "weight" && len(shape) == 2 {
			return 1
		}
	case "tok_embeddings":
		if len(shape) == 2 && shape[1] != width {
			return 1
		}
		return 0
	}
	return replicated
}

var metaPart = regexp.MustCompile(`^consolidated\.([0-9]{2})\.pth$`)

func isMetaPart(name string) bool { return metaPart.MatchString(name) }

// openMeta opens Meta's layout. A config.json beside params.json, as this package writes it, is taken before the latter,
// which says less.
func (c *Checkpoint) openMeta(dir string) error {
	c.Format = Meta
	params, err := readParams(filepath.Join(dir, paramsFile))
	if err != nil {
		return err
	}
	if err := c.readConfigs(dir); err != nil {
		return err
	}
	parts, err := c.metaParts(dir)
	if err != nil {
		return err
	}
	width, heads, kvHeads := params.Width, params.Heads, params.kvHeads()
	tied := false
	if config := c.Config(); config != nil {
		tied, _ = config["tie_word_embeddings"].(bool)
	} else if out := parts[0].find("output.weight"); out != nil {
		embedding := parts[0].find("tok_embeddings.weight")
		tied = embedding != nil && out.offset == embedding.offset // one storage under two names
	}
	for i, r := range parts[0].records {
		if r.name == "rope.freqs" || tied && r.name == "output.weight" { // the config says as much
			continue
		}
		s, err := joinParts(parts, i, width)
		if err != nil {
			return err
		}
		name, ok := hfName(r.name, "layers.", metaNames)
		if !ok {
			return fmt.Errorf("%s: tensor %.80q is none that a Llama of Meta's has", s.file.path, r.name)
		}
		s.name = name
		if n := metaHeads(name, heads, kvHeads); n > 0 {
			if len(s.shape) == 0 || s.shape[0]%(2*n) != 0 || s.shape[0] != n*params.headDim() {
				return fmt.Errorf("%s: tensor %.80q has shape %v in %d parts, %s asks for %d heads: is a part missing?",
					s.file.path, r.name, s.shape, len(parts), paramsFile, n)
			}
			s.headRows = s.shape[0] / n
		}
		c.add(s)
	}
	if c.config != nil {
		return nil
	}
	config, err := params.config(c, tied)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(dir, paramsFile), err)
	}
	c.config, err = jsonText(config)
	return err
}

// metaHeads gives the number of heads whose rows Meta's layout holds interleaved, or 0.
func metaHeads(name string, heads, kvHeads int) int {
	switch {
	case strings.Contains(name, ".q_proj."):
		return heads
	case strings.Contains(name, ".k_proj."):
		return kvHeads
	}
	return 0
}

type metaFile struct {
	file    *mappedFile
	records []record
}

func (f *metaFile) find(name string) *record {
	for i := range f.records {
		if f.records[i].name == name {
			return &f.records[i]
		}
	}
	return nil
}

// metaParts opens consolidated.00.pth and those that follow it.
func (c *Checkpoint) metaParts(dir string) ([]*metaFile, error) {
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
			return nil, fmt.Errorf("%s: the part consolidated.%02d.pth, which comes before it, is missing", path, len(parts))
		}
		file, err := c.mapFile(path)
		if err != nil {
			return nil, err
		}
		records, err := parseTorch(file.mapping.Bytes())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		parts = append(parts, &metaFile{file, records})
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("%s: there is %s, but no consolidated.00.pth", dir, paramsFile)
	}
	for _, p := range parts[1:] {
		if len(p.records) != len(parts[0].records) {
			return nil, fmt.Errorf("%s: it has %d tensors, %s has %d: a part of another model?", p.file.path, len(p.records), parts[0].file.path, len(parts[0].records))
		}
	}
	return parts, nil
}

// joinParts makes one tensor of the slices of the i-th of the first part.
func joinParts(parts []*metaFile, i, width int) (*stored, error) {
	first := parts[0].records[i]
	whole := &stored{record: first, file: parts[0].file}
	if len(parts) == 1 {
		return whole, nil
	}
	whole.joined = metaSplit(first.name, first.shape, width)
	for _, p := range parts {
		r := &p.records[i]
		if r.name != first.name {
			r = p.find(first.name)
		}
		if r == nil || r.dtype != first.dtype || !slices.Equal(r.shape, first.shape) {
			return nil, fmt.Errorf("%s: tensor %.80q is missing, or not %s of shape %v as in %s: a part of another model?", p.file.path,
				first.name, first.dtype, first.shape, parts[0].file.path)
		}
		s := &stored{record: *r, file: p.file}
		if whole.joined == replicated {
			if !bytes.Equal(s.data(), whole.data()) {
				return nil, fmt.Errorf("%s: tensor %.80q differs from that of %s: a part of another model?", p.file.path, first.name, parts[0].file.path)
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

// metaParams is params.json. Meta's programs take no other keys; ModelType is written for models that they cannot run, so
// that they say so.
type metaParams struct {
	Width         int      `json:"dim"`
	Layers        int      `json:"n_layers"`
	Heads         int      `json:"n_heads"`
	KVHeads       int      `json:"n_kv_heads,omitempty"`
	Vocabulary    int      `json:"vocab_size"`
	MultipleOf    int      `json:"multiple_of,omitempty"`
	FFNMultiplier *float64 `json:"ffn_dim_multiplier,omitempty"`
	Epsilon       float64  `json:"norm_eps"`
	Theta         float64  `json:"rope_theta,omitempty"`
	ScaledRope    bool     `json:"use_scaled_rope,omitempty"`
	ScaleFactor   float64  `json:"rope_scaling_factor,omitempty"`
	HeadDim       int      `json:"head_dim,omitempty"`       // Mistral's
	Inner         int      `json:"hidden_dim,omitempty"`     // Mistral's
	Window        int      `json:"sliding_window,omitempty"` // Mistral's
	ModelType     string   `json:"model_type,omitempty"`
}

func (p *metaParams) kvHeads() int {
	if p.KVHeads > 0 {
		return p.KVHeads
	}
	return p.Heads
}

func (p *metaParams) headDim() int {
	if p.HeadDim > 0 {
		return p.HeadDim
	}
	return p.Width / p.Heads
}

func readParams(path string) (*metaParams, error) {
	text, err := readJSONFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it belongs beside consolidated.00.pth", err)
	}
	if err != nil {
		return nil, err
	}
	p := &metaParams{Epsilon: 1e-5}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("%s: expected a JSON object: %w", path, err)
	}
	for name, n := range map[string]int{"dim": p.Width, "n_layers": p.Layers, "n_heads": p.Heads, "n_kv_heads": p.kvHeads()} {
		if n < 1 || n > 1<<30 {
			return nil, fmt.Errorf("%s: %s is %d or missing, expected a positive integer", path, name, n)
		}
	}
	return p, nil
}

// config is what config.json would say. What params.json leaves to the weights is read off their shapes.
func (p *metaParams) config(c *Checkpoint, tied bool) (map[string]any, error) {
	if p.ModelType != "" && p.ModelType != "mistral" {
		return nil, fmt.Errorf("the config.json of this %.40q model is missing: %s alone does not describe it", p.ModelType, paramsFile)
	}
	embedding, gate := c.tensors["model.embed_tokens.weight"], c.tensors["model.layers.0.mlp.gate_proj.weight"]
	if embedding == nil || gate == nil || len(embedding.shape) != 2 || len(gate.shape) != 2 {
		return nil, fmt.Errorf("the model has no tensor \"tok_embeddings.weight\" or \"layers.0.feed_forward.w1.weight\"")
	}
	theta := p.Theta
	if theta == 0 {
		theta = 10000
	}
	dtype := safetensorsTorch[gate.dtype].String()
	length := 4096
	var scaling any
	if p.ScaledRope {
		factor := p.ScaleFactor
		if factor == 0 {
			factor = 8
		}
		length = 131072
		scaling = map[string]any{"rope_type": "llama3", "factor": json.Number(strconv.FormatFloat(factor, 'f', 1, 64)),
			"low_freq_factor": json.Number("1.0"), "high_freq_factor": json.Number("4.0"), "original_max_position_embeddings": 8192}
	} else if theta == 500000 {
		length = 8192
	}
	config := map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_act": "silu", "hidden_size": p.Width,
		"intermediate_size": gate.shape[0], "num_hidden_layers": p.Layers, "num_attention_heads": p.Heads,
		"num_key_value_heads": p.kvHeads(), "head_dim": p.headDim(), "max_position_embeddings": length, "rms_norm_eps": p.Epsilon,
		"rope_theta": theta, "rope_scaling": scaling, "vocab_size": embedding.shape[0], "tie_word_embeddings": tied,
		"attention_bias": false, "mlp_bias": false, "initializer_range": 0.02, "torch_dtype": dtype,
	}
	if p.Window > 0 || p.ModelType == "mistral" {
		config["architectures"], config["model_type"] = []string{"MistralForCausalLM"}, "mistral"
		config["sliding_window"] = nil
		if p.Window > 0 {
			config["sliding_window"] = p.Window
		}
	}
	asDecimals(config)
	return config, nil
}

// paramsFor is the inverse of config.
func paramsFor(config *llamaConfig) *metaParams {
	p := &metaParams{
		Width: config.Width, Layers: config.Layers, Heads: config.Heads, Vocabulary: config.Vocabulary, Epsilon: config.Epsilon,
	}
	if config.KVHeads != config.Heads {
		p.KVHeads = config.KVHeads
	}
	if config.Theta != 10000 {
		p.Theta = config.Theta
	}
	plain := config.ModelType == "llama" && !config.Biased && config.HeadDim*config.Heads == config.Width
	switch {
	case config.Scaling.kind() == "":
	case config.Scaling.kind() == "llama3" && config.Scaling.Low == 1 && config.Scaling.High == 4 && config.Scaling.Original == 8192:
		p.ScaledRope = true
		if config.Scaling.Factor != 8 {
			p.ScaleFactor = config.Scaling.Factor
		}
	default:
		plain = false
	}
	if config.ModelType == "mistral" && !config.Biased {
		p.HeadDim, p.Inner, p.Window = config.HeadDim, config.Inner, config.Window
		return p
	}
	if !plain {
		p.ModelType, p.HeadDim, p.Inner = config.ModelType, config.HeadDim, config.Inner
		return p
	}
	p.MultipleOf, p.FFNMultiplier = ffnSize(config.Width, config.Inner)
	return p
}

// ffnSize finds the numbers from which Meta's code computes the size of the feed-forward layer: two thirds of 4·width, by a
// multiplier where there is one, rounded up to a multiple.
func ffnSize(width, inner int) (multiple int, multiplier *float64) {
	base := 2 * 4 * width / 3
	up := func(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }
	for _, multiple := range []int{256, 1024, 4096, 128, 64, 32} {
		if up(base, multiple) == inner {
			return multiple, nil
		}
	}
	for _, multiple := range []int{4096, 1024, 256, 64, 1} {
		if inner%multiple != 0 {
			continue
		}
		for _, digits := range []float64{10, 100, 1000, 1e4, 1e6, 1e9} {
			m := math.Floor((float64(inner)-0.5)/float64(base)*digits) / digits
			if m > 0 && up(int(m*float64(base)), multiple) == inner {
				return multiple, &m
			}
			if m += 1 / digits; up(int(m*float64(base)), multiple) == inner {
				return multiple, &m
			}
		}
	}
	m := (float64(inner) + 0.5) / float64(base)
	return 1, &m
}

// SaveMeta writes source into the folder dir in Meta's layout: params.json, consolidated.00.pth, and with options.Parts
// above 1 as many files as that, for as many processes. torch.load takes them with weights_only and mmap. config.json,
// generation_config.json and what options.Also writes lie beside them, because params.json has no place for what they say.
// A model that Meta's code cannot run (biases, other rotary scalings) gets a params.json which that code refuses.
// As [Save] does, it replaces what was there in one step, and holds one tensor at a time.
func SaveMeta(dir string, source Source, options Options) error {
	return saveFolder(dir, func(stage string) error { return fillMeta(stage, source, options) })
}

func fillMeta(dir string, source Source, options Options) error {
	config, err := parseLlamaConfig(options.Config)
	if err != nil {
		return fmt.Errorf("for Meta's layout: %w", err)
	}
	params := paramsFor(config)
	shards, err := plan(source, Options{DType: options.DType, ShardBytes: math.MaxInt})
	if err != nil {
		return err
	}
	parts := max(options.Parts, 1)
	var entries []torchEntry
	for _, r := range shards[0] {
		if ignored(r.name) || config.Tied && r.name == "lm_head.weight" {
			continue
		}
		name, ok := foreignName(r.name, "layers.", metaNames)
		if !ok {
			return fmt.Errorf("tensor %.120q has no place in Meta's layout: use --format hf", r.name)
		}
		e := torchEntry{record: r, source: r.name, heads: metaHeads(r.name, config.Heads, config.KVHeads), split: metaSplit(name, r.shape, config.Width)}
		e.name = name
		if name == "tok_embeddings.weight" && config.Vocabulary < 100_000 {
			e.split = 1 // as Llama 1 and 2 have it
		}
		if parts > 1 && e.split != replicated {
			whole := parts
			if e.heads > 0 {
				whole = e.heads
			}
			if len(r.shape) <= e.split || r.shape[e.split]%parts != 0 || whole%parts != 0 {
				heads := ""
				if e.heads > 0 {
					heads = fmt.Sprintf(", of %d heads,", e.heads)
				}
				return fmt.Errorf("tensor %.120q of shape %v%s cannot be cut in %d equal parts: choose another number of shards", r.name, r.shape, heads, parts)
			}
			e.shape = slices.Clone(r.shape)
			e.shape[e.split] /= parts
			e.bytes /= parts
		}
		entries = append(entries, e)
	}
	if i := slices.IndexFunc(entries, func(e torchEntry) bool { return e.name == "tok_embeddings.weight" }); config.Tied && i >= 0 {
		e := entries[i]
		e.name = "output.weight"
		if parts == 1 || e.split == 0 {
			e.shares = i + 1
		} else {
			e.split = 0
			e.shape = slices.Clone(shards[0][slices.IndexFunc(shards[0], func(r record) bool { return r.name == e.source })].shape)
			if e.shape[0]%parts != 0 {
				return fmt.Errorf("the vocabulary of %d cannot be cut in %d equal parts: choose another number of shards", e.shape[0], parts)
			}
			e.shape[0] /= parts
		}
		entries = append(entries, e)
	}
	for part := range parts {
		name := fmt.Sprintf("consolidated.%02d", part)
		if err := atomicfile.Create(filepath.Join(dir, name+".pth"), func(w io.Writer) error { return writeTorch(w, name, source, entries, part) }); err != nil {
			return err
		}
	}
	texts := map[string][]byte{generationFile: options.GenerationConfig}
	if texts[configFile], err = configFor(options.Config, shards); err != nil {
		return err
	}
	if texts[paramsFile], err = jsonText(params); err != nil {
		return err
	}
	return writeTexts(dir, texts, options)
}

// ignored tells tensors that older programs stored although they follow from the config.
func ignored(name string) bool { return strings.HasSuffix(name, ".rotary_emb.inv_freq") }

// permuteHeads takes rows of heads from Hugging Face's order, the two halves of a head's rotary dimensions apart, to that
// of Meta and GGUF, where they alternate.
func permuteHeads(t torch.Tensor, heads int) torch.Tensor {
	shape := t.Shape()
	split := append([]int{heads, 2, shape[0] / heads / 2}, shape[1:]...)
	return t.Reshape(split...).Transpose(1, 2).Reshape(shape...)
}
