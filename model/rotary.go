package model

import (
	"fmt"

	"conquer/torch/nn"
)

// Rotary reads the rotary embedding of heads of headDim dimensions, as transformers 5.24 does. Its
// parameters are rope_scaling or, without that, rope_parameters. rope_theta is taken from there, or
// from the top level, or is 10000. share is the fraction of a head that a family rotates unless
// partial_rotary_factor gives another; 0 for families that rotate whole heads.
func (r *Reader) Rotary(headDim int, share float64) nn.RotaryConfig {
	key := "rope_parameters"
	if scaling := r.Object("rope_scaling"); len(scaling.Config) > 0 {
		key = "rope_scaling"
	}
	p := r.Object(key)
	for name, value := range p.Config {
		if _, nested := value.(map[string]any); nested {
			r.Fail(fmt.Errorf("config.json: %q differs by the type of layer (%.40q), which is "+
				"not supported", key, name))
		}
	}
	c := nn.RotaryConfig{
		Dims:    headDim,
		Theta:   p.FloatOr("rope_theta", r.FloatOr("rope_theta", 10000)),
		Scaling: p.StringOr("rope_type", p.StringOr("type", "default")),
	}
	if c.Theta <= 0 {
		r.Fail(fmt.Errorf("config.json: rope_theta is %g, expected a positive number", c.Theta))
	}
	part := p.FloatOr("partial_rotary_factor", share)
	if part < 0 || part > 1 {
		p.fail("partial_rotary_factor", "a number from 0 to 1")
		part = share
	}
	if share != 0 {
		c.Dims = int(float64(headDim) * part)
	}
	switch c.Scaling {
	case "default":
	case "linear", "llama3":
		// Unscaled, such families ignore a partial_rotary_factor. Scaled, transformers fails.
		if share == 0 && r.Config["partial_rotary_factor"] != nil {
			part = p.FloatOr("partial_rotary_factor", r.Float("partial_rotary_factor"))
		}
		if share == 0 && part != 0 && part != 1 {
			r.Fail(fmt.Errorf("config.json: %q has %s scaling with a partial_rotary_factor of %g, "+
				"which is not supported in this family", key, c.Scaling, part))
		}
		c.Factor = p.Positive("factor")
	default:
		r.Fail(fmt.Errorf("config.json: %q has the type %.40q, which is not supported: expected "+
			"default, linear or llama3", key, c.Scaling))
	}
	if c.Scaling == "llama3" {
		c.LowFreqFactor = p.Positive("low_freq_factor")
		if c.HighFreqFactor = p.Positive("high_freq_factor"); c.HighFreqFactor <= c.LowFreqFactor {
			p.fail("high_freq_factor", "a number above low_freq_factor")
		}
		switch {
		case r.Has("original_max_position_embeddings"):
			c.OriginalPosition = r.Int("original_max_position_embeddings")
		case p.Has("original_max_position_embeddings"):
			c.OriginalPosition = p.Int("original_max_position_embeddings")
		default:
			c.OriginalPosition = r.Int("max_position_embeddings")
		}
	}
	if r.Err == nil {
		r.Err = p.Err
	}
	return c
}
