package generate_test

import (
	"context"
	"fmt"
	"log"

	"conquer/generate"
	_ "conquer/llama" // registers the architecture for model.Open
	"conquer/model"
	"conquer/torch"
)

// Greedy and sampled continuations of two prompts. With a tokenizer, the results hold
// text too.
func ExampleGenerate() {
	m, err := model.Open("../llama/testdata/llama", torch.Float32, torch.CPU)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free(m)

	ctx := context.Background()
	prompts := [][]int32{{1, 2, 3}, {40, 50}}
	greedy, _, err := generate.Generate(ctx, m, nil, prompts, generate.Options{MaxNewTokens: 5},
		nil)
	if err != nil {
		log.Fatal(err)
	}
	sampled, _, err := generate.Generate(ctx, m, nil, prompts, generate.Options{MaxNewTokens: 5,
		Temperature: 0.8, TopP: 0.9, Seed: 1}, nil)
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

// The likelihood of a text, given as token ids.
func ExampleScore() {
	m, err := model.Open("../llama/testdata/llama", torch.Float32, torch.CPU)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free(m)

	scores, err := generate.Score(context.Background(), m, []int32{1, 2, 3, 23, 75})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d tokens predicted, perplexity %.1f\n", len(scores.TokenNLL), scores.Perplexity)
	// Output: 4 tokens predicted, perplexity 31.7
}

// A session keeps whole pieces of what it read. Shorter texts, as here, are read again.
func ExampleSession() {
	m, err := model.Open("../llama/testdata/llama", torch.Float32, torch.CPU)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free(m)

	ctx, o := context.Background(), generate.Options{MaxNewTokens: 5}
	s := generate.NewSession(m, nil)
	defer s.Close()
	text := []int32{1, 2, 3}
	for range 2 {
		r, stats, err := s.Generate(ctx, text, o, nil)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.Tokens, "after reading", stats.PromptTokens-stats.Reused, "tokens")
		text = append(append(text, r.Tokens...), 40, 50)
	}
	// Output:
	// [23 75 2 74 40] after reading 3 tokens
	// [23 65 20 66 7] after reading 10 tokens
}
