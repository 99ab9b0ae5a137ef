package eval

import "context"

// Pair is a text and one that may follow it.
type Pair struct{ Context, Continuation string }

// Likelihood says how a model predicts a text.
type Likelihood struct {
	Sum    float64 // the log-likelihood in nats
	Greedy bool    // each token is the most likely one
}

// Prompt is a text to be continued until one of the texts in Until, which does not belong to the
// result.
type Prompt struct {
	Text        string
	Until       []string
	MaxTokens   int
	Temperature float64 // 0 takes the most likely token
	TopK        int     // 0 keeps all
	TopP, MinP  float64 // 0 keeps all
}

// Message is a turn of a chat.
type Message struct{ Role, Content string }

// Model is what is evaluated. Results have the order of the requests. done, which may be nil, is
// called with the number of requests that have been answered since the last call.
type Model interface {
	// Likelihoods returns the likelihood of each continuation after its context.
	Likelihoods(ctx context.Context, pairs []Pair, done func(n int)) ([]Likelihood, error)
	// Rolling returns the log-likelihood of each text as a whole, read in windows of the model's
	// length.
	Rolling(ctx context.Context, texts []string, done func(n int)) ([]float64, error)
	// Generate continues each prompt.
	Generate(ctx context.Context, prompts []Prompt, done func(n int)) ([]string, error)
	// Chat renders messages with the model's chat template, up to where the assistant's answer
	// begins or, with open, to the end of the last message, which the answer continues.
	Chat(messages []Message, open bool) (string, error)
}
