package lora

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"conquer/model"
	"conquer/torch/nn"
)

// AllLinear as the only target selects every linear layer of the blocks that PEFT adapts too: on
// Mamba-2 that excludes out_proj, which can be named besides it or instead of it.
const AllLinear = "all-linear"

// Defaults of a [Config].
const (
	DefaultRank = 16
	// DefaultAlphaPerRank is the default of Alpha divided by Rank: the scale of an adapter.
	DefaultAlphaPerRank = 2
)

// Config describes the adapters of a model. The zero Config is complete: rank 16, alpha 32, no
// dropout, on all linear layers. Its fields mean what PEFT's LoraConfig calls r, lora_alpha,
// lora_dropout, target_modules, exclude_modules, layers_to_transform, use_rslora, rank_pattern,
// alpha_pattern, use_dora, init_lora_weights, modules_to_save and trainable_token_indices.
type Config struct {
	Rank    int     `json:"rank"`    // 0 means DefaultRank
	Alpha   float64 `json:"alpha"`   // output is scaled by Alpha/Rank; 0 means twice the rank
	Dropout float64 `json:"dropout"` // share of an adapter's inputs that is dropped
	// Targets are names of layers (model.layers.0.self_attn.q_proj) or their last components
	// (q_proj, self_attn.q_proj), or AllLinear; nil means AllLinear.
	Targets []string `json:"targets"`
	// Exclude names layers that get no adapter, in the form of Targets.
	Exclude []string `json:"exclude,omitempty"`
	// Layers are the numbers of the blocks that get adapters, from 0; nil means all.
	Layers []int `json:"layers,omitempty"`
	// RSLoRA scales the output by Alpha/√Rank instead (Kalajdzievski, arXiv 2312.03732).
	RSLoRA bool `json:"rslora,omitempty"`
	// RankPattern and AlphaPattern give single layers another rank and alpha.
	RankPattern  Patterns `json:"rank_pattern,omitempty"`
	AlphaPattern Patterns `json:"alpha_pattern,omitempty"`
	// DoRA also trains the lengths of the weights' rows (Liu et al., arXiv 2402.09353).
	DoRA bool `json:"dora,omitempty"`
	// Init is how A and B begin: InitDefault or InitPiSSA.
	Init string `json:"init,omitempty"`
	// Save names weights that are trained as a whole beside the adapters: those of the embedding
	// (embed_tokens, or embeddings) and of the head (lm_head). A tied head is the embedding.
	Save []string `json:"save,omitempty"`
	// Tokens are the ids of tokens whose rows of the embedding, and of a head that is not tied, are
	// trained beside the adapters.
	Tokens []int `json:"tokens,omitempty"`
	// TokenLayers names the layers whose rows of Tokens are trained, in the form of Save; nil means
	// both.
	TokenLayers []string `json:"token_layers,omitempty"`
	// From, if not "", is the folder of an adapter whose weights are the first ones. The fields
	// above describe that adapter, see [Open].
	From string `json:"from,omitempty"`
}

// Values of Init.
const (
	// InitDefault draws A as PyTorch draws a linear layer's weight. B is zero.
	InitDefault = ""
	// InitPiSSA takes the largest singular values of the weight, and subtracts the product of A and
	// B from it (Meng et al., arXiv 2404.02948). The adapter is saved as a plain one of twice the
	// rank, which belongs to the weight as it was.
	InitPiSSA = "pissa"
)

// Inits lists the values of Init.
var Inits = []string{InitDefault, InitPiSSA}

// Complete returns c with the defaults of its zero fields filled in.
func (c Config) Complete() Config {
	if c.Rank == 0 {
		c.Rank = DefaultRank
	}
	if c.Alpha == 0 {
		c.Alpha = DefaultAlphaPerRank * float64(c.Rank)
	}
	if len(c.Targets) == 0 {
		c.Targets = []string{AllLinear}
	}
	return c
}

// maxRank is the largest rank: the widths of common models are smaller.
const maxRank = 1 << 16

// Check returns an error if a field is out of range.
func (c Config) Check() error {
	switch c = c.Complete(); {
	case c.Rank < 1 || c.Rank > maxRank:
		return fmt.Errorf("LoRA rank is %d, expected 1 to %d", c.Rank, maxRank)
	case !(c.Alpha > 0):
		return fmt.Errorf("LoRA alpha is %g, expected a number above 0", c.Alpha)
	case !(c.Dropout >= 0 && c.Dropout < 1):
		return fmt.Errorf("LoRA dropout is %g, expected at least 0 and below 1", c.Dropout)
	case !slices.Contains(Inits, c.Init):
		return fmt.Errorf("unknown LoRA initialization %q: choose default or %s", c.Init,
			InitPiSSA)
	}
	if len(c.Save) > 0 && len(c.Tokens) > 0 {
		return errors.New("LoRA trains embeddings as a whole (--lora_save) or the rows of some " +
			"tokens (--lora_tokens): choose one")
	}
	for _, p := range c.RankPattern {
		if p.Value < 1 || p.Value > maxRank || p.Value != math.Trunc(p.Value) {
			return fmt.Errorf("the rank pattern %.80q has the rank %g: expected a whole number "+
				"from 1 to %d", p.Key, p.Value, maxRank)
		}
	}
	for _, p := range c.AlphaPattern {
		if !(p.Value > 0) {
			return fmt.Errorf("the alpha pattern %.80q has the alpha %g: expected a number above 0",
				p.Key, p.Value)
		}
	}
	return nil
}

// Adapts reports whether l gets an adapter.
func (c Config) Adapts(l Layer) bool {
	targets := c.Complete().Targets
	switch {
	case named(c.Exclude, l.Name),
		len(c.Layers) > 0 && !slices.Contains(c.Layers, blockOf(l.Name)):
		return false
	}
	return named(targets, l.Name) || slices.Contains(targets, AllLinear) && !l.Refused
}

// Unread lists the last parts of the names of layers of m that c adapts and on which PEFT loads no
// adapter: readers other than this program need the adapter merged into the weights.
func (c Config) Unread(m model.Model) (names []string) {
	for _, l := range Layers(m) {
		name := lastComponent(l.Name)
		if l.Refused && c.Adapts(l) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// named returns c's targets with names in place of AllLinear, by which PEFT finds the same layers
// of m. For an adapter of [Open] these are the last components of the layers' names, if they
// suffice.
func (c Config) named(m model.Model) (targets []string) {
	if c.From != "" {
		all := Layers(m)
		for _, l := range all {
			if name := lastComponent(l.Name); c.Adapts(l) && !slices.Contains(targets, name) {
				targets = append(targets, name)
			}
		}
		if slices.ContainsFunc(all,
			func(l Layer) bool { return named(targets, l.Name) != c.Adapts(l) }) {
			return c.Targets
		}
		return targets
	}
	for _, name := range c.Complete().Targets {
		if name != AllLinear {
			targets = append(targets, name)
		}
	}
	if slices.Contains(c.Complete().Targets, AllLinear) {
		for _, l := range Layers(m) {
			if name := lastComponent(l.Name); c.Adapts(l) && !named(targets, name) {
				targets = append(targets, name)
			}
		}
	}
	return targets
}

// named reports whether a name of the list is that of the layer, or its last components.
func named(list []string, layer string) bool {
	return slices.ContainsFunc(list, func(name string) bool {
		return layer == name || strings.HasSuffix(layer, "."+name)
	})
}

// inBlock matches the names of layers in a block, as PEFT does.
var inBlock = regexp.MustCompile(`^.*?\.[^.]*\.([0-9]+)\.`)

// blockOf returns the number of the block that a layer is in, -1 for a layer outside.
func blockOf(layer string) int {
	if parts := inBlock.FindStringSubmatch(layer); parts != nil {
		if n, err := strconv.Atoi(parts[1]); err == nil {
			return n
		}
	}
	return -1
}

// RankOf returns the rank of the adapter that l gets.
func (c Config) RankOf(l Layer) int {
	rank, _ := c.Complete().of(l.Name)
	return rank
}

// of returns the rank of a layer's adapter and the factor of its B·A.
func (c Config) of(layer string) (rank int, scale float64) {
	r := c.RankPattern.first(layer, float64(c.Rank))
	alpha := c.AlphaPattern.first(layer, c.Alpha)
	if c.RSLoRA {
		return int(r), alpha / math.Sqrt(r)
	}
	return int(r), alpha / r
}

// Weights lists the weights of m that c trains beside the adapters: the embedding, the head, or
// both; of Tokens some rows.
func (c Config) Weights(m model.Model) (list []nn.Component) {
	embedding, tied := embeddingName(m), isTied(m)
	head := slices.Contains(c.Save, "lm_head")
	nn.Walk(m, func(p nn.Component) {
		rows := len(c.Tokens) > 0 &&
			(len(c.TokenLayers) == 0 || named(c.TokenLayers, layerOf(p.Name)))
		switch p.Name {
		case embedding:
			if rows || named(c.Save, layerOf(embedding)) || head && tied {
				list = append(list, p)
			}
		case headWeight:
			if rows || head {
				list = append(list, p)
			}
		}
	})
	return list
}

// layerOf returns the layer of a weight.
func layerOf(weight string) string { return strings.TrimSuffix(weight, ".weight") }

// doubled is c for adapters of twice the ranks with the same factors.
func (c Config) doubled() Config {
	more := 2.0
	if c.RSLoRA {
		more = math.Sqrt2
	}
	c.Rank, c.Alpha = 2*c.Rank, more*c.Alpha
	c.RankPattern, c.AlphaPattern = slices.Clone(c.RankPattern), slices.Clone(c.AlphaPattern)
	for i := range c.RankPattern {
		c.RankPattern[i].Value *= 2
	}
	for i := range c.AlphaPattern {
		c.AlphaPattern[i].Value *= more
	}
	return c
}

// CheckModel returns an error if a field of c is out of range, if a part of it names none of m's
// layers, or if no layer is left to adapt.
func (c Config) CheckModel(m model.Model) error {
	if err := c.Check(); err != nil {
		return err
	}
	all := Layers(m)
	any := func(test func(l Layer) bool) bool { return slices.ContainsFunc(all, test) }
	for what, list := range map[string][]string{"target": c.Targets, "exclusion": c.Exclude} {
		for _, name := range list {
			if name == AllLinear && what == "target" ||
				any(func(l Layer) bool { return named([]string{name}, l.Name) }) {
				continue
			}
			var known []string
			for _, l := range all {
				if last := lastComponent(l.Name); !slices.Contains(known, last) {
					known = append(known, last)
				}
			}
			choice := strings.Join(known, ", ")
			if what == "target" {
				choice = AllLinear + ", or from " + choice
			}
			return fmt.Errorf("LoRA %s %q names no layer: choose %s", what, name, choice)
		}
	}
	for _, n := range c.Layers {
		if !any(func(l Layer) bool { return blockOf(l.Name) == n }) {
			return fmt.Errorf("--lora_layers: the model has no block %d with linear layers: its "+
				"blocks have the numbers 0 to %d", n, len(m.Blocks())-1)
		}
	}
	if !any(c.Adapts) {
		return errors.New("LoRA adapts no layer: --lora_exclude and --lora_layers leave none of " +
			"--lora_targets")
	}
	for _, name := range c.Save {
		if name != "lm_head" && !named([]string{name}, layerOf(embeddingName(m))) {
			return fmt.Errorf("--lora_save cannot train %q as a whole: choose from lm_head, %s",
				name, lastComponent(layerOf(embeddingName(m))))
		}
	}
	for _, id := range c.Tokens {
		if rows := m.Head().Shape[0]; id < 0 || id >= rows {
			return fmt.Errorf("--lora_tokens: there is no token %d: the model's vocabulary has "+
				"the ids 0 to %d", id, rows-1)
		}
	}
	if c.From != "" { // patterns of a file may match layers that another model has
		return nil
	}
	for what, list := range map[string]Patterns{"rank": c.RankPattern, "alpha": c.AlphaPattern} {
		for _, p := range list {
			if !any(func(l Layer) bool { return c.Adapts(l) && p.matches.MatchString(l.Name) }) {
				return fmt.Errorf("--lora_%s_pattern: %.80q matches none of the adapted layers, "+
					"such as %s", what, p.Key, all[slices.IndexFunc(all, c.Adapts)].Name)
			}
		}
	}
	return nil
}

// Pattern gives some layers a rank or an alpha: those whose name, or whose last components, the
// regular expression Key matches as a whole.
type Pattern struct {
	Key     string
	Value   float64
	matches *regexp.Regexp
}

// NewPattern compiles a pattern.
func NewPattern(key string, value float64) (Pattern, error) {
	matches, err := regexp.Compile(`^(.*\.)?(` + key + `)$`)
	var problem *syntax.Error
	if errors.As(err, &problem) {
		err = fmt.Errorf("%.80q is not a regular expression that this program can read: %s", key,
			problem.Code)
	}
	return Pattern{key, value, matches}, err
}

// Patterns are the patterns of a model. The first that matches a layer counts. As JSON they are an
// object, whose order counts too.
type Patterns []Pattern

// maxPatterns is the largest number of patterns: each is compared with the name of each layer.
const maxPatterns = 1024

// UnmarshalJSON reads an object of patterns and numbers.
func (p *Patterns) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open == nil {
		return err
	} else if open != json.Delim('{') {
		return errors.New("expected an object of patterns and numbers")
	}
	for d.More() {
		if len(*p) == maxPatterns {
			return fmt.Errorf("more than %d patterns", maxPatterns)
		}
		key, err := d.Token()
		if err != nil {
			return err
		}
		var value float64
		if err := d.Decode(&value); err != nil {
			return fmt.Errorf("%q: %w", key, err)
		}
		pattern, err := NewPattern(key.(string), value)
		if err != nil {
			return err
		}
		*p = append(*p, pattern)
	}
	return nil
}

// MarshalJSON writes the object that UnmarshalJSON reads.
func (p Patterns) MarshalJSON() ([]byte, error) {
	text := []byte("{")
	for i, pattern := range p {
		key, err := json.Marshal(pattern.Key)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			text = append(text, ',')
		}
		text = append(append(text, key...), ':')
		text = strconv.AppendFloat(text, pattern.Value, 'g', -1, 64)
	}
	return append(text, '}'), nil
}

// first returns the value of the first pattern that matches layer.
func (p Patterns) first(layer string, otherwise float64) float64 {
	for _, pattern := range p {
		if pattern.matches.MatchString(layer) {
			return pattern.Value
		}
	}
	return otherwise
}
