package text_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"conquer/text"
)

func ExampleTokenizer() {
	tok, err := text.Open("../testdata/text/llama3")
	if err != nil {
		log.Fatal(err)
	}
	ids := tok.Encode("Hello, world", true)
	bos, _ := tok.BOS()
	fmt.Println(ids[0] == bos, tok.Decode(ids, true))
	// Output: true Hello, world
}

func ExampleTokenizer_Chat() {
	tok, err := text.Open("../testdata/text/smollm")
	if err != nil {
		log.Fatal(err)
	}
	prompt, err := tok.Chat([]text.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: "Hi"}}, true)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(prompt)
	// Output:
	// <|im_start|>system
	// Be brief.<|im_end|>
	// <|im_start|>user
	// Hi<|im_end|>
	// <|im_start|>assistant
}

// Text shown while it is generated never ends inside a character.
func ExampleDecoder() {
	tok, err := text.Open("../testdata/text/llama3")
	if err != nil {
		log.Fatal(err)
	}
	d := tok.Decoder(true)
	for _, id := range tok.Encode("Grüße", false) {
		fmt.Print(d.Next(id))
	}
	fmt.Println(d.Flush())
	// Output: Grüße
}

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
	tok, err := text.Open(text.CharTokenizer)
	if err != nil {
		log.Fatal(err)
	}
	data, err := text.LoadDataset(path, tok, text.DatasetOptions{MaxLength: 10})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(data.Report)
	batches, err := text.NewBatcher(data, text.BatchOptions{Rows: 1, Length: 10, Pack: true, InOrder: true})
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
