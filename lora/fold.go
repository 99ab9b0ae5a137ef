package lora

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// headWeight is the weight of a head that is not the embedding.
const headWeight = "lm_head.weight"

// Fold returns source's weights with the adapter in the folder dir, in PEFT's format, added, or
// subtracted if unmerge is set. Each weight is computed in float32 when it is read and rounded
// once. Subtracting from rounded weights does not restore every bit. No model is built, and one
// weight is in memory at a time. Close closes the adapter's file.
func Fold(source *checkpoint.Checkpoint, dir string, unmerge bool) (*Folded, error) {
	f, config, err := fold(source, dir)
	if err != nil || !unmerge {
		return f, err
	}
	for _, l := range f.layers {
		l.scale = -l.scale
	}
	switch {
	case config.DoRA:
		err = fmt.Errorf("%s: use_dora is true, and DoRA cannot be taken out of merged weights: "+
			"give the base model", config.path)
	case len(f.whole)+len(f.rows) > 0:
		err = fmt.Errorf("%s: the adapter replaces weights (modules_to_save or "+
			"trainable_token_indices), whose old values a merged model does not hold: give the "+
			"base model", config.path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Replace is [Fold] of the weights alone that the adapter replaces, as a whole (modules_to_save) or
// some rows (trainable_token_indices). On a model with these weights, [Load] and [Attach] apply the
// rest of the adapter.
func Replace(source *checkpoint.Checkpoint, dir string) (*Folded, error) {
	f, _, err := fold(source, dir)
	if err == nil {
		f.layers = nil
	}
	return f, err
}

func fold(source *checkpoint.Checkpoint, dir string) (*Folded, *adapterConfig, error) {
	config, err := readConfig(dir)
	if err != nil {
		return nil, nil, err
	}
	c, err := openWeights(dir)
	if err != nil {
		return nil, nil, err
	}
	f := &Folded{Checkpoint: source, adapter: c, layers: map[matrix]*foldedLayer{},
		whole: map[string]string{}, rows: map[string]tokenRows{}}
	err = f.match(&config)
	if err == nil {
		err = torch.Run(func() error { return f.fit(&config) })
	}
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	return f, &config, nil
}

// Folded is a checkpoint with an adapter folded in, see [Fold] and [Replace].
type Folded struct {
	*checkpoint.Checkpoint
	adapter *checkpoint.Checkpoint
	layers  map[matrix]*foldedLayer
	whole   map[string]string    // tensors that take the place of a weight, by its name
	rows    map[string]tokenRows // rows that take the place of others, by the weight's name
	// embedding is the name of a tied model's embedding, if its head gets other values.
	embedding string
	text      []byte // of the config; nil for the checkpoint's
}

// matrix is a weight that an adapter changes: a whole tensor, with index -1, or one of those that a
// tensor stacks.
type matrix struct {
	weight string
	index  int
}

// matrixOf finds the weight of a linear layer and its shape. The matrices of a stack a.b are the
// layers a.0.b, a.1.b and so on.
func (f *Folded) matrixOf(layer string) (m matrix, info checkpoint.Info, ok bool) {
	m = matrix{layer + ".weight", -1}
	if info, ok = f.Checkpoint.Info(m.weight); ok {
		return m, info, ok
	}
	parts := strings.Split(layer, ".")
	if n := len(parts); n > 2 {
		index, err := strconv.Atoi(parts[n-2])
		m = matrix{strings.Join(slices.Delete(parts, n-2, n-1), ".") + ".weight", index}
		info, ok = f.Checkpoint.Info(m.weight)
		ok = ok && err == nil && len(info.Shape) == 3 && index >= 0 && index < info.Shape[0]
		if ok {
			info.Shape = info.Shape[1:]
		}
	}
	return m, info, ok
}

// foldedLayer holds the names of an adapter's tensors, by part, and the factor of B·A.
type foldedLayer struct {
	layer string
	parts [3]string
	scale float64
}

// tokenRows is a tensor whose rows take the place of those of the given tokens.
type tokenRows struct {
	tensor string
	ids    []int
	height int // rows of the weight afterwards
}

// match finds the weight that each tensor of the adapter belongs to.
func (f *Folded) match(config *adapterConfig) error {
	m, err := model.Check(f.Checkpoint)
	if err != nil {
		return err
	}
	embedding := embeddingName(m)
	for _, name := range f.adapter.Names() {
		layer, part, err := config.split(name)
		if err != nil {
			return err
		}
		info, _ := f.adapter.Info(name)
		key := layer + ".weight"
		at, weight, ok := f.matrixOf(layer)
		if !ok && key == headWeight {
			weight, ok = f.Checkpoint.Info(embedding)
		}
		switch {
		case !ok, part <= partM && len(weight.Shape) != 2:
			return fmt.Errorf("tensor %q belongs to no weight of this model that can be "+
				"adapted: %s", name, otherBase)
		case part == partWhole:
			grows := key == embedding || key == headWeight
			if !slices.Equal(info.Shape, weight.Shape) && !(grows && len(info.Shape) == 2 &&
				info.Shape[1] == weight.Shape[1]) {
				return fmt.Errorf("tensor %q has shape %v, and the weight that it replaces %v",
					name, info.Shape, weight.Shape)
			}
			f.whole[key] = name
		case part == partTokens:
			ids := config.tokens.of(layer, embedding)
			want := []int{len(ids), weight.Shape[1]}
			if len(ids) == 0 || !slices.Equal(info.Shape, want) {
				return fmt.Errorf("tensor %q has shape %v, and trainable_token_indices and the "+
					"model need %v", name, info.Shape, want)
			}
			f.rows[key] = tokenRows{name, ids, max(weight.Shape[0], slices.Max(ids)+1)}
		default:
			err := f.matchLayer(config, at, layer, part, name, info.Shape, weight.Shape)
			if err != nil {
				return err
			}
		}
	}
	for _, name := range config.Save {
		found := false
		for weight := range f.whole {
			found = found || named([]string{name}, layerOf(weight))
		}
		if !found {
			return fmt.Errorf("modules_to_save names %q, but the file has no weight of "+
				"it: the file is incomplete, or the name must be left out there", name)
		}
	}
	if len(config.tokens) > 0 && len(f.rows) == 0 {
		return fmt.Errorf("no tensor ends with %s, which trainable_token_indices needs: the file "+
			"is incomplete, or trainable_token_indices must be null", suffixTokens)
	}
	if len(f.layers) == 0 {
		return errEmpty
	}
	for _, l := range f.layers {
		for i, suffix := range []string{suffixA, suffixB, suffixM} {
			if l.parts[i] == "" && (part(i) != partM || config.DoRA) {
				return missingError(adapterPrefix + l.layer + suffix)
			}
		}
	}
	return nil
}

// matchLayer takes a part of the adapter of a linear layer.
func (f *Folded) matchLayer(config *adapterConfig, at matrix, layer string, part part,
	name string, shape, weight []int) error {
	l := f.layers[at]
	if l == nil {
		l = &foldedLayer{layer: layer}
		f.layers[at] = l
	}
	rank, scale := config.of(layer)
	in, out := weight[1], weight[0]
	if want := [][]int{{rank, in}, {out, rank}, {out}}[part]; !slices.Equal(shape, want) {
		return shapeError(name, shape, want, rank)
	}
	l.parts[part], l.scale = name, scale
	return nil
}

// fit makes the model fit the tensors that the adapter brings. A tied model whose head and
// embedding are no longer equal gets a head of its own, and tokens beyond its vocabulary get rows.
func (f *Folded) fit(config *adapterConfig) error {
	m, err := model.Declare(f.Checkpoint)
	if err != nil {
		return err
	}
	embedding, tied, rows := embeddingName(m), isTied(m), m.Head().Shape[0]
	has := func(name string) bool { return f.whole[name] != "" || f.rows[name].ids != nil }
	if tied && f.whole[headWeight] != "" && f.whole[embedding] != "" {
		same, err := f.equal(f.whole[headWeight], f.whole[embedding])
		if err != nil {
			return err
		}
		if config.tie = config.tie || same; config.tie {
			delete(f.whole, headWeight)
		}
	}
	saved := f.whole[embedding] != "" &&
		named(config.Save, layerOf(embedding))
	if tied && !config.tie && (has(headWeight) || saved) {
		f.embedding, tied = embedding, false
		if err := f.change("tie_word_embeddings", false); err != nil {
			return err
		}
	}
	for _, r := range f.rows {
		for id := rows; id < r.height; id++ {
			if !slices.Contains(r.ids, id) {
				return fmt.Errorf("tensor %q: trainable_token_indices leaves out token %d, of "+
					"which the base model has no row: its row cannot be known", r.tensor, id)
			}
		}
	}
	height := func(name string) int { info, _ := f.Info(name); return info.Shape[0] }
	grown := height(embedding)
	if !tied && height(headWeight) != grown {
		return fmt.Errorf("the embedding gets %d rows and the head %d: the adapter must replace "+
			"both, or the same rows of both", grown, height(headWeight))
	}
	if grown == rows {
		return nil
	}
	return f.change("vocab_size", grown)
}

// equal reports whether two tensors of the adapter have the same values.
func (f *Folded) equal(a, b string) (same bool, err error) {
	torch.Scoped(func() {
		var x, y torch.Tensor
		if x, err = f.adapter.TensorAs(a, torch.Float32); err != nil {
			return
		}
		if y, err = f.adapter.TensorAs(b, torch.Float32); err != nil {
			return
		}
		same = slices.Equal(x.Shape(), y.Shape()) &&
			torch.Item[float64](x.Sub(y).Abs().Max()) == 0
	})
	return same, err
}

// change sets a field of the config.
func (f *Folded) change(field string, value any) error {
	config := map[string]any{}
	d := json.NewDecoder(bytes.NewReader(f.ConfigJSON()))
	d.UseNumber()
	if err := d.Decode(&config); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	config[field] = value
	text, err := json.MarshalIndent(config, "", "  ")
	f.text = append(text, '\n')
	return err
}

// ConfigJSON returns the text of the model's config.
func (f *Folded) ConfigJSON() []byte {
	if f.text != nil {
		return slices.Clone(f.text)
	}
	return f.Checkpoint.ConfigJSON()
}

// Declare makes the model of the weights, without weights.
func (f *Folded) Declare() (model.Model, error) {
	m, err := model.Declare(f.Checkpoint)
	if err != nil || f.text == nil {
		return m, err
	}
	config := m.Config().Clone()
	changed := map[string]any{}
	if err := json.Unmarshal(f.text, &changed); err != nil {
		return nil, err
	}
	for _, field := range []string{"tie_word_embeddings", "vocab_size"} {
		if value, ok := changed[field]; ok {
			config[field] = value
		}
	}
	return model.New(config)
}

// Names lists the tensors.
func (f *Folded) Names() []string {
	names := f.Checkpoint.Names()
	if f.embedding != "" {
		names = append(names, headWeight)
	}
	return names
}

// base returns the name of the checkpoint's tensor that a tensor begins as.
func (f *Folded) base(name string) string {
	if name == headWeight && f.embedding != "" {
		return f.embedding
	}
	return name
}

// Info describes a tensor.
func (f *Folded) Info(name string) (checkpoint.Info, bool) {
	info, ok := f.Checkpoint.Info(f.base(name))
	if tensor := f.whole[name]; tensor != "" && ok {
		other, _ := f.adapter.Info(tensor)
		info.Shape = other.Shape
	}
	if r := f.rows[name]; r.ids != nil && ok {
		info.Shape[0] = r.height
	}
	return info, ok
}

// Blocks has none of the weights that the adapter changes.
func (f *Folded) Blocks(name string) ([]torch.BlockPart, error) {
	_, changed := f.whole[name]
	_, rows := f.rows[name]
	changed = changed || rows || f.base(name) != name
	for at := range f.layers {
		changed = changed || at.weight == name
	}
	if changed {
		return nil, nil
	}
	return f.Checkpoint.Blocks(name)
}

// Tensor returns a weight in its stored dtype.
func (f *Folded) Tensor(name string) (torch.Tensor, error) {
	info, _ := f.Info(name)
	return f.TensorAs(name, info.DType)
}

// TensorAs returns a weight as dtype.
func (f *Folded) TensorAs(name string, dtype torch.DType) (torch.Tensor, error) {
	if tensor := f.whole[name]; tensor != "" {
		return f.adapter.TensorAs(tensor, dtype)
	}
	if r := f.rows[name]; r.ids != nil {
		return f.replaced(name, r, dtype)
	}
	l, stack := f.layers[matrix{name, -1}], f.stack(name)
	if l == nil && stack == nil {
		return f.Checkpoint.TensorAs(f.base(name), dtype)
	}
	w, err := f.Checkpoint.TensorAs(name, torch.Float32)
	if err != nil {
		return w, err
	}
	if l != nil {
		if w, err = f.merged(l, w); err != nil {
			return w, err
		}
		return w.To(dtype), nil
	}
	all := make([]torch.Tensor, w.Size(0))
	for i := range all {
		if all[i] = w.Select(0, i); stack[i] == nil {
			continue
		}
		if all[i], err = f.merged(stack[i], all[i]); err != nil {
			return w, err
		}
	}
	return torch.Stack(0, all...).To(dtype), nil
}

// stack returns the adapters of the matrices that a tensor stacks, by number; nil if there are
// none.
func (f *Folded) stack(name string) (layers map[int]*foldedLayer) {
	for at, l := range f.layers {
		if at.weight == name && at.index >= 0 {
			if layers == nil {
				layers = map[int]*foldedLayer{}
			}
			layers[at.index] = l
		}
	}
	return layers
}

// merged returns the weight w with an adapter added, in float32.
func (f *Folded) merged(l *foldedLayer, w torch.Tensor) (torch.Tensor, error) {
	a := nn.LoRA{Scale: l.scale}
	for i, to := range []**nn.Param{&a.A, &a.B, &a.M} {
		if l.parts[i] == "" {
			continue
		}
		t, err := f.adapter.TensorAs(l.parts[i], torch.Float32)
		if err != nil {
			return t, err
		}
		*to = &nn.Param{Tensor: t}
	}
	return a.Merge(w), nil
}

// replaced returns a weight some of whose rows are the adapter's.
func (f *Folded) replaced(name string, r tokenRows, dtype torch.DType) (torch.Tensor, error) {
	w, err := f.Checkpoint.TensorAs(f.base(name), dtype)
	if err != nil {
		return w, err
	}
	rows, err := f.adapter.TensorAs(r.tensor, dtype)
	if err != nil {
		return rows, err
	}
	all := torch.Empty([]int{r.height, w.Size(1)}, dtype, w.Device())
	all.Narrow(0, 0, w.Size(0)).Copy(w)
	for i, id := range r.ids {
		all.Narrow(0, id, 1).Copy(rows.Narrow(0, i, 1))
	}
	return all, nil
}

// Release gives back the pages of a tensor that was read.
func (f *Folded) Release(name string) { f.Checkpoint.Release(f.base(name)) }

// Close closes the adapter's file. The base checkpoint stays open.
func (f *Folded) Close() { f.adapter.Close() }

// embeddingName returns the name of the weight that maps tokens to hidden states: the first of the
// head's shape.
func embeddingName(m model.Model) (name string) {
	nn.Walk(m, func(c nn.Component) {
		if name == "" && c.Name != headWeight && slices.Equal(c.Param.Shape, m.Head().Shape) {
			name = c.Name
		}
	})
	return name
}

// isTied reports whether m's head is its embedding.
func isTied(m model.Model) bool {
	tied := true
	nn.Walk(m, func(c nn.Component) { tied = tied && c.Name != headWeight })
	return tied
}
