package model

import (
	"cmp"
	"fmt"
	"math"
	"slices"

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
	case "linear", "llama3", "yarn", "dynamic", "longrope":
		// Unscaled, such families ignore a partial_rotary_factor. Scaled, transformers fails.
		if share == 0 && r.Config["partial_rotary_factor"] != nil {
			part = p.FloatOr("partial_rotary_factor", r.Float("partial_rotary_factor"))
		}
		if share == 0 && part != 0 && part != 1 {
			r.Fail(fmt.Errorf("config.json: %q has %s scaling with a partial_rotary_factor of %g, "+
				"which is not supported in this family", key, c.Scaling, part))
		}
		r.scaling(p, &c)
	default:
		r.Fail(fmt.Errorf("config.json: %q has the type %.40q, which is not supported: expected "+
			"%s", key, c.Scaling, nn.RotaryScalings))
	}
	if r.Err == nil {
		r.Err = p.Err
	}
	return c
}

// scaling reads the parameters of a scaled embedding from p.
func (r *Reader) scaling(p *Reader, c *nn.RotaryConfig) {
	switch c.Scaling {
	case "llama3", "yarn", "longrope":
		switch {
		case r.Has("original_max_position_embeddings"):
			c.OriginalPosition = r.Int("original_max_position_embeddings")
		case p.Has("original_max_position_embeddings"):
			c.OriginalPosition = p.Int("original_max_position_embeddings")
		default:
			c.OriginalPosition = r.Int("max_position_embeddings")
		}
	case "dynamic":
		c.MaxPosition = r.Int("max_position_embeddings")
	}
	// Where it may be absent, it is the ratio of the two lengths.
	ratio := func() float64 {
		if p.Has("factor") {
			return p.Positive("factor")
		}
		return float64(r.Int("max_position_embeddings")) / float64(c.OriginalPosition)
	}
	switch c.Scaling {
	case "linear", "dynamic":
		c.Factor = p.Positive("factor")
	case "llama3":
		c.Factor, c.LowFreqFactor = p.Positive("factor"), p.Positive("low_freq_factor")
		if c.HighFreqFactor = p.Positive("high_freq_factor"); c.HighFreqFactor <= c.LowFreqFactor {
			p.fail("high_freq_factor", "a number above low_freq_factor")
		}
	case "yarn":
		if _, given := p.Config["factor"]; !given {
			p.fail("factor", "a positive number, or null")
		}
		c.Factor = ratio()
		c.BetaFast, c.BetaSlow = cmp.Or(p.FloatOr("beta_fast", 32), 32),
			cmp.Or(p.FloatOr("beta_slow", 1), 1)
		if c.BetaFast < 0 || c.BetaSlow < 0 {
			p.fail("beta_fast", "a number from 0 on, as beta_slow")
		}
		_, given := p.Config["truncate"]
		c.Fractional = !p.BoolOr("truncate", !given)
		c.AttentionFactor = nn.YarnAttention(c.Factor, 1)
		if m, all := p.FloatOr("mscale", 0), p.FloatOr("mscale_all_dim", 0); m != 0 && all != 0 {
			c.AttentionFactor = nn.YarnAttention(c.Factor, m) / nn.YarnAttention(c.Factor, all)
		}
	case "longrope":
		c.ShortFactors = p.Floats("short_factor", c.Dims/2)
		c.LongFactors = p.Floats("long_factor", c.Dims/2)
		for _, key := range []string{"short_factor", "long_factor"} {
			if !p.Has(key) {
				p.fail(key, fmt.Sprintf("a list of %d numbers", c.Dims/2))
			}
		}
		for _, f := range slices.Concat(c.ShortFactors, c.LongFactors) {
			if !(f > 0) {
				p.fail("long_factor", "positive numbers, as in short_factor")
			}
		}
		c.AttentionFactor = 1
		if factor := ratio(); factor > 1 {
			original := float64(c.OriginalPosition)
			c.AttentionFactor = math.Sqrt(1 + math.Log(factor)/math.Log(original))
		}
	}
	if c.AttentionFactor != 0 && p.Has("attention_factor") {
		c.AttentionFactor = p.Positive("attention_factor")
	}
	if math.IsInf(c.AttentionFactor, 0) {
		p.fail("factor", "a number that gives a finite attention_factor")
	}
}
