package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"conquer/internal/atomicfile"
)

// Save writes the tokenizer into the folder dir, which it creates if necessary.
// transformers' AutoTokenizer, vLLM and llama.cpp's converter load the folder and
// give the same ids. The files that the tokenizer was opened from are copied
// unchanged. A tokenizer from a GGUF file or a tokenizer.model is written as
// tokenizer.json, tokenizer_config.json (with the chat template) and
// special_tokens_map.json. Each write is atomic.
func (t *Tokenizer) Save(dir string) error {
	if err := atomicfile.MkdirAll(dir); err != nil {
		return fmt.Errorf("save tokenizer: %w", err)
	}
	files, err := t.files()
	if err != nil {
		return fmt.Errorf("save tokenizer: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := atomicfile.MkdirAll(filepath.Dir(path)); err != nil {
			return fmt.Errorf("save tokenizer: %w", err)
		}
		if err := atomicfile.WriteBytes(path, f.data); err != nil {
			return fmt.Errorf("save tokenizer: %w", err)
		}
	}
	return nil
}

// Copy copies the files of a tokenizer in the folder from to the folder dir, also if
// Open refuses them. Each write is atomic.
func Copy(from, dir string) error {
	t := &Tokenizer{}
	t.source.collect(from)
	return t.Save(dir)
}

// collect notes the files of a folder that belong to a tokenizer.
func (s *source) collect(folder string) {
	s.folder = folder
	for _, name := range companions {
		if _, err := os.Stat(filepath.Join(folder, name)); err == nil {
			s.files = append(s.files, name)
		}
	}
	templates, _ := filepath.Glob(filepath.Join(globQuote(folder), templateFolder, "*.jinja"))
	for _, path := range templates {
		s.files = append(s.files, filepath.Join(templateFolder, filepath.Base(path)))
	}
}

type savedFile struct {
	name string
	data []byte
}

// files returns the files that Save writes.
func (t *Tokenizer) files() (files []savedFile, err error) {
	for _, name := range t.source.files {
		data, err := readFile(filepath.Join(t.source.folder, name), maxFile)
		if err != nil {
			return nil, err
		}
		files = append(files, savedFile{name, data})
	}
	if t.source.spec == nil {
		return files, nil
	}
	// This class uses tokenizer.json unchanged. The classes named after models
	// replace its normalizer and pre-tokenizer.
	config := map[string]any{
		"tokenizer_class":              "PreTrainedTokenizerFast",
		"clean_up_tokenization_spaces": false,
		"model_max_length":             int64(1e18),
	}
	special := map[string]any{}
	for role, token := range t.names {
		config[role], special[role] = token, token
	}
	if t.template.source != "" {
		config["chat_template"] = t.template.source
	}
	if names := t.templateNames(); len(names) > 0 {
		templates := []map[string]string{}
		if t.template.source != "" {
			names = append([]string{defaultTemplate}, names...)
		}
		for _, name := range names {
			templates = append(templates,
				map[string]string{"name": name, "template": t.ChatTemplates()[name]})
		}
		config["chat_template"] = templates
	}
	for _, f := range []struct {
		name string
		data any
	}{{"tokenizer.json", t.source.spec}, {"tokenizer_config.json", config},
		{"special_tokens_map.json", special}} {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(f.data); err != nil {
			return nil, err
		}
		files = append(files, savedFile{f.name, b.Bytes()})
	}
	return files, nil
}
