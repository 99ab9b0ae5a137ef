// Command openai checks a server with OpenAI's official Go client: every endpoint, streaming,
// cancellation and errors. It is a module of its own, so that conquer does not depend on the
// client.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

var failed bool

func check(what string, ok bool, detail ...any) {
	word := "ok   "
	if !ok {
		word, failed = "FAIL ", true
	}
	fmt.Println(word, "Go client:", what, fmt.Sprint(detail...))
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: openai URL MODEL KEY")
		os.Exit(2)
	}
	url, model, key := os.Args[1], os.Args[2], os.Args[3]
	client := openai.NewClient(option.WithBaseURL(url+"/v1"), option.WithAPIKey(key))
	ctx := context.Background()
	models(ctx, client, model)
	plain := chat(ctx, client, model)
	streamed(ctx, client, model, plain)
	call(ctx, client, model)
	completion(ctx, client, model)
	embedding(ctx, client, model)
	mistakes(ctx, client, url, model)
	if failed {
		os.Exit(1)
	}
}

func question(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model,
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.UserMessage("Why is the sky blue?")},
		MaxTokens:   openai.Int(24),
		Temperature: openai.Float(0),
	}
}

func models(ctx context.Context, client openai.Client, model string) {
	page, err := client.Models.List(ctx)
	check("models", err == nil && len(page.Data) == 1 && page.Data[0].ID == model, err)
	one, err := client.Models.Get(ctx, model)
	check("model", err == nil && one.ID == model, err)
}

func chat(ctx context.Context, client openai.Client, model string) string {
	q := question(model)
	q.Logprobs, q.TopLogprobs = openai.Bool(true), openai.Int(2)
	answer, err := client.Chat.Completions.New(ctx, q)
	if err != nil {
		check("chat", false, err)
		return ""
	}
	c := answer.Choices[0]
	check("chat", c.Message.Content != "" && c.FinishReason == "length" &&
		answer.Usage.CompletionTokens == 24 && len(c.Logprobs.Content) == 24 &&
		len(c.Logprobs.Content[0].TopLogprobs) == 2, c.Message.Content)
	return c.Message.Content
}

func streamed(ctx context.Context, client openai.Client, model, plain string) {
	q := question(model)
	q.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(ctx, q)
	var all openai.ChatCompletionAccumulator
	accepted, finished := true, false
	for stream.Next() {
		accepted = all.AddChunk(stream.Current()) && accepted
		if _, ok := all.JustFinishedContent(); ok {
			finished = true
		}
	}
	check("stream", stream.Err() == nil && accepted && finished && len(all.Choices) == 1 &&
		all.Choices[0].Message.Content == plain && all.Usage.CompletionTokens == 24, stream.Err())

	q.MaxTokens = openai.Int(2000)
	stopped, cancel := context.WithCancel(ctx)
	stream = client.Chat.Completions.NewStreaming(stopped, q)
	n := 0
	for stream.Next() {
		if n++; n == 4 {
			cancel()
		}
	}
	check("a cancelled stream ends", errors.Is(stream.Err(), context.Canceled) && n < 500,
		stream.Err())
	stream.Close()
	cancel()
}

// call asks for a call of a tool, whole and streamed.
func call(ctx context.Context, client openai.Client, model string) {
	q := question(model)
	q.MaxTokens = openai.Int(200)
	q.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(
		openai.FunctionDefinitionParam{Name: "sky", Parameters: openai.FunctionParameters{
			"type": "object", "required": []string{"color"}, "properties": map[string]any{
				"color": map[string]any{"enum": []string{"red", "blue"}}}}})}
	q.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{
		OfAuto: openai.String("required")}
	q.ParallelToolCalls = openai.Bool(false)
	answer, err := client.Chat.Completions.New(ctx, q)
	if err != nil || len(answer.Choices[0].Message.ToolCalls) != 1 {
		check("a call of a tool", false, err)
		return
	}
	want := answer.Choices[0].Message.ToolCalls[0]
	check("a call of a tool", want.Type == "function" && want.Function.Name == "sky" &&
		strings.Contains(want.Function.Arguments, "color"), want.Function.Arguments)
	stream := client.Chat.Completions.NewStreaming(ctx, q)
	var all openai.ChatCompletionAccumulator
	finished := 0
	for stream.Next() {
		all.AddChunk(stream.Current())
		if _, ok := all.JustFinishedToolCall(); ok {
			finished++
		}
	}
	check("a streamed call", stream.Err() == nil && finished == 1 && len(all.Choices) == 1 &&
		len(all.Choices[0].Message.ToolCalls) == 1 && all.Choices[0].FinishReason == "tool_calls" &&
		all.Choices[0].Message.ToolCalls[0].Function.Arguments == want.Function.Arguments,
		stream.Err())
}

func completion(ctx context.Context, client openai.Client, model string) {
	q := openai.CompletionNewParams{Model: openai.CompletionNewParamsModel(model),
		Prompt: openai.CompletionNewParamsPromptUnion{
			OfArrayOfTokenArrays: [][]int64{{5, 6, 7}, {8}}},
		MaxTokens: openai.Int(1), Echo: openai.Bool(true), Logprobs: openai.Int(1),
		Temperature: openai.Float(0)}
	answer, err := client.Completions.New(ctx, q)
	check("completion of token ids", err == nil && len(answer.Choices) == 2 &&
		len(answer.Choices[0].Logprobs.TokenLogprobs) == 4 &&
		len(answer.Choices[1].Logprobs.TokenLogprobs) == 2, err)
	q.Prompt = openai.CompletionNewParamsPromptUnion{OfString: openai.String("Once upon")}
	q.Echo, q.Logprobs = openai.CompletionNewParams{}.Echo, openai.CompletionNewParams{}.Logprobs
	q.MaxTokens = openai.Int(8)
	plain, err := client.Completions.New(ctx, q)
	stream := client.Completions.NewStreaming(ctx, q)
	text := ""
	for stream.Next() {
		for _, c := range stream.Current().Choices {
			text += c.Text
		}
	}
	check("streamed completion", err == nil && stream.Err() == nil && text == plain.Choices[0].Text,
		stream.Err())
}

func embedding(ctx context.Context, client openai.Client, model string) {
	answer, err := client.Embeddings.New(ctx, openai.EmbeddingNewParams{Model: model,
		Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"sea", "sky"}}})
	square := 0.0
	if err == nil {
		for _, v := range answer.Data[1].Embedding {
			square += v * v
		}
	}
	check("embeddings", err == nil && len(answer.Data) == 2 && square > 0.999 && square < 1.001,
		err)
}

func mistakes(ctx context.Context, client openai.Client, url, model string) {
	status := func(err error) (int, string) {
		var e *openai.Error
		if !errors.As(err, &e) {
			return 0, fmt.Sprint(err)
		}
		return e.StatusCode, e.Message
	}
	q := question("other")
	_, err := client.Chat.Completions.New(ctx, q)
	code, message := status(err)
	check("another model", code == 404 && strings.Contains(message, model), message)
	q = question(model)
	q.Temperature = openai.Float(-1)
	_, err = client.Chat.Completions.New(ctx, q)
	code, message = status(err)
	check("a wrong temperature", code == 400 && strings.Contains(message, "temperature"), message)
	stream := client.Chat.Completions.NewStreaming(ctx, q)
	for stream.Next() {
	}
	code, message = status(stream.Err())
	check("a wrong temperature, streamed", code == 400, message)
	wrong := openai.NewClient(option.WithBaseURL(url+"/v1"), option.WithAPIKey("wrong"))
	_, err = wrong.Models.List(ctx)
	code, message = status(err)
	check("a wrong key", code == 401, message)
}
