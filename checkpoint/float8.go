package checkpoint

import (
	"fmt"
	"strings"

	"conquer/quant"
)

// tileOf returns the sizes of the tiles that share a scale, as a config gives them, or zeros.
func tileOf(config map[string]any, key string) (rows, columns int) {
	list, _ := config[key].([]any)
	if len(list) != 2 {
		return 0, 0
	}
	a, _ := list[0].(float64)
	b, _ := list[1].(float64)
	if a < 1 || b < 1 || a > 1<<20 || b > 1<<20 {
		return 0, 0
	}
	return int(a), int(b)
}

// readFloat8 finds matrices of 8-bit numbers with scales: weight_scale_inv or weight_scale.
func readFloat8(q quantization, p *packer) (unread string, err error) {
	rows, columns := tileOf(q.config, "weight_block_size")
	return "", p.float8(rows, columns)
}

// float8 makes a weight of each matrix of 8-bit numbers. tileRows and tileColumns are those of the
// config, or zeros.
func (p *packer) float8(tileRows, tileColumns int) error {
	for _, module := range p.modules(".weight") {
		weight := p.tensors[module+".weight"]
		if weight.dtype != "F8_E4M3" {
			continue
		}
		if len(weight.shape) != 2 {
			return fmt.Errorf("tensor %.120q is F8_E4M3 of shape %v, expected two dimensions",
				weight.name, weight.shape)
		}
		p.used[weight] = true
		rows, columns := weight.shape[0], weight.shape[1]
		scale := p.take(module + ".weight_scale_inv")
		if scale == nil {
			scale = p.take(module + ".weight_scale")
		}
		if scale == nil {
			return fmt.Errorf("tensor %.120q is F8_E4M3 without a scale: expected "+
				"%.120q or %.120q", weight.name, module+".weight_scale_inv",
				module+".weight_scale")
		}
		a, b, err := tiles(weight, scale, tileRows, tileColumns)
		if err != nil {
			return err
		}
		p.ignoreActivations(module)
		err = p.make(module, "FP8", rows, columns, func() (numbers, error) {
			return &quant.Float8{Rows: rows, Columns: columns, TileRows: a, TileColumns: b,
				Data: weight.data(), Scales: scale.floats()}, nil
		}, weight, scale)
		if err != nil {
			return err
		}
	}
	return nil
}

// ignoreActivations takes what says how a library rounds a module's activations, which here are
// not rounded so.
func (p *packer) ignoreActivations(module string) {
	for _, name := range []string{"input_scale", "activation_scale", "input_scale_ub",
		"output_scale", "input_zero_point", "output_zero_point"} {
		p.take(module + "." + name)
	}
}

// tiles returns the size of the tiles that share a scale: all of the matrix, rows, those of the
// config, or those into which the scales divide the matrix.
func tiles(weight, scale *stored, tileRows, tileColumns int) (rows, columns int, err error) {
	types := append([]string{"F8_E8M0", "U8"}, scaleTypes...)
	n, d := weight.shape[0], weight.shape[1]
	down, across := 1, 1
	switch s := scale.shape; {
	case len(s) == 1:
		down = s[0]
	case len(s) == 2:
		down, across = s[0], s[1]
	case len(s) > 2:
		down = 0
	}
	known := false
	for _, t := range types {
		known = known || t == scale.dtype
	}
	switch {
	case !known || down < 1 || across < 1 || n < 1 || d < 1:
	case down == 1 && across == 1:
		return n, d, nil
	case tileRows > 0 && down == (n+tileRows-1)/tileRows && across == (d+tileColumns-1)/tileColumns:
		return tileRows, tileColumns, nil
	case n%down == 0 && d%across == 0:
		return n / down, d / across, nil
	}
	return 0, 0, fmt.Errorf("tensor %.120q is %s of shape %v, expected %s with scales of tiles of "+
		"the matrix %v", scale.name, scale.dtype, scale.shape, strings.Join(types, ", "),
		weight.shape)
}

// readCompressed finds matrices that compressed-tensors wrote as numbers of 8 bits.
func readCompressed(q quantization, p *packer) (unread string, err error) {
	groups, _ := q.config["config_groups"].(map[string]any)
	rows, columns := 0, 0
	for _, group := range groups {
		g, _ := group.(map[string]any)
		weights, _ := g["weights"].(map[string]any)
		if a, b := tileOf(weights, "block_structure"); a > 0 {
			rows, columns = a, b
		}
	}
	if len(p.modules(".weight_packed")) > 0 || len(p.modules(".weight_zero_point")) > 0 ||
		q.text("sparsity_config") != "" {
		return fmt.Sprintf("their format is %.60q, expected \"float-quantized\"",
			q.text("format")), nil
	}
	return "", p.float8(rows, columns)
}
