package checkpoint

import (
	"conquer/quant"
	"conquer/torch"
)

// Blocks returns a matrix of a GGUF file in the blocks in which it is stored: a view of the mapped
// file, or a copy if its rows lie in another order there (see [Mapped]). It is false for a tensor
// that is not quantized, or that has another form in the file.
func (c *Checkpoint) Blocks(name string) (part torch.BlockPart, ok bool, err error) {
	s, err := c.find(name)
	if err != nil {
		return part, false, err
	}
	if !s.inBlocks() {
		return part, false, nil
	}
	kind, _ := quant.ByName(s.dtype)
	rows := s.shape[0]
	shape := []int{rows, s.bytes / max(rows, 1)}
	part.Kind = kind.Number
	if s.headRows == 0 {
		part.Data = s.file.Tensor(s.offset, torch.Uint8, shape)
		return part, true, nil
	}
	part.Data = torch.Empty(shape, torch.Uint8, torch.CPU)
	copyRows(part.Data.Data(), s.data(), rows, unpermute(s.headRows))
	c.Release(name)
	return part, true, nil
}

// Converts says why the quantized weights of a Hugging Face folder cannot stay as they are; "" if
// they can.
func (c *Checkpoint) Converts() string {
	for _, s := range c.tensors {
		if s.packed != nil {
			return "no kernel computes on weights of this kind"
		}
	}
	return ""
}

// inBlocks reports whether [Checkpoint.Blocks] has the tensor.
func (s *stored) inBlocks() bool {
	kind, ok := quant.ByName(s.dtype)
	return ok && !kind.Plain() && quant.Unpacks(s.dtype) && len(s.shape) == 2 &&
		s.transform == nil && s.parts == nil && s.strides == nil
}

// Quantized returns the kind that holds most bytes of the files, such as "Q4_K" or "GPTQ 4-bit"; ""
// if less than half of them are quantized.
func (c *Checkpoint) Quantized() string {
	sizes, quantized, all, best := map[string]int{}, 0, 0, ""
	for _, name := range c.names {
		s := c.tensors[name]
		if all += s.bytes; !s.inBlocks() && s.packed == nil {
			continue
		}
		quantized += s.bytes
		sizes[s.dtype] += s.bytes
		if sizes[s.dtype] > sizes[best] {
			best = s.dtype
		}
	}
	if 2*quantized < all {
		return ""
	}
	return best
}
