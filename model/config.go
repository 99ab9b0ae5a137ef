package model

import (
	"encoding/json"
	"fmt"
	"math"

	"conquer/torch/nn"
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

// Reader reads typed fields of a Config. The first field that is missing or of the wrong type is
// kept in Err.
type Reader struct {
	Config Config
	Err    error
}

func (r *Reader) fail(key, want string) {
	if r.Err == nil {
		if v, ok := r.Config[key]; ok {
			text, _ := json.Marshal(v)
			r.Err = fmt.Errorf("config.json: %q is %.100s, expected %s", key, text, want)
		} else {
			r.Err = fmt.Errorf("config.json: %q is missing, expected %s", key, want)
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
	}
	return 0, false
}

// Has reports whether the field is present and not null.
func (r *Reader) Has(key string) bool { return r.Config[key] != nil }

// Int reads a positive whole number.
func (r *Reader) Int(key string) int {
	n, ok := number(r.Config[key])
	if !ok || n != math.Trunc(n) || n < 1 || n > 1<<40 {
		r.fail(key, "a positive whole number below 2^40")
		return 1
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

// FloatOr is Float with a default for a field that is absent or null.
func (r *Reader) FloatOr(key string, otherwise float64) float64 {
	if !r.Has(key) {
		return otherwise
	}
	return r.Float(key)
}

// BoolOr reads true or false, with a default for a field that is absent or null.
func (r *Reader) BoolOr(key string, otherwise bool) bool {
	if !r.Has(key) {
		return otherwise
	}
	b, ok := r.Config[key].(bool)
	if !ok {
		r.fail(key, "true or false")
	}
	return b
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
	if !r.Has(key) {
		return &Reader{Config: Config{}}
	}
	switch o := r.Config[key].(type) {
	case map[string]any:
		return &Reader{Config: o}
	case Config:
		return &Reader{Config: o}
	}
	r.fail(key, "an object")
	return &Reader{Config: Config{}}
}

// Rotary reads the rotary embedding of heads of headDim dimensions: rope_theta and rope_scaling, or
// rope_parameters, which holds both in transformers 5. share is the fraction of a head that is
// rotated, unless partial_rotary_factor gives another.
func (r *Reader) Rotary(headDim int, share float64) nn.RotaryConfig {
	scaling := r.Object("rope_scaling")
	if r.Has("rope_parameters") {
		scaling = r.Object("rope_parameters")
	}
	c := nn.RotaryConfig{
		Dims:    int(float64(headDim) * scaling.FloatOr("partial_rotary_factor", share)),
		Theta:   scaling.FloatOr("rope_theta", r.FloatOr("rope_theta", 10000)),
		Scaling: scaling.StringOr("rope_type", scaling.StringOr("type", "")),
	}
	switch c.Scaling {
	case "linear":
		c.Factor = scaling.Float("factor")
	case "llama3":
		c.Factor = scaling.Float("factor")
		c.LowFreqFactor = scaling.Float("low_freq_factor")
		c.HighFreqFactor = scaling.Float("high_freq_factor")
		c.OriginalPosition = scaling.Int("original_max_position_embeddings")
	}
	if r.Err == nil {
		r.Err = scaling.Err
	}
	return c
}
