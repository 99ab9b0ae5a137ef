// Command conquer fine-tunes Llama, runs and measures Bamba's chunked scan, and exports checkpoints
// that other programs load.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/pflag"

	_ "conquer/families"
	"conquer/model/hub"
	"conquer/torch"
	"conquer/train"
)

// version is set by the linker.
var version = "unknown"

// command is a command of the program with its flags. Each command has a file in this folder.
type command struct {
	name    string
	summary string // one line for the list of commands
	example string // command lines, with a comment before each
	// setup declares the flags. The function it returns runs after they are parsed, with the
	// arguments that are not flags.
	setup func(flags *pflag.FlagSet) func(ctx context.Context, args []string) error
	// config says that the flags may stand in a file, see declareConfig.
	config bool
	// arguments lists the words that may follow the flags. If files is true, paths may.
	arguments []string
	files     bool
	// subcommands are used instead of setup. Their names begin with this command's name.
	subcommands []command
}

// commands lists the subcommands in the order of the help.
func commands() []command {
	return []command{
		trainCommand,
		generateCommand,
		chatCommand,
		scoreCommand,
		evalCommand,
		probeCommand,
		serveCommand,
		dataCommand,
		exportCommand,
		benchCommand,
		infoCommand,
		planCommand,
		completionCommand,
		versionCommand,
	}
}

// usageError is a mistake in the command line. The exit code is 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// The profiler must start on the main thread.
func init() { runtime.LockOSThread() }

func main() {
	hub.Notice = func(message string) { note("conquer: %s\n", message) }
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the program and returns its exit code, which is 1 if not all could be printed.
func run(args []string, to, stderr io.Writer) int {
	out := &printer{to: to}
	stdout.err = nil
	code := dispatch(args, out, stderr)
	err := cmp.Or(out.err, stdout.err)
	// The result of training is in files.
	if code == 0 && err != nil && args[0] != trainCommand.name {
		io.WriteString(stderr, message(fmt.Sprintf("conquer %s: %v\n", args[0], err)))
		return 1
	}
	return code
}

func dispatch(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		overview(stderr)
		return 2
	}
	switch args[0] {
	case completeCommand:
		complete(args[1:], stdout)
		return 0
	case "help", "--help", "-h":
		if len(args) > 1 {
			args = append(args[1:], "--help")
			break
		}
		overview(stdout)
		return 0
	case "--version":
		args = []string{"version"}
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(args[1:], stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "conquer: there is no command %q%s; `conquer help` lists them\n", args[0],
		suggestCommand(args[0], commands()))
	return 2
}

func (c command) run(args []string, stdout, stderr io.Writer) int {
	if c.subcommands != nil {
		return c.runSubcommand(args, stdout, stderr)
	}
	flags, run := c.declare()
	switch err := flags.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		c.help(stdout, flags)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "conquer %s: %s; `conquer %s --help` lists the flags\n", c.name,
			parseMessage(err, flags), c.name)
		return 2
	}
	err := applyConfig(flags)
	if err == nil {
		err = expandPaths(flags)
	}
	if err != nil {
		return c.exitCode(err, stderr)
	}
	for _, word := range flags.Args() {
		if word == "true" || word == "false" {
			fmt.Fprintf(stderr, "conquer %s: unexpected %q: write a boolean flag as --flag=%s\n",
				c.name, word, word)
			return 2
		}
	}
	patience := 10 * time.Second
	if c.name == trainCommand.name || c.name == serveCommand.name { // what is begun is finished
		patience = 0
	}
	ctx, release := untilStopped(patience)
	defer release()
	return c.exitCode(run(ctx, flags.Args()), stderr)
}

// declare returns the command's flags and the function that runs it.
func (c command) declare() (*pflag.FlagSet, func(context.Context, []string) error) {
	flags := newFlags(c.name)
	run := c.setup(flags)
	if c.config {
		declareConfig(flags)
	}
	return flags, run
}

// exitCode reports an error and returns the exit code: 0 for success, 2 for a usage error, 130
// after an interrupt, else 1.
func (c command) exitCode(err error, stderr io.Writer) int {
	code := 1
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		code = 2
	case errors.Is(err, context.Canceled):
		return 130
	default:
		err = withRemedy(err)
	}
	mark := ""
	if _, diverged := errors.AsType[train.DivergedError](err); diverged {
		mark = divergedMark
	}
	if !reportToLauncher(mark + err.Error()) {
		io.WriteString(stderr, message(fmt.Sprintf("conquer %s: %v\n", c.name, err)))
	}
	return code
}

// runSubcommand runs the subcommand that the first argument names.
func (c command) runSubcommand(args []string, stdout, stderr io.Writer) int {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	if name == "help" && len(args) > 1 {
		args = []string{args[1], "--help"}
		name = args[0]
	}
	for _, part := range c.subcommands {
		if part.name == c.name+" "+name {
			return part.run(args[1:], stdout, stderr)
		}
	}
	switch name {
	case "help", "--help", "-h":
		fmt.Fprintf(stdout, "%s\n\nExamples:\n%s\n\nCommands:\n", c.summary, indent(c.example))
		for _, part := range c.subcommands {
			fmt.Fprintf(stdout, "  %-16s %s\n", part.name, part.summary)
		}
		return 0
	case "":
		fmt.Fprintf(stderr, "conquer %s: choose a subcommand: %s; `conquer %s --help` explains "+
			"them\n", c.name, strings.Join(c.subcommandNames(), ", "), c.name)
		return 2
	}
	fmt.Fprintf(stderr, "conquer %s: there is no command %q%s; `conquer %s --help` lists them\n",
		c.name, name, suggestCommand(c.name+" "+name, c.subcommands), c.name)
	return 2
}

func (c command) subcommandNames() []string {
	var names []string
	for _, part := range c.subcommands {
		names = append(names, strings.TrimPrefix(part.name, c.name+" "))
	}
	return names
}

// withRemedy adds a remedy to an out-of-memory error. It returns other errors unchanged.
func withRemedy(err error) error {
	var failed *torch.Error
	if !errors.Is(err, torch.ErrOutOfMemory) || !errors.As(err, &failed) {
		return err
	}
	return fmt.Errorf("%s; use a smaller --batch_size or --sequence_length, --recompute selective "+
		"or block, a --dtype of 16 bits, or a smaller model", failed.OutOfMemory())
}

func (c command) help(w io.Writer, flags *pflag.FlagSet) {
	fmt.Fprintf(w, "%s\n\nExamples:\n%s\n", c.summary, indent(c.example))
	for _, g := range groups(flags) {
		fmt.Fprintf(w, "\n%s:\n%s", g.heading, g.flags.FlagUsagesWrapped(100))
	}
}

func overview(w io.Writer) {
	fmt.Fprint(w, "conquer fine-tunes Llama, runs and measures Bamba's chunked scan, and exports\n"+
		"checkpoints that other programs load.\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-11s %s\n", c.name, c.summary)
	}
	fmt.Fprintf(w, "\nFirst steps:\n%s\n", indent(`
conquer generate --model_path smollm2-135m --chat --prompt 'Why is the sky blue?' \
  --max_new_tokens 60
conquer help train`))
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

// suggestCommand names the command closest to a misspelled one.
func suggestCommand(typo string, among []command) string {
	for _, c := range among {
		if distance(typo, c.name) <= 2 {
			return fmt.Sprintf(", did you mean %q?", c.name)
		}
	}
	return ""
}
