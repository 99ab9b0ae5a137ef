package dataset_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"conquer/text/dataset"
	"conquer/text/tokenizer"
)

func ExampleNewBatcher() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "chats.jsonl")
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
	batches, err := dataset.NewBatcher(data, dataset.BatchOptions{Rows: 1, Length: 10, Pack: true, InOrder: true})
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
	// 2 samples from 2 records, 9 tokens, 7 of them targets
	// [2 97 98 3 2 99 100 101 3 0]
	// [-100 97 98 3 -100 99 100 101 3 -100]
	// [0 1 2 3 0 1 2 3 4 0]
	// [1 1 1 1 2 2 2 2 2 0]
	// {Epoch:0 Index:1}
}
