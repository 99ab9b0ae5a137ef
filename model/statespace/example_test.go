package statespace_test

import (
	"fmt"

	_ "conquer/bamba"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// Choose how the state-space layers divide their input into chunks: here state is carried across
// two chunks of 64 tokens.
func ExampleModel_SetChunking() {
	m, err := model.Open("../../bamba/testdata/hybrid", torch.Float32, torch.CPU)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer model.Free(m)
	chunked := m.(statespace.Chunked)
	chunking, err := statespace.ParseChunking("windowed:2-optimized")
	if err != nil {
		fmt.Println(err)
		return
	}
	chunking.ChunkSize = 64
	if err := chunked.SetChunking(chunking); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(chunked.Chunking(), chunked.Chunking().ChunkSize)
	// Output: windowed:2-optimized 64
}
