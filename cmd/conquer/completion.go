package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/model/hub"
	"conquer/torch/optim"
	"conquer/train"
)

// Assigned in init, because completion lists every command including this one.
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
		arguments: slices.Sorted(maps.Keys(completionScripts)),
		setup: func(*pflag.FlagSet) func(context.Context, []string) error {
			return func(_ context.Context, args []string) error {
				if len(args) != 1 {
					return usagef("name one shell: bash, fish or zsh")
				}
				script, ok := completionScripts[args[0]]
				if !ok {
					return usagef("unknown shell %q: expected bash, fish or zsh", args[0])
				}
				_, err := io.WriteString(stdout, script)
				return err
			}
		},
	}
}

// completeCommand is the first argument with which the completion scripts call the program. The
// words of the command line follow, up to the one to complete. The program prints a candidate per
// line, with a tab and a description where there is one, or a line of completeFiles or
// completeFolders, which asks the shell for paths.
const completeCommand = "__complete"

const (
	completeFiles   = ":files"
	completeFolders = ":folders"
)

var completionScripts = map[string]string{
	"bash": `# bash completion for conquer
_conquer() {
  local current=${COMP_WORDS[COMP_CWORD]} line
  [[ $current == = ]] && current=
  COMPREPLY=()
  while IFS= read -r line; do
    case $line in
      :files)
        compopt -o filenames
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$current")
        ;;
      :folders)
        compopt -o filenames
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -d -- "$current")
        ;;
      *) COMPREPLY+=("${line%%$'\t'*}") ;;
    esac
  done < <("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _conquer conquer
`,
	"zsh": `#compdef conquer
_conquer() {
  local line paths
  local -a candidates
  while IFS= read -r line; do
    case $line in
      :files) paths=files ;;
      :folders) paths=folders ;;
      *) candidates+=("${${line//:/\\:}/$'\t'/:}") ;;
    esac
  done < <("${(Q)words[1]}" __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)
  (( $#candidates )) && _describe conquer candidates
  if [[ -n $paths ]]; then
    compset -P '--[a-z_-]##='
    if [[ $paths == files ]]; then _files; else _files -/; fi
  fi
}
if [[ $funcstack[1] == _conquer ]]; then _conquer "$@"; else compdef _conquer conquer; fi
`,
	"fish": `# fish completion for conquer
function __conquer_complete
  set -l words (commandline -opc) (commandline -ct)
  set -l flag (string match -r '^--[a-z_-]+=' -- $words[-1])
  set -l path (string replace -r '^--[a-z_-]+=' '' -- $words[-1])
  for line in ($words[1] __complete $words[2..-1] 2>/dev/null)
    switch $line
      case :files
        for found in (__fish_complete_path $path)
          echo "$flag$found"
        end
      case :folders
        for found in (__fish_complete_directories $path)
          echo "$flag$found"
        end
      case '*'
        echo $line
    end
  end
end
complete -c conquer -f -a '(__conquer_complete)'
`,
}

// candidate is a word that may complete the command line.
type candidate struct{ word, description string }

// complete writes what may stand for the last of words, the words after the program's name.
func complete(words []string, w io.Writer) {
	for _, c := range candidates(joinEquals(words)) {
		if c.description != "" {
			c.word += "\t" + strings.ReplaceAll(c.description, "\n", " ")
		}
		fmt.Fprintln(w, c.word)
	}
}

// joinEquals joins a flag and its value, which bash splits at the equals sign, as if a space stood
// between them.
func joinEquals(words []string) []string {
	words = slices.Clone(words)
	for i := 1; i < len(words); i++ {
		if words[i] != "=" || !strings.HasPrefix(words[i-1], "--") {
			continue
		}
		if i == len(words)-1 {
			words[i] = ""
		} else {
			words = slices.Delete(words, i, i+1)
		}
	}
	return words
}

func candidates(words []string) []candidate {
	if len(words) == 0 {
		words = []string{""}
	}
	current := words[len(words)-1]
	among := commands()
	name := ""
	for i, word := range words[:len(words)-1] {
		if i == 0 && word == "help" {
			continue
		}
		at := slices.IndexFunc(among, func(c command) bool { return c.name == name+word })
		if at < 0 {
			return nil
		}
		c := among[at]
		if c.subcommands == nil {
			if words[0] == "help" {
				return nil
			}
			return c.complete(words[i+1:])
		}
		among, name = c.subcommands, c.name+" "
	}
	var list []candidate
	if words[0] != "help" {
		list = append(list, candidate{"help", "Show the help of a command."})
	}
	for _, c := range among {
		list = append(list, candidate{strings.TrimPrefix(c.name, name), c.summary})
	}
	return startingWith(current, list)
}

func startingWith(prefix string, list []candidate) []candidate {
	return slices.DeleteFunc(list, func(c candidate) bool {
		return !strings.HasPrefix(c.word, prefix)
	})
}

// complete returns candidates for the last of words, the words after the command's name.
func (c command) complete(words []string) []candidate {
	flags, _ := c.declare()
	current, given := words[len(words)-1], words[:len(words)-1]
	if name, value, ok := strings.Cut(current, "="); ok && strings.HasPrefix(name, "--") {
		if f := flags.Lookup(name[2:]); f != nil {
			return c.completeValue(f, name+"=", value, given)
		}
		return nil
	}
	if len(given) > 0 {
		name, isFlag := strings.CutPrefix(given[len(given)-1], "--")
		if f := flags.Lookup(name); isFlag && f != nil && f.NoOptDefVal == "" {
			return c.completeValue(f, "", current, given)
		}
	}
	var list []candidate
	if !strings.HasPrefix(current, "-") {
		for _, word := range c.arguments {
			list = append(list, candidate{word: word})
		}
	}
	if !strings.HasPrefix(current, "-") && c.files {
		return append(startingWith(current, list), candidate{word: completeFiles})
	}
	flags.VisitAll(func(f *pflag.Flag) {
		once := !strings.HasSuffix(f.Value.Type(), "Slice") && f.Value.Type() != "stringArray"
		if used := slices.ContainsFunc(given, func(word string) bool {
			name, _, _ := strings.Cut(word, "=")
			return flagName(strings.TrimPrefix(name, "--")) == f.Name
		}); used && once {
			return
		}
		_, usage := pflag.UnquoteUsage(f)
		list = append(list, candidate{"--" + f.Name, usage})
	})
	list = append(list, candidate{"--help", "show the help"})
	if dashed := strings.TrimPrefix(current, "--"); strings.Contains(dashed, "-") {
		for i, c := range list { // a dash may stand for an underscore
			list[i].word = strings.ReplaceAll(c.word, "_", "-")
		}
	}
	return startingWith(current, list)
}

// completeValue returns candidates for a flag's value. prefix stands before the value in the word
// to complete. given are the words before.
func (c command) completeValue(f *pflag.Flag, prefix, value string, given []string) []candidate {
	if strings.HasSuffix(f.Value.Type(), "Slice") { // a list: complete its last member
		if i := strings.LastIndex(value, ","); i >= 0 {
			prefix, value = prefix+value[:i+1], value[i+1:]
		}
	}
	var list []candidate
	for _, word := range c.flagValues(f, given) {
		if strings.HasPrefix(word, value) {
			list = append(list, candidate{word: prefix + word})
		}
	}
	if kind, ok := isPath(f); ok {
		paths := completeFiles
		if kind == "folder" && f.Name != "model_path" && f.Name != "tokenizer" { // may be files
			paths = completeFolders
		}
		list = append(list, candidate{word: paths})
	}
	return list
}

// flagValues lists the fixed values that a flag accepts. given are the words before the flag's
// value.
func (c command) flagValues(f *pflag.Flag, given []string) []string {
	if f.NoOptDefVal != "" {
		return []string{"true", "false"}
	}
	switch f.Name {
	case "architecture":
		return architectures()
	case "variant":
		return variants(valueOf("architecture", given))
	case "model_path":
		var names []string
		for _, m := range hub.Models {
			names = append(names, m.Name)
		}
		return names
	case "format":
		var names []string
		for _, format := range checkpoint.Formats {
			names = append(names, format.Name)
		}
		return names
	case "aspect":
		var names []string
		for _, a := range bench.Aspects {
			names = append(names, a.Name)
		}
		return names
	case "compile":
		if c.name == "bench chunks" {
			return []string{"eager", "kernels", "graph", "both"}
		}
	}
	return fixedValues[f.Name]
}

// fixedValues lists the values of flags that accept the same ones in every command.
var fixedValues = map[string][]string{
	"dtype":             {"float32", "bfloat16", "float16"},
	"state_dtype":       {"float32", "bfloat16"},
	"cache_dtype":       {"q8_0"},
	"device":            {"cpu", "cuda"},
	"tokenizer":         {"char_tokenizer"},
	"compile":           {"graph", "none"},
	"recompute":         {"none", "selective", "block"},
	"schedule":          optim.Schedules,
	"optimizer":         optim.Methods,
	"moments":           {"float32", "bfloat16", "int8"},
	"no_decay":          {"norm", "bias", "embedding", "none"},
	"objective":         train.Objectives,
	"on_bad_record":     {"stop", "skip"},
	"distributed":       train.Strategies,
	"reduce_dtype":      {"float32", "same"},
	"checkpoint_format": sourceFormats,
	"save_format":       {train.FormatHF, train.FormatNative},
	"lora_targets":      {lora.AllLinear},
	"lora_init":         {"default", lora.InitPiSSA},
	"pass":              bench.Passes,
	"chunk_size":        {"auto", "16", "32", "64", "128", "256"},
	"chunking": {"default", "default-optimized", "windowed:1", "windowed:1-optimized",
		"independent", "independent-optimized"},
}

func architectures() []string {
	var names []string
	for _, a := range model.Architectures() {
		names = append(names, a.Name)
	}
	return names
}

// variants lists the variants of an architecture, or of all if the name is empty.
func variants(architecture string) []string {
	names := map[string]bool{}
	for _, a := range model.Architectures() {
		if architecture == "" || a.Name == architecture {
			for name := range a.Variants {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// valueOf returns the value that words give to a flag, or "".
func valueOf(flag string, words []string) string {
	for i, word := range words {
		name, value, joined := strings.Cut(word, "=")
		switch {
		case name != "--"+flag:
		case joined:
			return value
		case i+1 < len(words):
			return words[i+1]
		}
	}
	return ""
}
