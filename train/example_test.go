package train_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	_ "conquer/llama" // registers the architecture for model.Variant
	"conquer/model"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/train"
)

// progress prints each step. An error that a method returns ends the run.
type progress struct{}

func (progress) Step(s train.Step) error {
	fmt.Printf("step %d: %d tokens, the loss is positive: %t\n", s.Step, s.Tokens, s.Loss > 0)
	return nil
}

func (progress) Validation(train.Validation) error { return nil }

func (progress) Notice(message string) { fmt.Println(message) }

// Train a small Llama that reads characters, with a callback for each step, and save it.
func ExampleTrainer() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "texts.jsonl")
	const texts = `{"text": "a lighthouse"}` + "\n" + `{"text": "a lantern"}` + "\n"
	if err := os.WriteFile(path, []byte(texts), 0o644); err != nil {
		log.Fatal(err)
	}
	tok, err := tokenizer.Open(tokenizer.CharTokenizer)
	if err != nil {
		log.Fatal(err)
	}
	data, err := dataset.Load(path, tok, dataset.Options{MaxLength: 32})
	if err != nil {
		log.Fatal(err)
	}
	defer data.Close()

	m, err := smallModel(tok.VocabSize())
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free(m)
	t, err := train.New(m, data, nil, train.Options{
		Steps: 2, BatchSize: 2, SequenceLength: 32, Rate: 1e-3, Tokenizer: tok,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	t.Listen(progress{})
	if err := t.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	result := filepath.Join(dir, "tuned")
	if err := t.Export(result); err != nil {
		log.Fatal(err)
	}
	tuned, err := model.Open(result, torch.Float32, torch.CPU)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free(tuned)
	fmt.Println("saved a", tuned.Architecture())
	// Output:
	// step 1: 25 tokens, the loss is positive: true
	// step 2: 25 tokens, the loss is positive: true
	// saved a llama
}

// smallModel makes a two-layer Llama with random weights.
func smallModel(vocabulary int) (m model.Model, err error) {
	config, err := model.Variant("llama", "micro")
	if err != nil {
		return nil, err
	}
	config["vocab_size"], config["hidden_size"] = float64(vocabulary), 32.0
	config["intermediate_size"], config["num_hidden_layers"] = 64.0, 2.0
	config["num_attention_heads"], config["num_key_value_heads"] = 2.0, 2.0
	if m, err = model.New(config); err != nil {
		return nil, err
	}
	return m, torch.Run(func() error {
		torch.ManualSeed(1)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	})
}
