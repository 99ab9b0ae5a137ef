package checkpoint

import "conquer/torch"

// unpermute maps a row in Hugging Face's order to the row of an interleaved tensor that holds it.
// size is the number of rows per head.
func unpermute(size int) func(row int) int {
	return func(row int) int {
		head, at := row/size, row%size
		return head*size + at%(size/2)*2 + at/(size/2)
	}
}

// copyRows copies rows of equal size, row r of the result from row source(r).
func copyRows(dst, src []byte, rows int, source func(int) int) {
	size := len(src) / max(rows, 1)
	for r := range rows {
		from := source(r) * size
		copy(dst[r*size:(r+1)*size], src[from:from+size])
	}
}

// permuteHeads interleaves the two halves of each head's rows, from Hugging Face's order to that of
// Meta and GGUF.
func permuteHeads(t torch.Tensor, heads int) torch.Tensor {
	shape := t.Shape()
	split := append([]int{heads, 2, shape[0] / heads / 2}, shape[1:]...)
	return t.Reshape(split...).Transpose(1, 2).Reshape(shape...)
}
