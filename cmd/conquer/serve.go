package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"conquer/serve"
)

var serveCommand = command{
	name:    "serve",
	summary: "Answer requests over HTTP, in the form of OpenAI's API.",
	example: `conquer serve --model_path smollm2-135m --port 8000
# ask it
curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
  -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 60}'
# for other machines: a key and TLS
CONQUER_API_KEY=secret conquer serve --model_path my-model --host 0.0.0.0 --port 8443 \
  --tls_cert server.pem --tls_key server.key
# three models in one: the base model and two adapters
conquer serve --model_path my-model --adapter polite=adapters/polite --adapter terse=adapters/terse
# 32 requests at once, each of at most 4,096 tokens
conquer serve --model_path my-model --max_sequences 32 --max_length 4096`,
	config: true,
	setup:  setupServe,
}

// apiKeyVariable names the environment variable that holds the key of clients.
const apiKeyVariable = "CONQUER_API_KEY"

// serveFlags are the flags of conquer serve.
type serveFlags struct {
	modelFlags
	samplingFlags
	cacheFlags
	adapters    []string // NAME=PATH
	loadAdapter bool
	host        string
	port        int
	name        string
	queue       int
	maxBody     int64
	maxTokens   int
	timeout     time.Duration
	stopTimeout time.Duration
	keyFile     string
	origins     []string
	cert, key   string
}

func setupServe(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f serveFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q: requests come over HTTP", args[0])
		}
		if err := f.check(); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *serveFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	f.declareAdapter(flags)
	flags.StringArrayVar(&f.adapters, "adapter", nil,
		"`name=folder` of a LoRA adapter in PEFT's format that requests can name as their model; "+
			"may be repeated")
	flags.BoolVar(&f.loadAdapter, "allow_adapter_loading", false,
		"let clients load adapters from any folder of this machine: /v1/load_lora_adapter")
	f.declareCache(flags)
	f.declareExpected(flags)
	flags.StringVar(&f.name, "served_model_name", "",
		"`name` of the model in requests and answers (default: the last part of --model_path)")
	group(flags, "Model")
	flags.StringVar(&f.host, "host", "127.0.0.1",
		"`address` to listen at; 0.0.0.0 accepts requests from other machines")
	flags.IntVar(&f.port, "port", 8000, "`port` to listen at; 0: a free one, which is printed")
	flags.StringVar(&f.cert, "tls_cert", "", "PEM `file` of the certificate, for https")
	flags.StringVar(&f.key, "tls_key", "", "PEM `file` of the certificate's key")
	flags.StringVar(&f.keyFile, "api_key_file", "",
		"`file` of the keys, one per line, of which a request must bear one; "+apiKeyVariable+
			" in the environment is another")
	flags.StringArrayVar(&f.origins, "cors_origin", nil,
		"web `origin` whose pages may send requests, such as https://example.org, or * for all; "+
			"may be repeated")
	group(flags, "Network")
	f.cacheFlags.declare(flags, -1)
	flags.IntVar(&f.maxTokens, "max_tokens", 0,
		"most new `tokens` of a request (default: --max_length)")
	flags.IntVar(&f.queue, "max_queue", 1024, "most prompts that wait; more are refused")
	flags.Int64Var(&f.maxBody, "max_body", 8<<20, "most `bytes` of a request")
	flags.DurationVar(&f.timeout, "timeout", 0,
		"most `time` of a request, such as 90s or 5m, waiting included (default: unlimited)")
	flags.DurationVar(&f.stopTimeout, "stop_timeout", 30*time.Second,
		"`time` that running requests have to end after Ctrl-C or SIGTERM")
	group(flags, "Limits")
}

// check reads the flags.
func (f *serveFlags) check() error {
	if err := f.cacheFlags.check(); err != nil {
		return err
	}
	for _, limit := range []struct {
		name  string
		value float64
	}{
		{"max_tokens", float64(f.maxTokens)}, {"timeout", float64(f.timeout)},
		{"stop_timeout", float64(f.stopTimeout)},
	} {
		if !(limit.value >= 0) {
			return usagef("--%s is negative", limit.name)
		}
	}
	switch {
	case f.port < 0 || f.port > 65535:
		return usagef("--port is %d, expected 0 to 65535", f.port)
	case f.queue < 1:
		return usagef("--max_queue is %d, expected 1 or more", f.queue)
	case f.maxBody < 1:
		return usagef("--max_body is %d, expected 1 or more", f.maxBody)
	case f.adapter != "" && (len(f.adapters) > 0 || f.loadAdapter):
		return usagef("--adapter_path merges an adapter into the model, which then takes no "+
			"others: give it as --adapter NAME=%s", f.adapter)
	case (f.cert == "") != (f.key == ""):
		return usagef("--tls_cert and --tls_key belong together: give both")
	}
	return nil
}

// keys returns the keys of clients.
func (f *serveFlags) keys() ([]string, error) {
	var keys []string
	if key := os.Getenv(apiKeyVariable); key != "" {
		keys = append(keys, key)
	}
	if f.keyFile == "" {
		return keys, nil
	}
	text, err := os.ReadFile(f.keyFile)
	if err != nil {
		return nil, fmt.Errorf("--api_key_file: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if key := strings.TrimSpace(line); key != "" {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("--api_key_file: %s holds no key", f.keyFile)
	}
	return keys, nil
}

func (f *serveFlags) run(ctx context.Context) error {
	keys, err := f.keys()
	if err != nil {
		return err
	}
	var config *tls.Config
	if f.cert != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return fmt.Errorf("--tls_cert: %w", err)
		}
		config = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(f.host, strconv.Itoa(f.port)))
	if err != nil {
		return fmt.Errorf("--host %s --port %d: %w", f.host, f.port, err)
	}
	defer listener.Close()
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	if o.tokenizer == nil {
		return o.noTokenizer("a server needs one: give it with --tokenizer")
	}
	s, err := f.server(o, keys)
	if err != nil {
		return err
	}
	address := "http://" + listener.Addr().String()
	if config != nil {
		address = "https://" + listener.Addr().String()
		listener = tls.NewListener(listener, config)
	}
	note("conquer serve: %s at %s\n", f.name, address)
	return f.listen(ctx, listener, s)
}

// isLocal reports whether the address to listen at is this machine's alone.
func (f *serveFlags) isLocal() bool {
	ip := net.ParseIP(f.host)
	return f.host == "localhost" || ip != nil && ip.IsLoopback()
}

// server makes the server of an open model.
func (f *serveFlags) server(o *opened, keys []string) (*serve.Server, error) {
	f.options.Temperature, f.options.TopP, f.options.RepetitionPenalty = 1, 1, 1
	none := pflag.NewFlagSet("", pflag.ContinueOnError) // the model's settings are the defaults
	if err := f.configure(o, none, "serve"); err != nil {
		return nil, err
	}
	f.printIgnored("serve")
	limits, err := f.fit(o.model)
	if err != nil {
		return nil, err
	}
	note("conquer serve: %s\n", limits)
	if f.name == "" {
		f.name = filepath.Base(f.path)
	}
	var adapters []serve.Adapter
	for _, pair := range f.adapters {
		name, path, _ := strings.Cut(pair, "=")
		if path == "" {
			return nil, usagef("--adapter is %q, expected NAME=FOLDER", pair)
		}
		adapters = append(adapters, serve.Adapter{Name: name, Path: path})
	}
	return serve.New(o.model, o.tokenizer, serve.Options{Model: f.name, Limits: limits,
		Adapters: adapters, LoadAdapters: f.loadAdapter,
		Defaults: f.options, MaxTokens: f.maxTokens, MaxBody: f.maxBody, Queue: f.queue,
		Timeout: f.timeout, APIKeys: keys, Origins: f.origins,
		Local: f.isLocal() && len(keys) == 0})
}

// listen answers requests until ctx ends. Then it refuses new ones and gives the others time to
// end.
func (f *serveFlags) listen(ctx context.Context, listener net.Listener, s *serve.Server) error {
	h := &http.Server{Handler: s, ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(listener) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		note("conquer serve: stopping, running requests have %v to end\n", f.stopTimeout)
	}
	limit, cancel := context.WithTimeout(context.Background(), f.stopTimeout)
	defer cancel()
	unfinished := s.Shutdown(limit)
	if closed := h.Shutdown(limit); closed != nil {
		h.Close()
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	if unfinished != nil {
		note("conquer serve: the requests that had not ended were cancelled\n")
	}
	return nil
}
