package state

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"conquer/text/dataset"
)

// aState is a state that check accepts, as JSON.
func aState(t testing.TB, step int) string {
	t.Helper()
	text, err := json.Marshal(State{Step: step, Taken: step - 1, Validated: -1,
		Data:     dataset.State{Epoch: 1, Index: 4},
		Identity: Identity{Settings: json.RawMessage(`{"batch_size":4}`)}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestState_RefusesImpossibleValues(t *testing.T) {
	const name = "step-00000005"
	good := aState(t, 5)
	if _, err := parse(name, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for old, c := range map[string][2]string{
		`"step":5`:             {`"step":-5`, "step -5"},
		`{"step":5`:            {`{"step":6`, "step 6, expected that of the folder"},
		`"optimizer_steps":4`:  {`"optimizer_steps":6`, "6 steps of the optimizer"},
		`"validated":-1`:       {`"validated":9`, "a validation after step 9"},
		`"validated":-1,`:      {`"validated":-2,`, "a validation after step -2"},
		`"epoch":1`:            {`"epoch":900`, "epoch 900"},
		`"index":4`:            {`"index":-4`, "position -4"},
		`"index":4}`:           {`"index":4.5}`, "cannot unmarshal number 4.5"},
		`"step":5,`:            {`"step":"5",`, "cannot unmarshal string"},
		`"step":5,"opt`:        {`"step":5,"step":5,"opt`, `"step" is there twice`},
		`"step":5,"optimizer`:  {`"step":5,"Step":7,"optimizer`, `"Step" is there twice`},
		`"batch_size":4`:       {`"batch_size":4,"batch_size":8`, `"batch_size" is there twice`},
		`"step":5,"optimizer_`: {`"steps":5,"optimizer_`, `unknown field "steps"`},
		`"validated":`:         {`"began":"2026-13-01T00:00:00Z","validated":`, "month"},
		`"index":4}`[:9]:       {`"index":1e99`, "cannot unmarshal"},
		good:                   {good + "{}", "more text"},
		good[len(good)-1:]:     {"", "EOF"},
	} {
		text := strings.Replace(good, old, c[0], 1)
		if old == "}" {
			text = good[:len(good)-1]
		}
		if text == good {
			t.Fatalf("%s is not in %s", old, good)
		}
		if _, err := parse(name, []byte(text)); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s gave %v, want an error with %q", c[0], err, c[1])
		}
	}
}

// write makes the checkpoint after a step in a folder.
func write(t testing.TB, f Folder, step int) {
	t.Helper()
	dir := f.Step(step)
	if err := os.MkdirAll(filepath.Join(dir, "optimizer"), 0o777); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"model": "weights", "optimizer/o": "moments",
		file: aState(t, step)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteSums(dir); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(step); err != nil {
		t.Fatal(err)
	}
}

// Each byte of each file of a checkpoint is flipped in turn: it is refused, with the checkpoint to
// resume from instead.
func TestFolder_RefusesEveryFlippedByte(t *testing.T) {
	f := Folder{Path: t.TempDir(), Keep: 2}
	write(t, f, 4)
	write(t, f, 8)
	verify := func() error {
		dir, _, err := f.Latest()
		if err != nil {
			return err
		}
		if err := Verify(dir); err != nil {
			return f.Damaged(dir, err)
		}
		return nil
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	tried := 0
	files := []string{"latest"}
	for _, name := range []string{"model", "optimizer/o", file, sumsFile} {
		files = append(files, filepath.Join(filepath.Base(f.Step(8)), name))
	}
	for _, name := range files {
		path := filepath.Join(f.Path, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range whole {
			flipped := bytes.Clone(whole)
			flipped[i] ^= 1 << (i % 8)
			if _, err := f.WriteAt(flipped[i:i+1], int64(i)); err != nil {
				t.Fatal(err)
			}
			tried++
			harmless := filepath.Base(name) == sumsFile // white space, and the upper case of a key
			const remedy = "is intact: to resume from it"
			err := verify()
			accepted := err == nil && harmless && sameJSON(whole, flipped)
			if !accepted && (err == nil || !strings.Contains(err.Error(), remedy)) {
				t.Fatalf("byte %d of %s was flipped, and the error is %v", i, name, err)
			}
			if _, err := f.WriteAt([]byte{b}, int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	t.Logf("%d bytes were flipped", tried)
}

func sameJSON(a, b []byte) bool {
	one, err := parseSums(a)
	two, err2 := parseSums(b)
	x, _ := json.Marshal(one)
	y, _ := json.Marshal(two)
	return err == nil && err2 == nil && string(x) == string(y)
}

func TestFolder_NamesTheCheckpointBefore(t *testing.T) {
	f := Folder{Path: t.TempDir(), Keep: 3}
	for step := 4; step <= 12; step += 4 {
		write(t, f, step)
	}
	os.WriteFile(filepath.Join(f.Step(8), "model"), []byte("weighty"), 0o666)
	os.Remove(filepath.Join(f.Step(12), "model"))
	dir, _, err := f.Latest()
	if err != nil || dir != f.Step(12) {
		t.Fatalf("%s, %v", dir, err)
	}
	err = f.Damaged(dir, Verify(dir))
	for _, want := range []string{"step-00000012/model is missing", "step-00000004 is intact",
		filepath.Join(f.Path, latestFile)} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	os.RemoveAll(f.Step(4))
	if err := f.Damaged(dir, Verify(dir)); !strings.Contains(err.Error(), "start again") {
		t.Errorf("without another checkpoint, the error is %v", err)
	}
	os.RemoveAll(f.Step(12))
	if _, _, err := f.Latest(); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("a pointer to nothing gave %v", err)
	}
}

func TestLock_KeepsLinksAndFilledFolders(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"linked", "filled/file"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	link, filled, empty := filepath.Join(dir, "link"), filepath.Join(dir, "filled"),
		filepath.Join(dir, "new", "empty")
	if err := os.Symlink(filepath.Join(dir, "linked"), link); err != nil {
		t.Fatal(err)
	}
	l, err := NewLock(link, filled, empty)
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	for _, path := range []string{link, filled, filepath.Join(filled, "file")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(empty); err == nil {
		t.Errorf("the empty folder %s is left", empty)
	}
}

func TestFolder_RefusesFilesThatDoNotEnd(t *testing.T) {
	for _, name := range []string{latestFile, "step-00000002/" + file,
		"step-00000002/" + sumsFile} {
		for kind, replace := range map[string]func(path string) error{
			"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o666) },
			"device":    func(path string) error { return os.Symlink("/dev/zero", path) },
			"bytes":     func(path string) error { return os.WriteFile(path, nil, 0o666) },
			"directory": func(path string) error { return os.Mkdir(path, 0o777) },
		} {
			f := Folder{Path: t.TempDir(), Keep: 2}
			write(t, f, 2)
			path := filepath.Join(f.Path, name)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			err := replace(path)
			if kind == "bytes" && err == nil {
				err = os.Truncate(path, 1<<40)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := f.Latest(); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s as %s: error %v", name, kind, err)
			}
		}
	}
}

// A run was killed between its first checkpoint and the pointer to it.
func TestFolder_FindsACheckpointWithoutPointer(t *testing.T) {
	f := Folder{Path: t.TempDir(), Keep: 2}
	write(t, f, 4)
	os.Remove(filepath.Join(f.Path, latestFile))
	if dir, s, err := f.Latest(); err != nil || dir != f.Step(4) || s.Step != 4 {
		t.Errorf("%s, step %d, %v", dir, s.Step, err)
	}
	if err := f.Clear(); err != nil {
		t.Fatal(err)
	}
	if dir, _, err := f.Latest(); err != nil || dir != "" {
		t.Errorf("after Clear: %s, %v", dir, err)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(aState(f, 5)))
	f.Add([]byte(`{"step":5,"data":{"epoch":1,"index":0},"settings":[[]]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parse("step-00000005", text)
		if err != nil {
			return
		}
		if s.Step != 5 || s.Taken < 0 || s.Taken > 5 || s.Data.Epoch < 0 || s.Data.Index < 0 {
			t.Errorf("%q is %+v", text, s)
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parse("step-00000005", again); err != nil {
			t.Errorf("%q was written as %q, which gives %v", text, again, err)
		}
	})
}

func FuzzSums(f *testing.F) {
	f.Add([]byte(`{"version":1,"files":{"state.json":{"bytes":1,"crc32c":2}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := parseSums(text)
		if err != nil {
			return
		}
		for name, s := range list.Files {
			if s.Bytes < 0 || !filepath.IsLocal(name) {
				t.Errorf("%q lists %q with %+v", text, name, s)
			}
		}
	})
}
