package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
)

// Config is a Hugging Face config.json.
type Config map[string]any

// Clone copies the config, one level deep.
func (c Config) Clone() Config {
	clone := make(Config, len(c))
	for k, v := range c {
		clone[k] = v
	}
	return clone
}

// Or returns the config with the values of defaults for the keys that it lacks. A key that is null
// is not lacking.
func (c Config) Or(defaults Config) Config {
	all := defaults.Clone()
	maps.Copy(all, c)
	return all
}

// Reader reads typed fields of a Config. The first field that is missing or of the wrong type is
// kept in Err.
type Reader struct {
	Config Config
	Err    error

	within string // the path of a nested object, with a dot behind it
}

func (r *Reader) fail(key, want string) {
	if r.Err == nil {
		if v, ok := r.Config[key]; ok {
			text, _ := json.Marshal(v)
			r.Err = fmt.Errorf("config.json: %q is %.100s, expected %s", r.within+key, text, want)
		} else {
			r.Err = fmt.Errorf("config.json: %q is missing, expected %s", r.within+key, want)
		}
	}
}

// Refuse fails for each of the keys whose value is neither null, false nor empty: what they ask for
// is not supported.
func (r *Reader) Refuse(keys ...string) {
	for _, key := range keys {
		switch v := r.Config[key].(type) {
		case nil:
		case bool:
			if v {
				r.fail(key, "none: it is not supported")
			}
		case map[string]any:
			if len(v) > 0 {
				r.fail(key, "none: it is not supported")
			}
		default:
			r.fail(key, "none: it is not supported")
		}
	}
}

// Fail keeps err, unless a problem is kept already.
func (r *Reader) Fail(err error) {
	if r.Err == nil {
		r.Err = err
	}
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case float64:
		return n, true
	case int:
		return float64(n), true
	case int64:
		return float64(n), true
	case uint32:
		return float64(n), true
	case json.Number:
		f, err := n.Float64()
		return f, err == nil
	}
	return 0, false
}

// Has reports whether the field is present and not null.
func (r *Reader) Has(key string) bool { return r.Config[key] != nil }

// Int reads a positive whole number, at most 2^30.
func (r *Reader) Int(key string) int { return r.IntUpTo(key, 1<<30) }

// IntUpTo reads a positive whole number, at most most. It bounds numbers for which memory is taken
// before the weights are read.
func (r *Reader) IntUpTo(key string, most int) int {
	n, ok := number(r.Config[key])
	if !ok || n != math.Trunc(n) || n < 1 || n > float64(most) {
		r.fail(key, fmt.Sprintf("a positive whole number, at most %d", most))
		return 1
	}
	return int(n)
}

// Natural reads a whole number from 0 to 2^30.
func (r *Reader) Natural(key string) int {
	n, ok := number(r.Config[key])
	if !ok || n != math.Trunc(n) || n < 0 || n > 1<<30 {
		r.fail(key, "a whole number from 0 on")
		return 0
	}
	return int(n)
}

// IntOr is Int with a default for a field that is absent or null.
func (r *Reader) IntOr(key string, otherwise int) int {
	if !r.Has(key) {
		return otherwise
	}
	return r.Int(key)
}

// Float reads a number.
func (r *Reader) Float(key string) float64 {
	n, ok := number(r.Config[key])
	if !ok || math.IsNaN(n) || math.IsInf(n, 0) {
		r.fail(key, "a number")
		return 1
	}
	return n
}

// Positive reads a number above 0.
func (r *Reader) Positive(key string) float64 {
	n := r.Float(key)
	if n <= 0 {
		r.fail(key, "a positive number")
		return 1
	}
	return n
}

// Eps reads what is added to a variance: a number from 0 to 1.
func (r *Reader) Eps(key string) float64 {
	n := r.Float(key)
	if n < 0 || n > 1 {
		r.fail(key, "a number from 0 to 1")
		return 1
	}
	return n
}

// Multiplier reads a factor of activations, which is not 0.
func (r *Reader) Multiplier(key string) float64 {
	n := r.Float(key)
	if n == 0 {
		r.fail(key, "a number other than 0")
		return 1
	}
	return n
}

// FloatOr is Float with a default for a field that is absent or null.
func (r *Reader) FloatOr(key string, otherwise float64) float64 {
	if !r.Has(key) {
		return otherwise
	}
	return r.Float(key)
}

// Bool reads true or false.
func (r *Reader) Bool(key string) bool {
	b, ok := r.Config[key].(bool)
	if !ok {
		r.fail(key, "true or false")
	}
	return b
}

// BoolOr reads true or false, with a default for a field that is absent or null.
func (r *Reader) BoolOr(key string, otherwise bool) bool {
	if !r.Has(key) {
		return otherwise
	}
	return r.Bool(key)
}

// StringOr reads a string, with a default for a field that is absent or null.
func (r *Reader) StringOr(key, otherwise string) string {
	if !r.Has(key) {
		return otherwise
	}
	s, ok := r.Config[key].(string)
	if !ok {
		r.fail(key, "a string")
	}
	return s
}

// Strings reads a list of n strings; nil if it is absent or null.
func (r *Reader) Strings(key string, n int) []string {
	return list[string](r, key, n, fmt.Sprintf("a list of %d strings", n),
		func(v any) (string, bool) {
			s, ok := v.(string)
			return s, ok
		})
}

// Ints reads a list of n whole numbers; nil if it is absent or null.
func (r *Reader) Ints(key string, n int) []int {
	return list[int](r, key, n, fmt.Sprintf("a list of %d whole numbers", n),
		func(v any) (int, bool) {
			f, ok := number(v)
			return int(f), ok && f == math.Trunc(f)
		})
}

// Floats reads a list of n numbers; nil if it is absent or null.
func (r *Reader) Floats(key string, n int) []float64 {
	return list[float64](r, key, n, fmt.Sprintf("a list of %d numbers", n), number)
}

func list[T any](r *Reader, key string, n int, want string, of func(any) (T, bool)) []T {
	if !r.Has(key) {
		return nil
	}
	values, _ := r.Config[key].([]any)
	result := make([]T, 0, n)
	for _, v := range values {
		if t, ok := of(v); ok {
			result = append(result, t)
		}
	}
	if len(values) != n || len(result) != n {
		r.fail(key, want)
		return make([]T, n)
	}
	return result
}

// Object reads a nested object; an empty one if it is absent or null.
func (r *Reader) Object(key string) *Reader {
	o := &Reader{Config: Config{}, within: r.within + key + "."}
	switch v := r.Config[key].(type) {
	case nil:
	case map[string]any:
		o.Config = v
	case Config:
		o.Config = v
	default:
		r.fail(key, "an object")
	}
	return o
}

// The largest numbers that a config may ask for. For layers and the dimensions of a head, memory is
// taken before the weights are read. The others bound the activations of a token, which can take
// more than the weights of a model whose other widths are small.
const (
	Layers     = 10_000
	HeadDims   = 1 << 16
	Widths     = 1 << 20 // of the model, a feed-forward layer and the heads of a layer together
	Vocabulary = 1 << 24
	Chunk      = 1 << 16 // tokens of a chunk of a scan
	Experts    = 4096    // of a layer
)

// SiLU reads hidden_act, of which the kernels have silu only. swish is another name for it.
func (r *Reader) SiLU() {
	if act := r.StringOr("hidden_act", "silu"); act != "silu" && act != "swish" {
		r.Fail(fmt.Errorf("config.json: hidden_act %.40q is not supported, expected silu", act))
	}
}
