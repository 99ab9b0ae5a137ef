package serve_test

import (
	"context"
	"log"
	"net/http"

	_ "conquer/families" // registers every model family
	"conquer/model"
	"conquer/serve"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// A program that answers requests with a model beside paths of its own.
func Example() {
	m, err := model.Open("my-model", torch.Float32, torch.CPU)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free(m)
	tok, err := tokenizer.Open("my-model")
	if err != nil {
		log.Fatal(err)
	}
	limits, err := serve.Fit(m, 4e9, serve.Limits{}) // at most 4 GB of keys, values and states
	if err != nil {
		log.Fatal(err)
	}
	s, err := serve.New(m, tok, serve.Options{Model: "my-model", Limits: limits})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Shutdown(context.Background())
	mux := http.NewServeMux()
	mux.Handle("/v1/", s)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("ask at /v1/chat/completions\n"))
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:8000", mux))
}
