package statespace

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"conquer/model"
)

// MixerNames are a family's names of the fields of a [MixerConfig] in config.json, for error
// messages.
type MixerNames struct{ Heads, HeadDim, State, Taps string }

// Check reads hidden_act and time_step_limit and reports what the kernels cannot run. inner is the
// number of channels that the config's expansion asks for.
func (c *MixerConfig) Check(r *model.Reader, inner int, names MixerNames) error {
	if r.SiLU(); r.Err != nil {
		return r.Err
	}
	if c.Heads*c.HeadDim != inner {
		return fmt.Errorf("config.json: %s %d times %s %d is not the %d channels that the "+
			"expansion asks for", names.Heads, c.Heads, names.HeadDim, c.HeadDim, inner)
	}
	if err := c.CheckSizes(names); err != nil {
		return err
	}
	c.readLimits(r)
	return r.Err
}

// CheckSizes reports sizes that the kernels cannot run.
func (c *MixerConfig) CheckSizes(names MixerNames) error {
	switch {
	case c.Heads > model.Widths || c.Heads*c.HeadDim > model.Widths:
		return fmt.Errorf("config.json: %s %d times %s %d, expected at most %d channels",
			names.Heads, c.Heads, names.HeadDim, c.HeadDim, model.Widths)
	case c.Heads%c.Groups != 0:
		return fmt.Errorf("config.json: %d groups do not divide %s %d", c.Groups, names.Heads,
			c.Heads)
	case c.HeadDim < 16 || c.HeadDim > 128:
		return fmt.Errorf("config.json: %s %d is out of range, expected 16 to 128", names.HeadDim,
			c.HeadDim)
	case c.State < 16 || c.State > 256:
		return fmt.Errorf("config.json: %s %d is out of range, expected 16 to 256", names.State,
			c.State)
	case c.Taps < 2 || c.Taps > 4:
		return fmt.Errorf("config.json: %s %d is out of range, expected 2 to 4", names.Taps, c.Taps)
	}
	return nil
}

// readLimits reads time_step_limit, if the config has it.
func (c *MixerConfig) readLimits(r *model.Reader) {
	c.DTMin, c.DTMax = 0, math.Inf(1)
	if !r.Has("time_step_limit") {
		return
	}
	limit, ok := r.Config["time_step_limit"].([]any)
	if !ok || len(limit) != 2 {
		r.Fail(fmt.Errorf("config.json: time_step_limit is %v, expected two numbers",
			r.Config["time_step_limit"]))
		return
	}
	for i, to := range []*float64{&c.DTMin, &c.DTMax} {
		if *to, ok = limitOf(limit[i]); !ok {
			text, _ := json.Marshal(limit[i])
			r.Fail(fmt.Errorf("config.json: time_step_limit holds %s, expected a number", text))
		}
	}
	if !(c.DTMin <= c.DTMax) {
		r.Fail(fmt.Errorf("config.json: time_step_limit %v: the lower limit is above the upper",
			limit))
	}
}

// limitOf reads a number that may be infinite, which transformers 5 writes as {"__float__":
// "Infinity"}. Earlier versions write the bare word, which package checkpoint turns into that.
func limitOf(v any) (float64, bool) {
	if object, ok := v.(map[string]any); ok {
		v = object["__float__"]
	}
	switch v := v.(type) {
	case string:
		switch v {
		case "Infinity":
			return math.Inf(1), true
		case "-Infinity":
			return math.Inf(-1), true
		}
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	case float64:
		return v, true
	}
	return 0, false
}

// Decimals returns the config with whole numbers written as 0.0 and so on in the fields where
// transformers demands floats: it refuses [0, 0.5] as a list of floats.
func Decimals(config model.Config) model.Config {
	config = config.Clone()
	for _, key := range []string{"time_step_limit", "z_loss_coefficient"} {
		switch v := config[key].(type) {
		case float64:
			config[key] = decimal(v)
		case []any:
			list := make([]any, len(v))
			for i := range v {
				list[i] = decimal(v[i])
			}
			config[key] = list
		}
	}
	return config
}

func decimal(v any) any {
	if f, ok := v.(float64); ok && f == math.Trunc(f) {
		return json.Number(strconv.FormatFloat(f, 'f', 1, 64))
	}
	return v
}
