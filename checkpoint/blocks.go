package checkpoint

import (
	"slices"

	"conquer/quant"
	"conquer/torch"
)

// Blocks returns a matrix, or a stack of matrices below each other, in the blocks in which it is
// stored: parts of it below each other, which are views of the mapped file, or copies if their rows
// lie in another order there (see [Mapped]), or if GPTQ or AWQ quantized it, whose tensors it
// arranges in blocks of rows. There are none for a tensor that is not quantized, or that has
// another form in the file. [Checkpoint.Converted] tells of quantized matrices that have none.
func (c *Checkpoint) Blocks(name string) (parts []torch.BlockPart, err error) {
	s, err := c.find(name)
	if err != nil {
		return nil, err
	}
	switch {
	case s.packed != nil:
		part, why, err := s.packedBlocks()
		c.Release(name)
		if why != "" {
			c.converted, c.why = c.converted+1, why
		}
		if why != "" || err != nil {
			return nil, err
		}
		return []torch.BlockPart{part}, nil
	case !s.inBlocks():
		return nil, nil
	case s.parts == nil:
		return []torch.BlockPart{s.rowBlocks(c, 0, s.matrixRows())}, nil
	}
	// Matrix i of the whole is matrix i of each part, one below the other.
	matrices := s.shape[0]
	for i := range matrices {
		for _, p := range s.parts {
			n := p.matrixRows() / matrices
			parts = append(parts, p.rowBlocks(c, i*n, n))
		}
	}
	return parts, nil
}

// matrixRows is the number of rows of a matrix, or of all matrices of a stack.
func (s *stored) matrixRows() int {
	rows := 1
	for _, n := range s.shape[:len(s.shape)-1] {
		rows *= n
	}
	return rows
}

// rowBlocks returns n rows of a whole tensor in blocks, from first on.
func (s *stored) rowBlocks(c *Checkpoint, first, n int) torch.BlockPart {
	kind, _ := quant.ByName(s.dtype)
	size := s.bytes / max(s.matrixRows(), 1)
	shape := []int{n, size}
	if s.headRows == 0 {
		return torch.BlockPart{Kind: kind.Number,
			Data: s.file.Tensor(s.offset+first*size, torch.Uint8, shape)}
	}
	part := torch.BlockPart{Kind: kind.Number, Data: torch.Empty(shape, torch.Uint8, torch.CPU)}
	copyRows(part.Data.Data(), s.data(), n, unpermute(s.headRows))
	c.Release(s.name)
	return part
}

// Converted returns the number of quantized matrices that [Checkpoint.Blocks] could not give in
// blocks, and why not.
func (c *Checkpoint) Converted() (n int, why string) { return c.converted, c.why }

// GPUConverts says why a GPU cannot compute on the quantized weights of a Hugging Face folder; ""
// if it can.
func (c *Checkpoint) GPUConverts() string {
	for _, s := range c.tensors {
		switch {
		case s.packed == nil:
		case s.packed.weight8 != nil:
			return "no kernel of a GPU computes on FP8 weights"
		case s.packed.ordered:
			return "no kernel of a GPU computes on weights with act-order (g_idx)"
		}
	}
	return ""
}

// OnGPU counts the weights that stay quantized on a GPU, and the bytes that they take there: codes
// of 4 bits with a scale and a minimum of 16 bits for each 32 numbers, or codes of 8 bits with both
// for each 16.
func (c *Checkpoint) OnGPU() (numbers, bytes int) {
	if c.GPUConverts() != "" {
		return 0, 0
	}
	for _, s := range c.tensors {
		parts := s.parts
		if parts == nil {
			parts = []*stored{s}
		}
		for _, p := range parts {
			if p.packed == nil && !p.inBlocks() {
				continue
			}
			n := 1
			for _, size := range p.shape {
				n *= size
			}
			bits := 10
			switch p.dtype {
			case "Q4_0", "Q4_1", "Q4_K", "GPTQ 2-bit", "GPTQ 3-bit", "GPTQ 4-bit", "AWQ 4-bit":
				bits = 5
			}
			numbers, bytes = numbers+n, bytes+n*bits/8
		}
	}
	return numbers, bytes
}

// inBlocks reports whether [Checkpoint.Blocks] has the tensor's blocks as they lie in the file.
func (s *stored) inBlocks() bool {
	if s.parts != nil { // two halves of each matrix of a stack
		return s.joined == 1 && len(s.shape) == 3 && s.transform == nil && s.headRows == 0 &&
			!slices.ContainsFunc(s.parts, func(p *stored) bool { return !p.inBlocks() })
	}
	kind, ok := quant.ByName(s.dtype)
	return ok && !kind.Plain() && quant.Unpacks(s.dtype) && s.transform == nil &&
		s.strides == nil && (len(s.shape) == 2 || len(s.shape) == 3 && s.headRows == 0)
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
