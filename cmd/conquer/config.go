package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"conquer/internal/settings"
)

// The flags that concern the file of settings are no settings themselves.
var aboutConfig = []string{"config", "print_config"}

func declareConfig(flags *pflag.FlagSet) {
	flags.String("config", "",
		"`file` with values of flags, whose names are its keys (.yaml, .yml or .toml, such as "+
			"those in examples/recipes); flags on the command line override it")
	group(flags, "Settings in a file")
}

// applyConfig gives the flags that the command line does not give the values of the file of
// --config.
func applyConfig(flags *pflag.FlagSet) error {
	path := ""
	if f := flags.Lookup("config"); f == nil || !f.Changed {
		return nil
	} else if err := expandFlag(f); err != nil {
		return err
	} else {
		path = f.Value.String()
	}
	list, err := settings.Read(path)
	if err == nil {
		err = applySettings(flags, path, list)
	}
	var unread *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unread):
		return fmt.Errorf("--config: %w", err)
	}
	return usagef("--config: %w", err)
}

// rivals are pairs of flags of which one may be given: that of the command line counts more than
// the other one in the file.
var rivals = map[string]string{"steps": "epochs", "epochs": "steps",
	"validation_path": "validation_fraction", "validation_fraction": "validation_path"}

// applySettings gives the flags that are not given, and have no rival that is, the values of the
// settings in the file path.
func applySettings(flags *pflag.FlagSet, path string, list []settings.Setting) error {
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name], given[rivals[f.Name]] = true, true })
	for _, s := range list {
		name := flagName(s.Key)
		f := flags.Lookup(name)
		var err error
		switch {
		case slices.Contains(aboutConfig, name):
			err = fmt.Errorf("%s cannot be set in a file: give --%[1]s on the command line", name)
		case f == nil:
			err = fmt.Errorf("unknown key %.60q%s", s.Key, suggestFlag(name, flags))
		case !given[name] && (s.List || len(s.Values) > 0): // null gives nothing
			err = applySetting(flags, f, s)
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w", path, s.Line, err)
		}
	}
	return nil
}

func applySetting(flags *pflag.FlagSet, f *pflag.Flag, s settings.Setting) error {
	var texts []string
	for _, v := range s.Values {
		text, err := settingText(f, v)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		texts = append(texts, text)
	}
	list, many := f.Value.(pflag.SliceValue)
	switch {
	case many:
		if err := flags.Set(f.Name, "0"); err != nil { // it counts as given
			return err
		}
		return list.Replace(texts)
	case s.List:
		return fmt.Errorf("%s: expected one value, found a list", f.Name)
	case f.Value.Type() == "bool" && texts[0] == f.Value.String(): // as if it were not given
		return nil
	}
	if err := flags.Set(f.Name, texts[0]); err != nil {
		return fmt.Errorf("%s: %.60q is not of the type %s%s", f.Name, texts[0], f.Value.Type(),
			map[bool]string{true: ", such as 90s or 10m"}[f.Value.Type() == "duration"])
	}
	return nil
}

// settingText returns the value as the flag's parser takes it.
func settingText(f *pflag.Flag, v settings.Value) (string, error) {
	text := v.Text
	want, fits := settings.Text, v.Kind == settings.Text
	switch kind := f.Value.Type(); {
	case kind == "bool":
		want, fits = settings.Truth, v.Kind == settings.Truth
	case strings.HasPrefix(kind, "int"):
		want, fits = settings.Whole, v.Kind == settings.Whole
	case strings.HasPrefix(kind, "float"):
		want, fits = settings.Real, v.Kind == settings.Whole || v.Kind == settings.Real
	case v.Plain != "": // a name that looks like a number needs no quotes
		text, fits = v.Plain, true
	}
	if !fits {
		return "", fmt.Errorf("expected %s, found %s, %.60q", want, v.Kind, v.Text)
	}
	return text, nil
}

// printConfig writes all flags as the file of settings that gives them these values again. A flag
// that is not given and has no value, or is one of absent, is null: its default then follows from
// the others.
func printConfig(w io.Writer, flags *pflag.FlagSet, absent []string) error {
	var list []settings.Setting
	comments := map[string]string{}
	for _, g := range groups(flags) {
		first := true
		g.flags.VisitAll(func(f *pflag.Flag) {
			if slices.Contains(aboutConfig, f.Name) {
				return
			}
			if first {
				comments[f.Name], first = "# "+g.heading, false
			}
			s := settings.Setting{Key: f.Name}
			if f.Changed || !isEmpty(f) && !slices.Contains(absent, f.Name) {
				s = flagSetting(f)
			}
			list = append(list, s)
		})
	}
	return settings.WriteYAML(w, list, comments)
}

// isEmpty reports whether a flag has the value that stands for none.
func isEmpty(f *pflag.Flag) bool {
	return slices.Contains([]string{"", "0", "-1", "[]", "0s"}, f.Value.String())
}

// flagSetting returns the value of a flag.
func flagSetting(f *pflag.Flag) settings.Setting {
	kind := settings.Text
	switch t := f.Value.Type(); {
	case t == "bool":
		kind = settings.Truth
	case strings.HasPrefix(t, "int"):
		kind = settings.Whole
	case strings.HasPrefix(t, "float"):
		kind = settings.Real
	}
	s := settings.Setting{Key: f.Name}
	texts := []string{f.Value.String()}
	if list, ok := f.Value.(pflag.SliceValue); ok {
		texts, s.List = list.GetSlice(), true
	}
	for _, text := range texts {
		s.Values = append(s.Values, settings.Value{Kind: kind, Text: text})
	}
	return s
}
