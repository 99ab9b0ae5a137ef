package dataset_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"conquer/text/dataset"
	"conquer/text/tokenizer"
)

// The answer of a chat has labels, the rest is ignored by the loss.
func ExampleLoad() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "chats.jsonl")
	const chat = `{"messages": [{"role": "user", "content": "Hi"}, ` +
		`{"role": "assistant", "content": "Hello"}]}`
	if err := os.WriteFile(path, []byte(chat), 0o666); err != nil {
		log.Fatal(err)
	}
	tok, err := tokenizer.Open("../tokenizer/testdata/smollm")
	if err != nil {
		log.Fatal(err)
	}
	data, err := dataset.Load(path, tok, dataset.Options{MaxLength: 512})
	if err != nil {
		log.Fatal(err)
	}
	defer data.Close()
	s, err := data.At(0)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(data.Report)
	for i, label := range s.Labels {
		if label != dataset.IgnoreLabel {
			fmt.Printf("%q ", tok.Decode(s.IDs[i:i+1], false))
		}
	}
	// Output:
	// 1 sample from 1 record, 51 tokens, 5 with loss
	// "H" "e" "l" "lo" "<|im_end|>"
}

func ExampleNewBatcher() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "texts.jsonl")
	os.WriteFile(path, []byte(`{"text": "ab"}
{"text": "cde"}
`), 0o666)
	tok, err := tokenizer.Open(tokenizer.CharTokenizer)
	if err != nil {
		log.Fatal(err)
	}
	data, err := dataset.Load(path, tok, dataset.Options{MaxLength: 10})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(data.Report)
	batches, err := dataset.NewBatcher(data, dataset.BatchOptions{Rows: 1, Length: 10, Pack: true,
		InOrder: true})
	if err != nil {
		log.Fatal(err)
	}
	b, err := batches.Next()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(b.IDs)
	fmt.Println(b.Labels)
	fmt.Println(b.Positions)
	fmt.Println(b.Segments)
	fmt.Printf("%+v\n", batches.State())
	// Output:
	// 2 samples from 2 records, 9 tokens, 7 with loss
	// [2 97 98 3 2 99 100 101 3 0]
	// [-100 97 98 3 -100 99 100 101 3 -100]
	// [0 1 2 3 0 1 2 3 4 0]
	// [1 1 1 1 2 2 2 2 2 0]
	// {Epoch:0 Index:1}
}
