package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// gathered runs gather on the installed toolchain and returns the contents of the files by name.
func gathered(t *testing.T) (string, map[string]string) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if err := gather(filepath.Join(strings.TrimSpace(string(root)), "src"), out); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	err = filepath.WalkDir(out, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, _ := filepath.Rel(out, path)
		data, err := os.ReadFile(path)
		files[filepath.ToSlash(name)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, files
}

func TestGather_IsRepeatableAndHoldsPackagesOut(t *testing.T) {
	_, files := gathered(t)
	_, again := gathered(t)
	if len(files) != len(again) {
		t.Fatalf("%d files, then %d", len(files), len(again))
	}
	learned := map[string]string{}
	for name, text := range files {
		if again[name] != text {
			t.Errorf("%s differs from one call to the next", name)
		}
		if strings.HasSuffix(name, ".go") {
			t.Errorf("%s looks like a part of this module's packages", name)
		}
		if strings.HasPrefix(name, "train/") {
			learned[text] = name
			for _, pkg := range heldOut {
				if strings.HasPrefix(name, "train/"+pkg+"/") {
					t.Errorf("%s is learned from and held out", name)
				}
			}
		}
	}
	for name, text := range files {
		if twin := learned[text]; strings.HasPrefix(name, "heldout/") && twin != "" {
			t.Errorf("%s has the same text as %s", name, twin)
		}
	}
	for _, name := range watched {
		if name += ".txt"; files["validation/"+name] == "" ||
			files["validation/"+name] != files["heldout/"+name] {
			t.Errorf("%s is not held out to be watched", name)
		}
	}
}

func TestGather_AnswersFollowTheirPrompts(t *testing.T) {
	_, files := gathered(t)
	for file, want := range map[string]struct {
		lengths []int
		each    int
	}{"prompts.json": {promptLengths, promptsPerLength}, "lengths.json": {speedLengths, 1}} {
		var prompts []prompt
		if err := json.Unmarshal([]byte(files[file]), &prompts); err != nil {
			t.Fatal(err)
		}
		lengths := map[int]int{}
		for i, p := range prompts {
			lengths[len(p.Prompt)]++
			found := false
			for name, text := range files {
				found = found || strings.HasPrefix(name, "heldout/") &&
					strings.Contains(text, p.Prompt+p.Answer)
			}
			if !found || len(p.Answer) != answerLength || p.TokenLen != len(p.Prompt) ||
				p.NumChunks != p.TokenLen/chunkSize {
				t.Errorf("%s: prompt %d: found %v, %d characters, %+v", file, i, found,
					len(p.Prompt), p)
			}
		}
		for _, length := range want.lengths {
			if lengths[length] != want.each {
				t.Errorf("%s: %d prompts of %d characters, expected %d", file, lengths[length],
					length, want.each)
			}
		}
	}
}

func TestGather_RefusesOtherFolders(t *testing.T) {
	if err := gather(t.TempDir(), t.TempDir()); err == nil {
		t.Error("an empty folder was taken for the sources of a toolchain")
	}
}
