package main

import (
	"bytes"
	"encoding/binary"
	"math"
	"path/filepath"
	"strings"
	"testing"
)

// The types of GGUF values that the cases below use.
const (
	ggufUint8  = uint32(0)
	ggufUint32 = uint32(4)
	ggufString = uint32(8)
	ggufArray  = uint32(9)
)

// gguf lays out a GGUF file. Its fields may be wrong on purpose.
type gguf struct {
	pairs, tensors   uint64 // as the header gives them; by default those that were added
	metadata, places bytes.Buffer
	data             int
}

// bytesOf lays out values: texts with their length, numbers by their width.
func bytesOf(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		if text, ok := v.(string); ok {
			b.Write(bytesOf(uint64(len(text))))
			b.WriteString(text)
		} else if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// set adds an entry of the metadata: a key, the type of its value and the value.
func (g *gguf) set(key string, kind uint32, value ...any) *gguf {
	g.pairs++
	g.metadata.Write(bytesOf(append([]any{key, kind}, value...)...))
	return g
}

// tensor adds an F32 tensor of zeros.
func (g *gguf) tensor(name string, columnsFirst ...uint64) *gguf {
	g.tensors++
	size := 4
	for _, n := range columnsFirst {
		size *= int(n)
	}
	g.places.Write(bytesOf(name, uint32(len(columnsFirst)), columnsFirst, uint32(0),
		uint64(g.data)))
	g.data += (size + 31) / 32 * 32
	return g
}

func (g *gguf) text() string {
	text := "GGUF" + string(bytesOf(uint32(3), g.tensors, g.pairs)) + g.metadata.String() +
		g.places.String()
	return text + strings.Repeat("\x00", (32-len(text)%32)%32+g.data)
}

// tinyGGUF is a llama of width 8 with one head and two layers.
func tinyGGUF() *gguf {
	g := &gguf{}
	g.set("general.architecture", ggufString, "llama")
	for key, n := range map[string]uint32{"embedding_length": 8, "block_count": 2,
		"feed_forward_length": 4, "attention.head_count": 1, "context_length": 64} {
		g.set("llama."+key, ggufUint32, n)
	}
	g.set("llama.attention.layer_norm_rms_epsilon", 6, math.Float32bits(1e-5))
	g.tensor("token_embd.weight", 8, 16).tensor("output_norm.weight", 8)
	for _, block := range []string{"blk.0.", "blk.1."} {
		for name, shape := range map[string][]uint64{"attn_norm": {8}, "ffn_norm": {8},
			"attn_q": {8, 8}, "attn_k": {8, 8}, "attn_v": {8, 8}, "attn_output": {8, 8},
			"ffn_gate": {8, 4}, "ffn_up": {8, 4}, "ffn_down": {4, 8}} {
			g.tensor(block+name+".weight", shape...)
		}
	}
	return g
}

// inGGUF makes the build function of a GGUF model, which is followed by holes up to size.
func inGGUF(make func() *gguf, size int64) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		path := filepath.Join(dir, "model.gguf")
		text := make().text()
		hole(t, path, text, max(size, int64(len(text))))
		return path
	}
}

var tokenIDs = []string{"--token_ids", "1,2"}

// hostileGGUF are GGUF files with hostile headers.
var hostileGGUF = []hostileModel{
	{name: "gguf: small", build: inGGUF(tinyGGUF, 0), args: tokenIDs},
	{name: "gguf: fewer layers than tensors", build: inGGUF(func() *gguf {
		return tinyGGUF().tensor("blk.2.attn_norm.weight", 8)
	}, 0), args: tokenIDs, want: "model.layers.2.input_layernorm.weight"},
	{name: "gguf: a bias in one layer", build: inGGUF(func() *gguf {
		return tinyGGUF().tensor("blk.1.attn_q.bias", 8)
	}, 0), args: tokenIDs, want: "model.layers.1.self_attn.q_proj.bias"},
	{name: "gguf: 2^40 tensors in 1 TB", build: inGGUF(func() *gguf {
		g := tinyGGUF()
		g.tensors = 1 << 35
		return g
	}, 1<<40), args: tokenIDs, want: "tensor"},
	{name: "gguf: 2^35 entries in 1 TB", build: inGGUF(func() *gguf {
		g := tinyGGUF()
		g.pairs = 1 << 35
		return g
	}, 1<<40), args: tokenIDs, want: "metadata"},
	{name: "gguf: a list of 2^39 bytes in 1 TB", build: inGGUF(func() *gguf {
		return (&gguf{}).set("a", ggufArray, ggufUint8, uint64(1<<39))
	}, 1<<40), args: tokenIDs, want: "128 MB of memory"},
	{name: "gguf: a list of 2^36 texts in 1 TB", build: inGGUF(func() *gguf {
		return (&gguf{}).set("a", ggufArray, ggufString, uint64(1<<36))
	}, 1<<40), args: tokenIDs, want: "128 MB of memory"},
	{name: "gguf: a list of 2^35 lists in 1 TB", build: inGGUF(func() *gguf {
		return (&gguf{}).set("a", ggufArray, ggufArray, uint64(1<<35))
	}, 1<<40), args: tokenIDs, want: "128 MB of memory"},
	{name: "gguf: a text of 1 TB", build: inGGUF(func() *gguf {
		return (&gguf{}).set("a", ggufString, uint64(1<<39))
	}, 1<<40), args: tokenIDs, want: "128 MB of memory"},
	{name: "gguf: ten million empty texts", build: inGGUF(func() *gguf {
		return tinyGGUF().set("a", ggufArray, ggufString, uint64(10_000_000),
			make([]uint64, 10_000_000))
	}, 0), args: tokenIDs, want: "128 MB of memory"},
	{name: "gguf: three million empty lists", build: inGGUF(func() *gguf {
		lists := strings.Repeat(string(bytesOf(ggufUint8, uint64(0))), 3_000_000)
		return tinyGGUF().set("a", ggufArray, ggufArray, uint64(3_000_000), []byte(lists))
	}, 0), args: tokenIDs},
	{name: "gguf: nested lists", build: inGGUF(func() *gguf {
		return tinyGGUF().set("a", ggufArray, []byte(strings.Repeat(string(bytesOf(ggufArray,
			uint64(1))), 100_000)))
	}, 0), args: tokenIDs, want: "nested"},
	{name: "gguf: a key twice", build: inGGUF(func() *gguf {
		return tinyGGUF().set("general.architecture", ggufString, "llama")
	}, 0), args: tokenIDs, want: "twice"},
	{name: "gguf: a tensor twice", build: inGGUF(func() *gguf {
		return tinyGGUF().tensor("token_embd.weight", 8, 16)
	}, 0), args: tokenIDs, want: "twice"},
	{name: "gguf: alignment 0", build: inGGUF(func() *gguf {
		return tinyGGUF().set("general.alignment", ggufUint32, uint32(0))
	}, 0), args: tokenIDs, want: "general.alignment is 0"},
	{name: "gguf: alignment 24", build: inGGUF(func() *gguf {
		return tinyGGUF().set("general.alignment", ggufUint32, uint32(24))
	}, 0), args: tokenIDs, want: "general.alignment is 24"},
	{name: "gguf: 60,000 files", build: inGGUF(func() *gguf {
		return tinyGGUF().set("split.count", ggufUint32, uint32(60_000))
	}, 0), args: tokenIDs, want: "60000"},
	{name: "gguf: 2^31 heads", build: inGGUF(func() *gguf {
		return tinyGGUF().set("llama.attention.key_length", ggufUint32, uint32(1<<31)).
			set("llama.attention.value_length", ggufUint32, uint32(1<<31))
	}, 0), args: tokenIDs, want: "head"},
	{name: "gguf: a window of 2^32", build: inGGUF(func() *gguf {
		return tinyGGUF().set("llama.attention.sliding_window", ggufUint32, uint32(1<<32-1))
	}, 0), args: tokenIDs, want: "sliding_window"},
	{name: "gguf: a frequency base of 0", build: inGGUF(func() *gguf {
		return tinyGGUF().set("llama.rope.freq_base", 6, uint32(0))
	}, 0), args: tokenIDs, want: "rope_theta"},
	{name: "gguf: a frequency base of infinity", build: inGGUF(func() *gguf {
		return tinyGGUF().set("llama.rope.freq_base", 6, math.Float32bits(float32(math.Inf(1))))
	}, 0), args: tokenIDs, want: "rope.freq_base"},
	{name: "gguf: a million empty tensors", build: inGGUF(func() *gguf {
		g := tinyGGUF()
		for i := range 1_000_000 {
			g.tensors++
			g.places.Write(bytesOf(string(bytesOf(uint32(i))), uint32(0), uint32(0),
				uint64(g.data)))
			g.data += 32
		}
		return g
	}, 0), args: tokenIDs, want: "128 MB of memory"},
}
