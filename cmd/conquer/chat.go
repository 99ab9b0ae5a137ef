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
	"sort"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"conquer/generate"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch/dist"
)

var chatCommand = command{
	name:    "chat",
	summary: "Chat with a model.",
	example: `conquer chat --model_path smollm2-135m
conquer chat --model_path my-model --system "Answer in one sentence."
# a model too large for one GPU: two GPUs hold half of every layer each
conquer chat --nproc 2 --model_path llama-3.1-8b-instruct
# questions from a file, one per line
conquer chat --model_path smollm2-135m --temperature 0 < questions.txt`,
	config: true,
	setup:  setupChat,
}

const chatHelp = `/reset  forget the conversation
/help   show this
/exit   leave (also Ctrl-D)
Ctrl-C stops an answer or discards a line; on an empty line it leaves. The arrow keys edit a line
and recall earlier ones. Several pasted lines are one question, which Enter sends. A line that ends
in \ continues on the next line.`

// chatFlags are the flags of conquer chat.
type chatFlags struct {
	modelFlags
	samplingFlags
	processFlags
	chatInputs
	system string
}

func setupChat(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f chatFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		place, err := f.check(ctx, args)
		if err != nil {
			return err
		}
		if f.processes > 1 && place.Size == 1 {
			signal.Notify(make(chan os.Signal, 1), os.Interrupt) // rank 0 handles Ctrl-C
			ctx, stop := signal.NotifyContext(context.Background(), stopSignals[1:]...)
			defer stop()
			context.AfterFunc(ctx, stop)
			return f.launch(ctx, 0)
		}
		return f.run(ctx, flags, place)
	}
}

func (f *chatFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	f.declareAdapter(flags)
	f.declareCache(flags)
	f.declareExpected(flags)
	group(flags, "Model")
	flags.StringVar(&f.system, "system", "", "the system message (`instructions`)")
	f.chatInputs.declare(flags)
	group(flags, "Conversation")
	f.samplingFlags.declare(flags, 1024, 0.6, 0.9)
	group(flags, "Sampling")
	f.declareProcesses(flags)
	group(flags, "Several processes")
	f.declareCompile(flags)
	group(flags, "Speed and memory")
}

// check reads the flags and this process's place among the ranks.
func (f *chatFlags) check(ctx context.Context, args []string) (place dist.Place, err error) {
	if len(args) > 0 {
		return place, usagef("unexpected %q: questions are read from standard input", args[0])
	}
	if err := f.read(); err != nil {
		return place, err
	}
	if err := f.readInputs(ctx); err != nil {
		return place, err
	}
	if err := f.checkProcesses(); err != nil {
		return place, err
	}
	if place, err = dist.FromEnvironment(); err != nil {
		return place, err
	}
	if max(f.processes, place.Size) > 1 && f.options.Compile == generate.CompileGraph {
		return place, usagef("--compile %s works in one process only: leave it out with several",
			generate.CompileGraph)
	}
	return place, nil
}

func (f *chatFlags) run(ctx context.Context, flags *pflag.FlagSet, place dist.Place) (err error) {
	c := &conversation{
		samplingFlags: &f.samplingFlags,
		system:        systemMessage(f.system),
		inputs:        f.inputs,
		person:        isTerminal(os.Stdin) && place.Rank == 0,
		told:          place.Rank > 0,
	}
	if place.Size > 1 {
		if f.world, err = f.join(place, &f.modelFlags); err != nil {
			return err
		}
		defer f.world.Leave()
		c.world, c.options.Group, c.reasonPrinted = f.world, f.world.All, place.Rank > 0
		if place.Rank == 0 {
			defer c.share("")
		}
	}
	if c.opened, err = f.open(ctx); err != nil {
		return err
	}
	defer c.Close()
	if err := c.configure(c.opened, flags, "chat"); err != nil {
		return err
	}
	if place.Rank == 0 {
		c.printIgnored("chat")
	}
	c.out = textOutput()
	c.session = generate.NewSession(c.model, c.tokenizer)
	defer c.session.Close()
	c.reset()
	probe := append(c.messages, tokenizer.Message{Role: "user", Content: "?"})
	if _, err := c.encode(probe); err != nil {
		return err
	}
	switch {
	case place.Rank > 0:
		return c.follow()
	case ctx.Err() != nil: // Ctrl-C while the model was loading
		return ctx.Err()
	}
	if c.person {
		if c.editor = newEditor(os.Stdin, os.Stdout); c.editor != nil {
			defer c.editor.close()
		}
	}
	return c.run(os.Stdin)
}

// conversation is the state of a chat.
type conversation struct {
	*opened
	*samplingFlags
	system   []tokenizer.Message
	inputs   tokenizer.ChatInputs
	messages []tokenizer.Message
	session  *generate.Session
	out      io.Writer
	person   bool        // standard input is a terminal
	editor   *editor     // reads a person's lines; nil without a terminal
	told     bool        // the person knows that turns are dropped, or another process prints
	failed   int         // questions that were not answered
	failure  error       // of the last one, if it is not printed yet
	asked    int         // questions so far
	read     int         // tokens that the model has read, without those it made
	world    *dist.World // the processes that share the model; nil for one process
	shared   int         // number of messages that rank 0 has sent to the others
}

// share sends a question or /reset to the other processes. An empty line ends the conversation. It
// uses the store because a broadcast would time out between two questions.
func (c *conversation) share(line string) error {
	if c.world == nil {
		return nil
	}
	c.shared++
	return c.world.Store().Set(fmt.Sprint("chat/", c.shared), []byte(line))
}

// follow computes the answers together with rank 0, which shares the questions.
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
			messages, prompt, err := c.fit(string(line))
			if err != nil {
				return err
			}
			if _, err := c.answer(messages, prompt, nil); err != nil {
				return err
			}
		}
	}
}

func (c *conversation) reset() {
	c.session.Reset()
	c.messages = append([]tokenizer.Message{}, c.system...)
}

// run answers lines until the input ends. Ctrl-C stops an answer, or the program between answers.
func (c *conversation) run(in io.Reader) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, stopSignals...)
	defer signal.Stop(signals)
	lines, wanted := make(chan input), make(chan struct{}, 1)
	var failed error
	go func() {
		if c.editor == nil {
			failed = read(in, lines)
		} else {
			failed = c.editor.send(wanted, lines)
		}
		close(lines)
	}()
	if c.person {
		fmt.Fprintf(c.out, "Chat with %s. Type /help for commands.\n", c.path)
	}
	for {
		switch {
		case c.editor != nil:
			fmt.Fprintln(c.out)
			wanted <- struct{}{}
		case c.person:
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
				return errors.Join(failed, c.failures())
			}
			if stop, err := c.handle(line, signals); stop || err != nil {
				return errors.Join(err, c.failures())
			}
		}
	}
}

// handle runs a command such as /reset, or answers a question. stop ends the conversation.
func (c *conversation) handle(line input, signals chan os.Signal) (stop bool, err error) {
	text := strings.TrimSpace(line.text)
	switch {
	case text == "":
		return false, nil
	case text == "/exit" || text == "/quit":
		return true, nil
	case text == "/reset":
		if err := c.share(text); err != nil {
			return false, err
		}
		c.reset()
		return false, nil
	case text == "/help":
		fmt.Fprintln(c.out, chatHelp)
		return false, nil
	case c.person && strings.HasPrefix(text, "/") && !strings.Contains(text, " "):
		fmt.Fprintf(c.out, "Unknown command %s.\n%s\n", text, chatHelp)
		return false, nil
	}
	c.asked++
	c.printFailure()
	messages, prompt, err := c.fit(text)
	if err != nil {
		if c.person { // can rephrase it
			note("(%v)\n", err)
			return false, nil
		}
		c.failed++
		c.failure = fmt.Errorf("standard input:%d: %w", line.number, err)
		return false, nil
	}
	if err := c.share(text); err != nil {
		return false, err
	}
	return c.answer(messages, prompt, signals)
}

// printFailure prints why the last question was not answered.
func (c *conversation) printFailure() {
	if c.failure != nil {
		note("%v\n", c.failure)
		c.failure = nil
	}
}

// failures returns an error that counts the questions without an answer, that of the only question,
// or nil.
func (c *conversation) failures() error {
	switch {
	case c.failed == 0:
		return nil
	case c.asked == 1:
		return c.failure
	}
	c.printFailure()
	return fmt.Errorf("%d of %s failed", c.failed, dataset.Count(c.asked, "question"))
}

// input is a line of input, joined with those that continue it.
type input struct {
	text   string
	number int // of its first line, from 1
}

// read sends the input's lines. A backslash at the end of a line joins it with the next line.
func read(in io.Reader, lines chan<- input) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, 16<<20)
	var held input
	for number := 1; scanner.Scan(); number++ {
		text := scanner.Text()
		if number == 1 { // a file may begin with a byte order mark
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if held.text == "" {
			held.number = number
		}
		if rest, ok := strings.CutSuffix(text, `\`); ok {
			held.text += rest + "\n"
			continue
		}
		held.text += text
		lines <- held
		held = input{}
	}
	if held.text != "" {
		lines <- held
	}
	return scanner.Err()
}

// answer streams the answer to the last of messages, which prompt renders. stop is set if the
// program was asked to end.
func (c *conversation) answer(messages []tokenizer.Message, prompt []int32,
	signals chan os.Signal) (stop bool, err error) {
	if dropped := (len(c.messages) + 1 - len(messages)) / 2; dropped > 0 && !c.told {
		c.told = true
		note("(the context is full: the oldest turns are dropped when it is, "+
			"now %d)\n", dropped)
	}
	c.messages = messages
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	asked := make(chan bool, 1)
	go func() {
		select {
		case s := <-signals:
			asked <- s != os.Interrupt
			if s != os.Interrupt {
				signal.Stop(signals) // the next ends the program at once
			}
			cancel()
		case <-ctx.Done():
		}
	}()
	result, stats, err := c.session.Generate(ctx, prompt, c.options,
		func(piece string) { io.WriteString(c.out, piece) })
	c.read += stats.PromptTokens - stats.Reused
	if err != nil && !errors.Is(err, context.Canceled) {
		return false, err
	}
	fmt.Fprintln(c.out)
	select {
	case stop = <-asked:
	default:
	}
	c.messages = append(c.messages, tokenizer.Message{Role: "assistant", Content: result.Text})
	c.printUnfusedReason("chat", stats)
	if c.person && isTerminal(os.Stderr) {
		printStats(stats, 0)
	}
	return stop, nil
}

// encode renders a conversation up to the start of the assistant's turn and encodes the text.
func (c *conversation) encode(messages []tokenizer.Message) ([]int32, error) {
	_, ids, err := encodeChat(c.opened, tokenizer.Conversation{Messages: messages,
		ChatInputs: c.inputs})
	return ids, err
}

// fit renders the conversation with one more question. If there is too little room for an answer,
// it drops the oldest turns until half of the context is free, so that the cost of reading the
// rest again is spread over many turns. The system message stays.
func (c *conversation) fit(question string) (messages []tokenizer.Message, prompt []int32,
	err error) {
	all := append(slices.Clone(c.messages), tokenizer.Message{Role: "user", Content: question})
	most, first := c.model.MaxLength(), len(c.system)
	render := func(turns int) {
		messages = slices.Delete(slices.Clone(all), first, first+2*turns)
		prompt, err = c.encode(messages)
	}
	render(0)
	room := min(c.options.MaxNewTokens, most/4)
	if err != nil || len(prompt)+room <= most {
		return messages, prompt, err
	}
	turns := (len(all) - first - 1) / 2
	few := sort.Search(turns, func(n int) bool {
		render(n)
		return err != nil || len(prompt) <= most/2
	})
	if render(few); err == nil && len(prompt) >= most {
		err = fmt.Errorf("the question has %d tokens; the model's context is %d: shorten it",
			len(prompt), most)
	}
	return messages, prompt, err
}
