package generate_test

import (
	"context"
	"slices"
	"testing"

	_ "conquer/bamba"
	"conquer/generate"
	"conquer/model"
	"conquer/torch"
)

// A prompt that is read in pieces gives the tokens of one that is read at once, also in a batch
// whose other prompts are shorter than a piece.
func TestGenerate_PiecesOfAPromptDoNotChangeTheResult(t *testing.T) {
	config, err := model.Variant("bamba", "tiny")
	if err != nil {
		t.Fatal(err)
	}
	config["vocab_size"], config["initializer_range"] = 500.0, 0.2
	bamba, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]model.Model{"llama": tiny(t, nil),
		"bamba": initialized(t, bamba)} {
		whole := mustGenerate(t, m, nil, prompts, generate.Options{MaxNewTokens: 9})
		for _, piece := range []int{1, 2, 3, 7, 100} {
			got := mustGenerate(t, m, nil, prompts,
				generate.Options{MaxNewTokens: 9, PrefillPiece: piece})
			for i := range got {
				if !slices.Equal(got[i].Tokens, whole[i].Tokens) {
					t.Errorf("%s in pieces of %d: %v, at once %v", name, piece, got[i].Tokens,
						whole[i].Tokens)
				}
			}
		}
	}
	for _, o := range []generate.Options{{MaxNewTokens: 1, PrefillPiece: -1},
		{MaxNewTokens: 1, PrefillPiece: 2, NoCache: true}} {
		if _, _, err := generate.Generate(context.Background(), bamba, nil, prompts, o,
			nil); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

// The memory of a pass over a piece does not grow with the prompt: a model of state-space layers
// needs no more for a prompt of 16 pieces than for one of 4.
func TestGenerate_PiecesKeepMemoryFlat(t *testing.T) {
	config, err := model.Variant("bamba", "bytes")
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	initialized(t, m)
	peak := func(pieces int) int64 {
		prompt := make([]int32, 256*pieces)
		before, _ := torch.CPU.Memory()
		torch.CPU.ResetPeak()
		mustGenerate(t, m, nil, [][]int32{prompt},
			generate.Options{MaxNewTokens: 2, PrefillPiece: 256, IgnoreEOS: true})
		_, most := torch.CPU.Memory()
		return most - before
	}
	peak(4)
	if few, many := peak(4), peak(16); float64(many) > 1.02*float64(few) {
		t.Errorf("4 pieces took %d bytes, 16 pieces %d", few, many)
	}
}
