package dataset

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
)

// Chosen says which files of a folder, an archive or a repository are read.
type Chosen struct {
	Files   []string // to learn from, or to validate with
	HeldOut []string // files of other splits: validation and test files
	Skipped []string // files without data, such as README.md
}

// The words in the names of files and folders that name a split, as in datasets.
var splitWords = map[string]string{
	"train": "train", "training": "train",
	"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
	"test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}

// The extensions of files whose names may name a split. Others, such as training.md, are named
// after what they are about.
var splitFormats = []string{".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow",
	".txt"}

// splitOf returns the split that a file belongs to by its name, or else by the
// folders it is in: "train", "validation", "test" or "".
func splitOf(name string) string {
	parts := strings.Split(strings.ToLower(name), "/")
	if !slices.Contains(splitFormats, extension(name)) {
		parts = parts[:len(parts)-1]
	}
	for _, part := range slices.Backward(parts) {
		found := ""
		for _, word := range strings.FieldsFunc(part,
			func(c rune) bool { return !unicode.IsLetter(c) }) {
			if split := splitWords[word]; split != "" && found == "" {
				found = split
			}
		}
		if found != "" {
			return found
		}
	}
	return ""
}

// Choose chooses files of a folder by their names, which are relative to it and
// have slashes. Files that name the split train are learned from, or else those
// that name none; validation and test files never are. If validation is set, the
// files of the split validation are chosen, or else of test, or else all.
//
// A README, a license and the descriptions that datasets writes are never chosen.
// Beside Parquet and Arrow files, all other files are skipped.
func Choose(names []string, validation bool) (c Chosen, err error) {
	columns := false
	for _, name := range names {
		columns = columns || isColumns(name) && !isDescription(name)
	}
	splits := map[string][]string{}
	data := 0
	for _, name := range names {
		if isDescription(name) || columns && !isColumns(name) {
			c.Skipped = append(c.Skipped, name)
			continue
		}
		split := splitOf(name)
		splits[split] = append(splits[split], name)
		data++
	}
	order := []string{"train", ""}
	if validation {
		order = []string{"validation", "test", "", "train"}
	}
	for _, split := range order {
		if len(splits[split]) > 0 {
			c.Files = splits[split]
			break
		}
	}
	if c.Files == nil && data > 0 {
		return c, fmt.Errorf("it holds only files for validation and tests (%s): give the path "+
			"of a file to read it all the same", strings.Join(names[:min(len(names), 5)], ", "))
	}
	if c.Files == nil && len(names) > 0 {
		return c, errors.New("it holds no data, " +
			"only " + strings.Join(names[:min(len(names), 5)], ", "))
	}
	if len(names) == 0 {
		return c, errors.New("it holds no files")
	}
	placed := map[string]bool{} // there may be tens of thousands
	for _, name := range slices.Concat(c.Files, c.Skipped) {
		placed[name] = true
	}
	for _, name := range names {
		if placed[name] {
			continue
		}
		if split := splitOf(name); split == "validation" || split == "test" {
			c.HeldOut = append(c.HeldOut, name)
		} else {
			c.Skipped = append(c.Skipped, name)
		}
	}
	return c, nil
}

// isDescription reports whether a file of this name describes data.
func isDescription(name string) bool {
	base := strings.ToLower(path.Base(name))
	switch base {
	case "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json":
		return true
	}
	stem, _, _ := strings.Cut(base, ".")
	return slices.Contains([]string{"readme", "license", "licence", "notice", "copying", "citation",
		"changelog"}, stem) || strings.HasPrefix(base, "cache-") && strings.HasSuffix(base,
		".arrow")
}

// SplitFiles returns [Choose] as a function from names to the chosen files and those of other
// splits. It returns none, without an error, for names of which none is a data file.
func SplitFiles(validation bool) func(names []string) (files, heldOut []string, err error) {
	return func(names []string) (files, heldOut []string, err error) {
		c, err := Choose(names, validation)
		if err != nil && len(c.Skipped) == len(names) {
			return nil, nil, nil
		}
		return c.Files, c.HeldOut, err
	}
}
