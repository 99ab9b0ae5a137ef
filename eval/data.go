package eval

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"

	"conquer/model/hub"
	"conquer/text/dataset"
)

// dataConfig says where a task's documents are.
type dataConfig struct {
	path, name string              // dataset_path and dataset_name
	files      map[string][]string // dataset_kwargs.data_files by split
	folder     string              // of the task's file, for relative paths
}

// dataSuffixes are the suffixes of files of records, the preferred ones first.
var dataSuffixes = []string{".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson",
	".json"}

// splitWords lists other names of a split, which count where no file has its own.
var splitWords = map[string][]string{
	"train":      {"training"},
	"validation": {"valid", "val", "dev"},
	"dev":        {"validation", "valid", "val"},
	"test":       {"testing", "eval", "evaluation"},
}

// load reads the documents of a split. override, if not "", is a folder or a file that is read
// instead of the task's own data.
func (d dataConfig) load(ctx context.Context, split, override string,
	progress func(done, total int64)) ([]document, error) {
	files, err := d.find(ctx, split, override, progress)
	if err != nil {
		return nil, err
	}
	var documents []document
	for _, file := range files {
		err := dataset.Rows(file, func(row json.RawMessage, where string) error {
			doc, err := newDocument(row, where)
			documents = append(documents, doc)
			if err == nil {
				err = ctx.Err()
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if len(documents) == 0 {
		return nil, fmt.Errorf("%s: the split %q has no documents", strings.Join(files, ", "),
			split)
	}
	return documents, complete(documents)
}

// find returns the files of a split.
func (d dataConfig) find(ctx context.Context, split, override string,
	progress func(done, total int64)) ([]string, error) {
	if override != "" {
		return d.local(override, split)
	}
	if d.files != nil {
		names, ok := d.files[split]
		if !ok {
			return nil, fmt.Errorf("dataset_kwargs.data_files names no file of the split %q", split)
		}
		return d.given(names)
	}
	for _, folder := range []string{filepath.Join(d.folder, d.path), d.path} {
		if info, err := os.Stat(folder); err == nil && (info.IsDir() || isData(folder)) {
			return d.local(folder, split)
		}
	}
	return d.fetch(ctx, split, progress)
}

// given returns the files that data_files names: relative to the task's file, else to the current
// folder. A name may have wildcards.
func (d dataConfig) given(names []string) (files []string, err error) {
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join(d.folder, name))
		if filepath.IsAbs(name) || err == nil && len(found) == 0 {
			found, err = filepath.Glob(name)
		}
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("dataset_kwargs.data_files: there is no file %s", name)
		}
		files = append(files, found...)
	}
	return files, nil
}

// local returns the files of a split in a folder, or the file itself.
func (d dataConfig) local(root, split string) ([]string, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{root}, nil
	}
	var names []string
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(root, name)
		names = append(names, filepath.ToSlash(relative))
		return err
	})
	if err != nil {
		return nil, err
	}
	chosen, err := d.choose(names, split)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	for i, name := range chosen {
		chosen[i] = filepath.Join(root, filepath.FromSlash(name))
	}
	return chosen, nil
}

var errNoCard = errors.New("the repository has no README.md")

// fetch downloads the files of a split from the hub.
func (d dataConfig) fetch(ctx context.Context, split string, progress func(done, total int64)) (
	[]string, error) {
	name := strings.TrimPrefix(strings.TrimPrefix(d.path, hub.DataScheme), hub.Scheme)
	repo, err := hub.Parse("datasets", hub.Scheme+name)
	if err != nil || repo.File != "" {
		return nil, fmt.Errorf("dataset_path %.120q is neither a folder here nor "+
			"organization/name on the hub", d.path)
	}
	dir, err := repo.Snapshot(ctx, func(all []string) ([]string, error) {
		if slices.Contains(all, "README.md") {
			return []string{"README.md"}, nil
		}
		return nil, errNoCard
	}, nil)
	var patterns []string
	if err == nil {
		var card []byte
		if card, err = os.ReadFile(filepath.Join(dir, "README.md")); err == nil {
			patterns = cardFiles(card, d.name, split)
		}
	}
	if err != nil && !errors.Is(err, errNoCard) {
		return nil, fmt.Errorf("%s: %w", d.path, err)
	}
	var chosen []string
	dir, err = repo.Snapshot(ctx, func(all []string) ([]string, error) {
		chosen = nil
		for _, name := range all {
			if slices.ContainsFunc(patterns, func(pattern string) bool {
				ok, _ := path.Match(pattern, name)
				return ok
			}) {
				chosen = append(chosen, name)
			}
		}
		var err error
		if len(chosen) == 0 {
			chosen, err = d.choose(all, split)
		}
		return chosen, err
	}, progress)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.path, err)
	}
	for i, name := range chosen {
		chosen[i] = filepath.Join(dir, filepath.FromSlash(name))
	}
	return chosen, nil
}

// cardFiles returns the patterns of a split's files that a data set's README names.
func cardFiles(card []byte, config, split string) (patterns []string) {
	_, rest, ok := strings.Cut(string(card), "---\n")
	header, _, closed := strings.Cut(rest, "\n---")
	if !ok || !closed {
		return nil
	}
	var front struct {
		Configs []struct {
			Name  string    `yaml:"config_name"`
			Files yaml.Node `yaml:"data_files"`
		}
	}
	if yaml.Unmarshal([]byte(header), &front) != nil {
		return nil
	}
	for _, c := range front.Configs {
		if c.Name != config && !(config == "" && (c.Name == "default" || len(front.Configs) == 1)) {
			continue
		}
		var list []struct {
			Split string
			Path  yaml.Node
		}
		if c.Files.Decode(&list) != nil {
			continue
		}
		for _, entry := range list {
			if entry.Split != split {
				continue
			}
			var paths []string
			if entry.Path.Decode(&paths) != nil {
				paths = []string{entry.Path.Value}
			}
			patterns = append(patterns, paths...)
		}
	}
	return patterns
}

func isData(name string) bool {
	return slices.ContainsFunc(dataSuffixes, func(suffix string) bool {
		return strings.HasSuffix(strings.ToLower(name), suffix)
	})
}

// choose returns the names, which have slashes, of the files of a split: those in the folder that
// dataset_name names, if there is one, whose names hold the split's as a word.
func (d dataConfig) choose(names []string, split string) ([]string, error) {
	matching := func(from []string, match func(name string) bool) (list []string) {
		for _, name := range from {
			if match(name) {
				list = append(list, name)
			}
		}
		return list
	}
	data := matching(names, isData)
	if d.name != "" {
		if own := matching(data, func(name string) bool {
			return slices.Contains(strings.Split(path.Dir(name), "/"), d.name)
		}); len(own) > 0 {
			data = own
		}
	}
	for _, word := range append([]string{split}, splitWords[split]...) {
		for _, suffix := range dataSuffixes {
			found := matching(data, func(name string) bool {
				return strings.HasSuffix(strings.ToLower(name), suffix) && hasWord(name, word)
			})
			if len(found) > 0 {
				slices.Sort(found)
				return found, nil
			}
		}
	}
	return nil, fmt.Errorf("there is no file of the split %q among %s, such as %s.jsonl or "+
		"%[1]s-00000-of-00001.parquet; files of records are .jsonl, .json, .parquet and .arrow",
		split, dataset.Count(len(names), "file"), split)
}

// hasWord reports whether the name of a file, or else of its folder, has a word.
func hasWord(name, word string) bool {
	words := func(s string) []string {
		return strings.FieldsFunc(strings.ToLower(s), func(c rune) bool {
			return !unicode.IsLetter(c) && !(c == '_' && strings.Contains(word, "_"))
		})
	}
	return slices.Contains(words(path.Base(name)), strings.ToLower(word)) ||
		slices.Contains(strings.Split(strings.ToLower(path.Dir(name)), "/"), strings.ToLower(word))
}
