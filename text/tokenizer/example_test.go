package tokenizer_test

import (
	"fmt"
	"log"

	"conquer/text/tokenizer"
)

func ExampleTokenizer() {
	tok, err := tokenizer.Open("testdata/llama3")
	if err != nil {
		log.Fatal(err)
	}
	ids := tok.Encode("Hello, world", true)
	bos, _ := tok.BOS()
	fmt.Println(ids[0] == bos, tok.Decode(ids, true))
	// Output: true Hello, world
}

func ExampleTokenizer_Chat() {
	tok, err := tokenizer.Open("testdata/smollm")
	if err != nil {
		log.Fatal(err)
	}
	prompt, err := tok.Chat([]tokenizer.Message{{Role: "system", Content: "Be brief."},
		{Role: "user", Content: "Hi"}}, true)
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

// A Decoder never returns part of a character.
func ExampleDecoder() {
	tok, err := tokenizer.Open("testdata/llama3")
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
