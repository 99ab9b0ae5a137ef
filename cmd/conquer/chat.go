package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/generate"
	"conquer/text/tokenizer"
	"conquer/torch/dist"
)

var chatCommand = command{
	name:    "chat",
	summary: "Talk with a model that was tuned on chats.",
	example: `conquer chat --model_path smollm2-135m
conquer chat --model_path my-model --system "Answer in one sentence."
# a model that is too large for one GPU: each of two holds half of every layer
conquer chat --nproc 2 --model_path llama-3.1-8b-instruct
# one question a line, from a file
conquer chat --model_path smollm2-135m --temperature 0 < questions.txt`,
	setup: setupChat,
}

const chatHelp = `/reset  forget the conversation
/help   show this
/exit   leave (Ctrl-D does, too)
Ctrl-C ends an answer early; a line that ends in \ goes on in the next.`

func setupChat(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f struct {
		modelFlags
		samplingFlags
		processFlags
	}
	f.modelFlags.declare(flags)
	f.modelFlags.declareAdapter(flags)
	system := flags.String("system", "", "`instructions` that come before the conversation")
	f.samplingFlags.declare(flags, 1024, 0.6, 0.9)
	f.declareProcesses(flags)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q: questions are typed, or come from standard input", args[0])
		}
		if err := f.read(); err != nil {
			return err
		}
		if err := f.checkProcesses(); err != nil {
			return err
		}
		place, err := dist.FromEnvironment()
		if err != nil {
			return err
		}
		if max(f.processes, place.Size) > 1 && f.options.Compile == generate.CompileGraph {
			return usagef("--compile %s records steps for one process: leave it out with several", generate.CompileGraph)
		}
		if f.processes > 1 && place.Size == 1 {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			signal.Notify(make(chan os.Signal, 1), os.Interrupt) // Ctrl-C is the first process's to understand, each time
			return f.launch(ctx, 0)
		}
		c := &conversation{samplingFlags: &f.samplingFlags, system: systemMessage(*system), person: isTerminal(os.Stdin) && place.Rank == 0}
		if place.Size > 1 {
			if f.world, err = f.join(place, &f.modelFlags); err != nil {
				return err
			}
			defer f.world.Leave()
			c.world, c.options.Group, c.told = f.world, f.world.All, place.Rank > 0
			if place.Rank == 0 {
				defer c.share("")
			}
		}
		if c.opened, err = f.open(ctx); err != nil {
			return err
		}
		defer c.Close()
		suggest(c.checkpoint, flags, &c.options)
		c.out = os.Stdout
		c.session = generate.NewSession(c.model, c.tokenizer)
		defer c.session.Close()
		c.reset()
		if _, err := encodeChat(c.opened, append(c.messages, tokenizer.Message{Role: "user", Content: "?"})); err != nil {
			return err
		}
		switch {
		case place.Rank > 0:
			return c.follow()
		case ctx.Err() != nil: // Ctrl-C while the model was read
			return ctx.Err()
		}
		return c.run(os.Stdin)
	}
}

// suggest takes sampling options that were not given from the model's generation_config.json.
func suggest(c *checkpoint.Checkpoint, flags *pflag.FlagSet, o *generate.Options) {
	config := c.GenerationConfig()
	if on, _ := config["do_sample"].(bool); !on {
		return
	}
	for name, put := range map[string]func(float64){
		"temperature":        func(v float64) { o.Temperature = v },
		"top_p":              func(v float64) { o.TopP = v },
		"top_k":              func(v float64) { o.TopK = int(v) },
		"min_p":              func(v float64) { o.MinP = v },
		"repetition_penalty": func(v float64) { o.RepetitionPenalty = v },
	} {
		if v, ok := config[name].(float64); ok && !flags.Changed(name) {
			put(v)
		}
	}
}

// conversation is a chat going on.
type conversation struct {
	*opened
	*samplingFlags
	system   []tokenizer.Message
	messages []tokenizer.Message
	session  *generate.Session
	out      io.Writer
	person   bool        // somebody types
	world    *dist.World // of the processes that have divided the model; nil for one alone
	shared   int         // what the first of them has told the others so far
}

// share tells the other processes, if any, a question, or /reset; nothing: that the conversation is over. It takes the run's
// store rather than a broadcast, which would have to come in time while a person thinks.
func (c *conversation) share(line string) error {
	if c.world == nil {
		return nil
	}
	c.shared++
	return c.world.Store().Set(fmt.Sprint("chat/", c.shared), []byte(line))
}

// follow takes part in the answers to what the first process shares.
func (c *conversation) follow() error {
	for {
		c.shared++
		line, err := c.world.Store().Get(fmt.Sprint("chat/", c.shared), 1000*24*time.Hour)
		switch {
		case err != nil || len(line) == 0:
			return err
		case string(line) == "/reset":
			c.reset()
		default:
			if _, err := c.answer(string(line), nil); err != nil {
				return err
			}
		}
	}
}

func (c *conversation) reset() {
	c.session.Reset()
	c.messages = append([]tokenizer.Message{}, c.system...)
}

// run answers line after line until the input ends. Ctrl-C ends an answer, and the program when there is none.
func (c *conversation) run(in io.Reader) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	lines := make(chan string)
	var failed error
	go func() {
		failed = read(in, lines)
		close(lines)
	}()
	if c.person {
		fmt.Fprintf(c.out, "Talking with %s. /help shows what else can be typed.\n", c.path)
	}
	for {
		if c.person {
			fmt.Fprint(c.out, "\n> ")
		}
		select {
		case <-signals:
			fmt.Fprintln(c.out)
			return nil
		case line, ok := <-lines:
			if !ok {
				if c.person {
					fmt.Fprintln(c.out)
				}
				return failed
			}
			switch line = strings.TrimSpace(line); {
			case line == "":
			case line == "/exit" || line == "/quit":
				return nil
			case line == "/reset":
				if err := c.share(line); err != nil {
					return err
				}
				c.reset()
			case line == "/help":
				fmt.Fprintln(c.out, chatHelp)
			case c.person && strings.HasPrefix(line, "/") && !strings.Contains(line, " "):
				fmt.Fprintf(c.out, "There is no command %s.\n%s\n", line, chatHelp)
			default:
				if c.person { // who can ask otherwise
					if _, _, err := c.fit(line); err != nil {
						fmt.Fprintf(os.Stderr, "(%v)\n", err)
						continue
					}
				}
				if err := c.share(line); err != nil {
					return err
				}
				if stop, err := c.answer(line, signals); stop || err != nil {
					return err
				}
			}
		}
	}
}

// read sends the input's lines; a backslash at the end of one joins it with the next.
func read(in io.Reader, lines chan<- string) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, 16<<20)
	held := ""
	for scanner.Scan() {
		line := held + scanner.Text()
		if rest, ok := strings.CutSuffix(line, `\`); ok {
			held = rest + "\n"
			continue
		}
		held = ""
		lines <- line
	}
	if held != "" {
		lines <- held
	}
	return scanner.Err()
}

// answer puts a question and prints the answer while it is made. stop is true when the program was asked to end.
func (c *conversation) answer(question string, signals <-chan os.Signal) (stop bool, err error) {
	messages, prompt, err := c.fit(question)
	if err != nil {
		return false, err
	}
	if len(messages) <= len(c.messages) && c.person {
		fmt.Fprintln(os.Stderr, "(the context is full: what was said first is forgotten)")
	}
	c.messages = messages
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	asked := make(chan bool, 1)
	go func() {
		select {
		case s := <-signals:
			asked <- s != os.Interrupt
			cancel()
		case <-ctx.Done():
		}
	}()
	result, stats, err := c.session.Generate(ctx, prompt, c.options, func(piece string) { io.WriteString(c.out, piece) })
	if err != nil && !errors.Is(err, context.Canceled) {
		return false, err
	}
	fmt.Fprintln(c.out)
	select {
	case stop = <-asked:
	default:
	}
	c.messages = append(c.messages, tokenizer.Message{Role: "assistant", Content: result.Text})
	c.tell("chat", stats)
	if c.person && isTerminal(os.Stderr) {
		printStats(stats, 0)
	}
	return stop, nil
}

// fit renders the conversation with a further question. When it leaves too little room for an answer, the oldest question and
// answer go.
func (c *conversation) fit(question string) (messages []tokenizer.Message, prompt []int32, err error) {
	messages = append(slices.Clone(c.messages), tokenizer.Message{Role: "user", Content: question})
	room := min(c.options.MaxNewTokens, c.model.MaxLength()/4)
	for {
		prompt, err = encodeChat(c.opened, messages)
		if err != nil || len(prompt)+room <= c.model.MaxLength() {
			return messages, prompt, err
		}
		first := len(c.system)
		if len(messages)-first < 3 {
			if len(prompt) >= c.model.MaxLength() {
				err = fmt.Errorf("the question has %d tokens; the model's context is %d: shorten it", len(prompt), c.model.MaxLength())
			}
			return messages, prompt, err
		}
		messages = slices.Delete(messages, first, first+2)
	}
}
