package checkpoint

import (
	"fmt"
	"slices"

	"conquer/quant"
)

// readGPTQ finds matrices that GPTQ quantized: qweight, qzeros, scales and often g_idx.
func readGPTQ(q quantization, p *packer) (unread string, err error) {
	format := q.text("checkpoint_format", "format")
	switch format {
	case "", "gptq", "gptq_v2":
	default:
		return fmt.Sprintf("their checkpoint_format is %.40q, expected \"gptq\" or \"gptq_v2\"",
			format), nil
	}
	if marlin, _ := q.config["is_marlin_format"].(bool); marlin {
		return "they are in the format of the Marlin kernels, expected \"gptq\"", nil
	}
	if pack := q.text("pack_dtype"); pack != "" && pack != "int32" {
		return fmt.Sprintf("they are packed in %.40q, expected int32", pack), nil
	}
	configured := q.number(4, "bits")
	if !gptqBits(configured) {
		return fmt.Sprintf("they have %d bits, expected 2, 3, 4 or 8", configured), nil
	}
	for _, module := range p.modules(".qweight") {
		if err := p.gptq(module, configured, q.number(128, "group_size"),
			format != "gptq_v2"); err != nil {
			return "", err
		}
	}
	return "", nil
}

func gptqBits(bits int) bool { return slices.Contains([]int{2, 3, 4, 8}, bits) }

// gptq makes the weight of a module. The shapes say how many bits it has, because they may differ
// between the modules of a model.
func (p *packer) gptq(module string, bits, size int, less bool) error {
	weight, err := p.need(module+".qweight", int32Type, -1, -1)
	if err != nil {
		return err
	}
	words, rows := weight.shape[0], weight.shape[1]
	index := p.take(module + ".g_idx")
	columns := words * 32 / bits
	if index != nil {
		if err := index.expect(int32Type, -1); err != nil {
			return err
		}
		columns = index.shape[0]
		bits = words * 32 / max(columns, 1)
	}
	if !gptqBits(bits) || columns*bits != words*32 || rows*bits%32 != 0 {
		return fmt.Errorf("tensor %.120q: shape %v does not hold %d rows of %d numbers of 2, 3, "+
			"4 or 8 bits", weight.name, weight.shape, rows, columns)
	}
	scales, err := p.need(module+".scales", scaleTypes, -1, rows)
	if err != nil {
		return err
	}
	groups := scales.shape[0]
	zeros, err := p.need(module+".qzeros", int32Type, groups, rows*bits/32)
	if err != nil {
		return err
	}
	if size < 1 {
		size = max(columns, 1)
	}
	if index == nil && groups != (columns+size-1)/size {
		return fmt.Errorf("tensor %.120q has %d groups, but group_size %d divides %d columns "+
			"into %d", scales.name, groups, size, columns, (columns+size-1)/size)
	}
	return p.make(module, fmt.Sprintf("GPTQ %d-bit", bits), rows, columns, func() (numbers, error) {
		g := quant.GPTQ{Rows: rows, Columns: columns, Groups: groups, Bits: bits, GroupSize: size,
			Weight: weight.data(), Zeros: zeros.data(), Scales: scales.floats(), Less: less}
		if index != nil {
			g.Index = index.data()
		}
		return g.Codes()
	}, weight, zeros, scales, index)
}

// readAWQ finds matrices that AWQ quantized: qweight, qzeros and scales.
func readAWQ(q quantization, p *packer) (unread string, err error) {
	layout := q.text("version", "checkpoint_format", "format")
	switch layout {
	case "", "gemm", "exllama", "ipex":
	default:
		return fmt.Sprintf("their version is %.40q, expected \"gemm\"", layout), nil
	}
	if bits := q.number(4, "bits", "w_bit"); bits != 4 {
		return fmt.Sprintf("they have %d bits, expected 4", bits), nil
	}
	for _, module := range p.modules(".qweight") {
		if err := p.awq(module, q.number(128, "group_size", "q_group_size")); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (p *packer) awq(module string, size int) error {
	weight, err := p.need(module+".qweight", int32Type, -1, -1)
	if err != nil {
		return err
	}
	columns, words := weight.shape[0], weight.shape[1]
	rows := 8 * words
	if size < 1 {
		size = max(columns, 1)
	}
	groups := columns / size
	if columns%size != 0 {
		return fmt.Errorf("tensor %.120q has %d columns, not a multiple of group_size %d",
			weight.name, columns, size)
	}
	scales, err := p.need(module+".scales", scaleTypes, groups, rows)
	if err != nil {
		return err
	}
	zeros, err := p.need(module+".qzeros", int32Type, groups, words)
	if err != nil {
		return err
	}
	return p.make(module, "AWQ 4-bit", rows, columns, func() (numbers, error) {
		return quant.AWQ{Rows: rows, Columns: columns, Groups: groups, GroupSize: size,
			Weight: weight.data(), Zeros: zeros.data(), Scales: scales.floats()}.Codes(), nil
	}, weight, zeros, scales)
}
