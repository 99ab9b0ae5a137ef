package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// Assigned in init, because the completion script lists every command including this one.
var completionCommand command

func init() {
	completionCommand = command{
		name:    "completion",
		summary: "Print a shell completion script.",
		example: `# bash
source <(conquer completion bash)
# zsh
conquer completion zsh > "${fpath[1]}/_conquer"
# fish
conquer completion fish > ~/.config/fish/completions/conquer.fish`,
		setup: func(*pflag.FlagSet) func(context.Context, []string) error {
			return func(_ context.Context, args []string) error {
				if len(args) != 1 {
					return usagef("name one shell: bash, zsh or fish")
				}
				switch args[0] {
				case "bash":
					return bashCompletion(os.Stdout)
				case "zsh":
					return zshCompletion(os.Stdout)
				case "fish":
					return fishCompletion(os.Stdout)
				}
				return usagef("unknown shell %q: expected bash, zsh or fish", args[0])
			}
		},
	}
}

// flagValues lists the values of flags that accept fixed values.
var flagValues = map[string]string{
	"dtype": "float32 bfloat16 float16", "device": "cpu cuda", "format": "hf",
}

// takesPath reports whether a flag's value is a path.
func takesPath(flag string) bool {
	for _, part := range []string{"path", "file", "tokenizer", "data", "dir"} {
		if strings.Contains(flag, part) {
			return true
		}
	}
	return false
}

// visitFlags calls each for every command with its flags, including those of its subcommands.
func visitFlags(each func(c command, flags []*pflag.Flag)) {
	for _, c := range commands() {
		set := newFlags(c.name)
		if c.setup != nil {
			c.setup(set)
		}
		for _, part := range c.subcommands {
			own := newFlags(part.name)
			part.setup(own)
			set.AddFlagSet(own)
		}
		var list []*pflag.Flag
		set.VisitAll(func(f *pflag.Flag) { list = append(list, f) })
		each(c, list)
	}
}

func bashCompletion(w io.Writer) error {
	var names, cases strings.Builder
	taken := map[string]bool{}
	var valueCases strings.Builder
	visitFlags(func(c command, flags []*pflag.Flag) {
		names.WriteString(" " + c.name)
		words := ""
		for _, f := range flags {
			words += " --" + f.Name
			if !taken[f.Name] && flagValues[f.Name] != "" {
				taken[f.Name] = true
				fmt.Fprintf(&valueCases, "    --%s) COMPREPLY=($(compgen -W '%s' -- "+
					"\"$current\")); return ;;\n", f.Name, flagValues[f.Name])
			} else if !taken[f.Name] && takesPath(f.Name) {
				taken[f.Name] = true
				fmt.Fprintf(&valueCases, "    --%s) COMPREPLY=($(compgen -f -- \"$current\")); "+
					"compopt -o filenames; return ;;\n", f.Name)
			}
		}
		words = c.words() + words
		fmt.Fprintf(&cases, "    %s) words='%s --help' ;;\n", c.name, strings.TrimSpace(words))
	})
	_, err := fmt.Fprintf(w, `# bash completion for conquer
_conquer() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words=
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W 'help%s' -- "$current"))
    return
  fi
  case $previous in
%s  esac
  case ${COMP_WORDS[1]} in
    help) words='%s' ;;
%s  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _conquer conquer
`, names.String(), valueCases.String(), strings.TrimSpace(names.String()), cases.String())
	return err
}

func zshCompletion(w io.Writer) error {
	var list, cases strings.Builder
	quote := strings.NewReplacer("'", `'\''`, "[", "(", "]", ")", ":", `\:`, "\n", " ")
	visitFlags(func(c command, flags []*pflag.Flag) {
		fmt.Fprintf(&list, "    '%s:%s'\n", c.name, quote.Replace(c.summary))
		fmt.Fprintf(&cases, "    %s)\n      _arguments", c.name)
		for _, f := range flags {
			name, usage := pflag.UnquoteUsage(f)
			fmt.Fprintf(&cases, " \\\n        '--%s[%s]", f.Name, quote.Replace(usage))
			switch {
			case f.NoOptDefVal != "":
			case flagValues[f.Name] != "":
				fmt.Fprintf(&cases, ":%s:(%s)", name, flagValues[f.Name])
			case takesPath(f.Name):
				fmt.Fprintf(&cases, ":%s:_files", name)
			default:
				fmt.Fprintf(&cases, ":%s:", name)
			}
			cases.WriteString("'")
		}
		if words := c.words(); words != "" {
			fmt.Fprintf(&cases, " '1:what:(%s)'", words)
		}
		cases.WriteString(" \\\n        '--help[show the help]' ;;\n")
	})
	_, err := fmt.Fprintf(w, `#compdef conquer
_conquer() {
  local -a commands
  commands=(
    'help:Show the help of a command.'
%s  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
    help) _describe command commands ;;
%s  esac
}
if [ "$funcstack[1]" = "_conquer" ]; then _conquer "$@"; else compdef _conquer conquer; fi
`, list.String(), cases.String())
	return err
}

func fishCompletion(w io.Writer) error {
	quote := strings.NewReplacer(`\`, `\\`, "'", `\'`, "\n", " ")
	var b strings.Builder
	b.WriteString("# fish completion for conquer\ncomplete -c conquer -f\n")
	b.WriteString("complete -c conquer -n __fish_use_subcommand -a help -d 'Show the help of a " +
		"command.'\n")
	visitFlags(func(c command, flags []*pflag.Flag) {
		fmt.Fprintf(&b, "complete -c conquer -n __fish_use_subcommand -a %s -d '%s'\n", c.name,
			quote.Replace(c.summary))
		fmt.Fprintf(&b, "complete -c conquer -n '__fish_seen_subcommand_from help' -a %s\n", c.name)
		for _, f := range flags {
			_, usage := pflag.UnquoteUsage(f)
			fmt.Fprintf(&b, "complete -c conquer -n '__fish_seen_subcommand_from %s' -l %s -d '%s'",
				c.name, f.Name, quote.Replace(usage))
			switch {
			case f.NoOptDefVal != "":
			case flagValues[f.Name] != "":
				fmt.Fprintf(&b, " -x -a '%s'", flagValues[f.Name])
			case takesPath(f.Name):
				b.WriteString(" -r -F")
			default:
				b.WriteString(" -x")
			}
			b.WriteString("\n")
		}
		if words := c.words(); words != "" {
			fmt.Fprintf(&b, "complete -c conquer -n '__fish_seen_subcommand_from %s' -a '%s'\n",
				c.name, words)
		}
	})
	_, err := io.WriteString(w, b.String())
	return err
}
