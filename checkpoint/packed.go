package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"conquer/quant"
	"conquer/torch"
)

// packed is a matrix that a library quantized before it saved it in Hugging Face's layout: several
// tensors of the files, which make one weight.
type packed struct {
	parts   []*stored // the weight first
	open    func() (numbers, error)
	weight8 *stored // of 8-bit floats, else nil
	ordered bool    // there is an index of the columns' groups
}

// numbers are a quantized matrix.
type numbers interface {
	Values(dst []float32)
}

// quantization is the config of a quantized model.
type quantization struct {
	method string
	config map[string]any
}

// The keys under which a config describes quantized weights.
var quantizationKeys = []string{"quantization_config", "compression_config"}

// quantizationOf finds the description of quantized weights in a config.
func quantizationOf(config map[string]any) (q quantization, ok bool) {
	for _, key := range quantizationKeys {
		if q.config, ok = config[key].(map[string]any); ok && len(q.config) > 0 {
			if q.method, ok = q.config["quant_method"].(string); !ok {
				ok = key == "compression_config"
				q.method = "compressed-tensors"
			}
			return q, ok
		}
	}
	return q, false
}

// text returns the value of the first of the keys that has one, in lower case.
func (q quantization) text(keys ...string) string {
	for _, key := range keys {
		if s, ok := q.config[key].(string); ok && s != "" {
			return strings.ToLower(s)
		}
	}
	return ""
}

// number returns the value of the first of the keys that has one, or missing.
func (q quantization) number(missing int, keys ...string) int {
	for _, key := range keys {
		if n, ok := q.config[key].(float64); ok && n == float64(int(n)) {
			return int(n)
		}
	}
	return missing
}

// readers make weights of the tensors of a method. A reader of a variant that it does not read
// returns why.
var readers = map[string]func(q quantization, p *packer) (unread string, err error){
	"gptq": readGPTQ, "awq": readAWQ, "fp8": readFloat8, "fbgemm_fp8": readFloat8,
	"compressed-tensors": readCompressed,
}

// unpack replaces the tensors of quantized matrices by weights, and takes their description out of
// the config, which then is that of the weights. It leaves methods that are not read.
func (c *contents) unpack(path string) error {
	q, ok := quantizationOf(decoded(c.config))
	read := readers[q.method]
	if !ok || read == nil {
		return nil
	}
	p := &packer{tensors: map[string]*stored{}, used: map[*stored]bool{}}
	for _, s := range c.tensors {
		p.tensors[s.name] = s
	}
	for _, s := range c.tensors {
		p.order = append(p.order, s.name)
	}
	unread, err := read(q, p)
	if unread == "" && len(p.made) == 0 {
		unread = "the files hold no tensors of such weights"
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case unread != "":
		c.unread = unread
		return nil
	}
	var config map[string]any
	d := json.NewDecoder(bytes.NewReader(c.config))
	d.UseNumber()
	if err := d.Decode(&config); err != nil {
		return fmt.Errorf("%s: %w", configFile, err)
	}
	for _, key := range quantizationKeys {
		delete(config, key)
	}
	if c.config, err = jsonText(config); err != nil {
		return err
	}
	c.tensors = slices.DeleteFunc(c.tensors, func(s *stored) bool { return p.used[s] })
	c.tensors = append(c.tensors, p.made...)
	return nil
}

// packer finds the tensors of quantized matrices.
type packer struct {
	tensors map[string]*stored
	order   []string // of the names in the files
	used    map[*stored]bool
	made    []*stored
}

// modules lists the names before suffix of the tensors that end in it.
func (p *packer) modules(suffix string) (names []string) {
	for _, name := range p.order {
		if module, ok := strings.CutSuffix(name, suffix); ok && module != "" {
			names = append(names, module)
		}
	}
	return names
}

// take returns a tensor, which then is no weight of its own; nil if there is none.
func (p *packer) take(name string) *stored {
	s := p.tensors[name]
	if s != nil {
		p.used[s] = true
	}
	return s
}

// need is take of a tensor of one of the types, with the given shape. A size of -1 is any.
func (p *packer) need(name string, types []string, shape ...int) (*stored, error) {
	s := p.take(name)
	if s == nil {
		return nil, fmt.Errorf("tensor %.120q is missing: it belongs to a quantized matrix", name)
	}
	return s, s.expect(types, shape...)
}

// expect checks a tensor's type and shape. A size of -1 is any.
func (s *stored) expect(types []string, shape ...int) error {
	fits := slices.Contains(types, s.dtype) && len(s.shape) == len(shape)
	for i, n := range shape {
		fits = fits && (n < 0 || s.shape[i] == n)
	}
	if !fits {
		return fmt.Errorf("tensor %.120q is %s of shape %v, expected %s of shape %s", s.name,
			s.dtype, s.shape, strings.Join(types, " or "),
			strings.ReplaceAll(fmt.Sprint(shape), "-1", "any"))
	}
	return nil
}

// scaleTypes are the types in which scales are stored.
var scaleTypes = []string{"F16", "BF16", "F32"}

var int32Type = []string{"I32"}

// make adds a weight [rows, columns] of a module.
func (p *packer) make(module, kind string, rows, columns int, open func() (numbers, error),
	parts ...*stored) error {
	name := module + ".weight"
	if other := p.tensors[name]; other != nil && other != parts[0] {
		return fmt.Errorf("tensors %.120q and %.120q are two forms of one weight", name,
			parts[0].name)
	}
	if rows < 1 || columns < 1 {
		return fmt.Errorf("tensor %.120q has no numbers", parts[0].name)
	}
	parts = slices.DeleteFunc(parts, func(s *stored) bool { return s == nil })
	s := &stored{record: record{name: name, dtype: kind, shape: []int{rows, columns}},
		file: parts[0].file, packed: &packed{parts: parts, open: open}}
	for _, part := range parts {
		s.bytes += part.bytes
		s.packed.ordered = s.packed.ordered || strings.HasSuffix(part.name, ".g_idx")
	}
	if parts[0].dtype == "F8_E4M3" {
		s.packed.weight8 = parts[0]
	}
	p.made = append(p.made, s)
	return nil
}

// floats reads scales, whose type is one of scaleTypes or F8_E8M0.
func (s *stored) floats() []float32 {
	n := 1
	for _, size := range s.shape {
		n *= size
	}
	list := make([]float32, n)
	if s.dtype == "F8_E8M0" || s.dtype == "U8" {
		quant.Exponents(list, s.data())
	} else {
		quant.Unpack(list, s.dtype, s.data())
	}
	return list
}

// unpackTo writes a quantized matrix as dtype, "F32", "BF16" or "F16".
func (s *stored) unpackTo(dst []byte, dtype string) error {
	n, err := s.packed.open()
	if err != nil {
		return fmt.Errorf("%s: tensor %.120q: %w", s.file.path, s.packed.parts[0].name, err)
	}
	if dtype == "F32" {
		n.Values(quant.Floats(dst))
		return nil
	}
	values := make([]float32, s.shape[0]*s.shape[1])
	n.Values(values)
	return quant.UnpackRows(dst, dtype, quant.Bytes(values), "F32", s.shape[0], s.shape[1], nil)
}

// packedBlocks returns a quantized matrix in blocks, or why it has none.
func (s *stored) packedBlocks() (part torch.BlockPart, why string, err error) {
	n, err := s.packed.open()
	if err != nil {
		return part, "", fmt.Errorf("%s: tensor %.120q: %w", s.file.path, s.packed.parts[0].name,
			err)
	}
	if f, ok := n.(*quant.Float8); ok {
		across := (f.Columns + f.TileColumns - 1) / f.TileColumns
		w := s.packed.weight8
		return torch.BlockPart{Kind: torch.Float8Rows,
			Data:     w.file.Tensor(w.offset, torch.Uint8, w.shape),
			Scales:   torch.From(f.Scales, len(f.Scales)/across, across),
			TileRows: f.TileRows, TileColumns: f.TileColumns}, "", nil
	}
	b, why := n.(*quant.Codes).Blocks()
	if why != "" {
		return part, why, nil
	}
	part.Kind = b.Kind.Number
	part.Data = torch.Empty([]int{s.shape[0], b.RowBytes()}, torch.Uint8, torch.CPU)
	b.Write(part.Data.Data())
	if b.Order != nil {
		part.Order = torch.From(b.Order, len(b.Order))
	}
	return part, "", nil
}

// Unread says why the quantized weights of a Hugging Face folder are not read, although their
// method is known; "" if they are.
func (c *Checkpoint) Unread() string { return c.unread }
