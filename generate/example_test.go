package generate_test

import (
	"context"
	"fmt"
	"log"

	"conquer/generate"
	_ "conquer/llama" // the architectures that model.Open knows
	"conquer/model"
	"conquer/torch"
)

// Greedy and sampled continuations of two prompts at once. A model with a tokenizer gives text too, piece by piece if
// wanted; this one has none.
func ExampleGenerate() {
	m, err := model.Open("../llama/testdata/llama", torch.Float32, torch.CPU)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free(m)

	ctx := context.Background()
	prompts := [][]int32{{1, 2, 3}, {40, 50}}
	greedy, _, err := generate.Generate(ctx, m, nil, prompts, generate.Options{MaxNewTokens: 5}, nil)
	if err != nil {
		log.Fatal(err)
	}
	sampled, _, err := generate.Generate(ctx, m, nil, prompts, generate.Options{MaxNewTokens: 5, Temperature: 0.8, TopP: 0.9, Seed: 1}, nil)
	if err != nil {
		log.Fatal(err)
	}
	for i := range prompts {
		fmt.Println(greedy[i].Tokens, len(sampled[i].Tokens), greedy[i].Finish)
	}
	// Output:
	// [23 75 2 74 40] 5 length
	// [35 48 35 65 65] 5 length
}
