package quant

import (
	"slices"
	"strconv"
	"strings"
)

// Mix is one of llama.cpp's ways to quantize a model: a kind for most matrices, and kinds of more
// bits for those that suffer most.
type Mix struct {
	Name   string // such as Q4_K_M
	Number uint32 // general.file_type in GGUF files
	kind   string // of most matrices
}

// Mixes lists the mixes by size.
var Mixes = []Mix{
	{"Q2_K", 10, "Q2_K"}, {"Q3_K_S", 11, "Q3_K"}, {"Q3_K_M", 12, "Q3_K"}, {"Q3_K_L", 13, "Q3_K"},
	{"IQ4_XS", 30, "IQ4_XS"}, {"MXFP4", 38, "MXFP4"}, {"IQ4_NL", 25, "IQ4_NL"}, {"Q4_0", 2, "Q4_0"},
	{"Q4_K_S", 14, "Q4_K"}, {"Q4_K_M", 15, "Q4_K"}, {"Q4_1", 3, "Q4_1"}, {"Q5_0", 8, "Q5_0"},
	{"Q5_K_S", 16, "Q5_K"}, {"Q5_K_M", 17, "Q5_K"}, {"Q5_1", 9, "Q5_1"}, {"Q6_K", 18, "Q6_K"},
	{"Q8_0", 7, "Q8_0"},
}

// MixByName finds a mix by its name, in small or capital letters.
func MixByName(name string) (Mix, bool) {
	for _, m := range Mixes {
		if strings.EqualFold(m.Name, name) {
			return m, true
		}
	}
	return Mix{}, false
}

// Model is what a mix asks of a model.
type Model struct {
	Architecture string // general.architecture
	Layers       int
	Heads        int // query heads
	KeyHeads     int // key/value heads
	Experts      int // of a layer, or 0
	// Importance says that errors are weighted by the importance of columns.
	Importance bool
}

// Matrix is a tensor of two dimensions, or of three for a stack of experts, by its GGUF name.
type Matrix struct {
	Name  string
	Shape []int // columns last
}

// Kinds chooses the kind of each matrix. A kind whose blocks do not divide the rows is replaced by
// one in blocks of 32, or by F16. An empty kind stands for a matrix that is not quantized.
func (m Mix) Kinds(model Model, matrices []Matrix) []string {
	c := chooser{Mix: m, Model: model, tied: true}
	for _, t := range matrices {
		c.tied = c.tied && t.Name != "output.weight"
		if part := part(t.Name); part == "attn_v" || part == "attn_qkv" {
			c.values++
		}
	}
	order := make([]int, len(matrices))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order,
		func(a, b int) int { return layer(matrices[a].Name) - layer(matrices[b].Name) })
	kinds := make([]string, len(matrices))
	for _, i := range order {
		if t := matrices[i]; quantized(t.Name) {
			kinds[i] = fitting(c.choose(t), t.Shape[len(t.Shape)-1])
		}
	}
	return kinds
}

// layer is the number in a name such as blk.7.attn_v.weight, or -1.
func layer(name string) int {
	rest, ok := strings.CutPrefix(name, "blk.")
	number, _, _ := strings.Cut(rest, ".")
	if n, err := strconv.Atoi(number); ok && err == nil {
		return n
	}
	return -1
}

// quantized reports whether llama.cpp quantizes a matrix. It leaves routers and convolutions.
func quantized(name string) bool {
	if !strings.HasSuffix(name, ".weight") {
		return false
	}
	switch part := part(name); part {
	case "ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d":
		return false
	default:
		return !strings.HasSuffix(part, "_norm")
	}
}

// part is the last part of a name before .weight, such as attn_v.
func part(name string) string {
	name = strings.TrimSuffix(name, ".weight")
	return name[strings.LastIndexByte(name, '.')+1:]
}

// fitting replaces a kind whose blocks do not divide a row.
func fitting(kind string, columns int) string {
	if t, _ := ByName(kind); columns%t.Block == 0 {
		return kind
	}
	switch kind {
	case "Q2_K", "Q3_K":
		kind = "Q4_0"
	case "IQ4_XS":
		kind = "IQ4_NL"
	case "Q4_K":
		kind = "Q5_0"
	case "Q5_K":
		kind = "Q5_1"
	case "Q6_K":
		kind = "Q8_0"
	}
	if columns%32 != 0 {
		return "F16"
	}
	return kind
}

// chooser counts the matrices of a sort while it chooses.
type chooser struct {
	Mix
	Model
	tied          bool
	values        int // matrices of values
	value, downed int // the number of the next of them, and of the next ffn_down
}

// choose gives the kind before the length of rows is considered.
func (c *chooser) choose(t Matrix) string {
	part := part(t.Name)
	head := t.Name == "output.weight" || c.tied && part == "token_embd"
	if c.Name == "MXFP4" {
		switch {
		case head, part == "token_embd", c.Experts > 0 && len(t.Shape) < 3:
			return "Q8_0"
		}
		return c.kind
	}
	if head {
		switch {
		case c.kind == "Q8_0", t.Shape[len(t.Shape)-1]%256 != 0:
			return "Q8_0"
		}
		return "Q6_K"
	}
	switch {
	case part == "attn_v":
		return c.chooseValue()
	case part == "attn_k" && c.Experts == 8:
		return "Q8_0"
	case strings.HasPrefix(part, "ffn_down"):
		return c.chooseDown(t.Name)
	case part == "attn_output":
		return c.chooseOutput()
	case part == "attn_qkv":
		return c.pick(map[string]string{"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K",
			"Q5_K_M": "Q6_K"})
	}
	return c.kind
}

// pick gives the kind that a table has for the mix, or the mix's own.
func (c *chooser) pick(kinds map[string]string) string {
	if kind, ok := kinds[c.Name]; ok {
		return kind
	}
	return c.kind
}

// moreBits reports whether layer i of n is one of those to which the M mixes give more bits: the
// first and the last eighth, and every third between.
func moreBits(i, n int) bool { return i < n/8 || i >= 7*n/8 || (i-n/8)%3 == 2 }

func (c *chooser) chooseValue() string {
	i := c.value
	c.value++
	shared := c.KeyHeads > 0 && c.Heads/c.KeyHeads >= 4 // by as many query heads
	kind := c.kind
	switch c.Name {
	case "Q2_K":
		kind = "Q3_K"
		if shared {
			kind = "Q4_K"
		}
	case "Q3_K_M":
		kind = "Q4_K"
		if i < 2 {
			kind = "Q5_K"
		}
	case "Q3_K_L":
		kind = "Q5_K"
	case "IQ4_NL", "IQ4_XS":
		if shared {
			kind = "Q5_K"
		}
	case "Q4_K_M", "Q5_K_M":
		if moreBits(i, c.values) {
			kind = "Q6_K"
		}
	case "Q4_K_S":
		if i < 4 {
			kind = "Q5_K"
		}
	}
	if c.Layers == 80 && c.Heads != c.KeyHeads && (kind == "Q3_K" || kind == "Q4_K") {
		kind = "Q5_K" // of 70 billion weights: 8 query heads share the values
	}
	if c.Experts == 8 {
		kind = "Q8_0"
	}
	return kind
}

func (c *chooser) chooseDown(name string) string {
	i, n := c.downed, c.Layers
	c.downed++
	if c.Experts > 1 { // a layer may have several
		i = layer(name)
	}
	switch c.Name {
	case "Q2_K":
		return "Q3_K"
	case "Q3_K_M":
		if i < n/16 {
			return "Q5_K"
		}
		return "Q4_K"
	case "Q3_K_L":
		return "Q5_K"
	case "Q4_K_M", "Q5_K_M":
		if moreBits(i, n) {
			return "Q6_K"
		}
	case "Q4_K_S":
		if i < n/8 {
			return "Q5_K"
		}
	case "IQ4_NL", "IQ4_XS":
		if i < n/8 && !c.Importance {
			return "Q5_K"
		}
	case "Q4_0", "Q5_0":
		if i < n/8 && c.Importance {
			return c.kind[:3] + "1"
		}
	}
	return c.kind
}

func (c *chooser) chooseOutput() string {
	if c.Experts == 8 {
		switch c.Name {
		case "Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS":
			return "Q5_K"
		}
		return c.kind
	}
	return c.pick(map[string]string{"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"})
}
