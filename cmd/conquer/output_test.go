package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"conquer/lora"
	"conquer/text/tokenizer"
)

// listing returns the names in a folder.
func listing(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A second run never destroys a first. With --overwrite, its result replaces all files of the
// first's, whatever kind they are, and no file of the user.
func TestTrain_ReplacesAWholeResultOrNothing(t *testing.T) {
	base := writeModel(t, 704, true)
	out := filepath.Join(t.TempDir(), "out")
	adapter, full := []string{"--lora_rank", "4"}, []string{}
	mustTune(t, base, out, adapter...)
	own := filepath.Join(out, "notes.txt")
	os.WriteFile(own, []byte("mine"), 0o666)
	for i, kind := range [][]string{full, adapter, append(adapter, "--merge"), adapter} {
		before := listing(t, out)
		for _, more := range [][]string{{}, {"--resume"}} {
			stderr, code := tune(t, base, out, append(kind, more...)...)
			if code != 1 || !strings.Contains(stderr, "--overwrite") ||
				!slices.Equal(listing(t, out), before) {
				t.Fatalf("%d: exit %d, %v: %s", i, code, listing(t, out), stderr)
			}
		}
		mustTune(t, base, out, append(kind, "--overwrite")...)
		want := []string{"config.json", "generation_config.json", "loss.png", "metrics.jsonl",
			"model.safetensors", "notes.txt", "tokenizer.json", "tokenizer_config.json"}
		if kind = append(kind, ""); kind[0] != "" && !slices.Contains(kind, "--merge") {
			want = []string{"adapter_config.json", "adapter_model.safetensors",
				"generation_config.json", "loss.png", "metrics.jsonl", "notes.txt"}
		}
		if got := listing(t, out); !slices.Equal(got, want) {
			t.Errorf("%d: the folder holds %v, want %v", i, got, want)
		}
	}
	// An export replaces an adapter too.
	if _, stderr, code := invoke(t, "", "export", "--model_path", base, "--output_path",
		out); code != 1 || !strings.Contains(stderr, "--overwrite") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	succeed(t, "export", "--model_path", base, "--output_path", out, "--overwrite")
	if lora.IsAdapter(out) || !sameTensors(t, base, out) {
		t.Errorf("the folder holds %v", listing(t, out))
	}
}

// Checkpoints of a run are continued or replaced as a whole.
func TestTrain_OverwriteStartsAgain(t *testing.T) {
	base := writeModel(t, 704, true)
	out := filepath.Join(t.TempDir(), "out")
	mustTune(t, base, out, "--checkpoint_steps", "1", "--keep", "9", "--steps", "4")
	if stderr, code := tune(t, base, out, "--steps", "3"); code != 1 ||
		!strings.Contains(stderr, "--resume") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	mustTune(t, base, out, "--checkpoint_steps", "1", "--resume", "--steps", "4")
	mustTune(t, base, out, "--checkpoint_steps", "1", "--overwrite", "--steps", "3", "--keep", "9")
	if got := listing(t, filepath.Join(out, "checkpoints")); !slices.Equal(got,
		[]string{"latest", "step-00000001", "step-00000002"}) {
		t.Errorf("the checkpoints are %v", got)
	}
}

// A run that has ended continues with more steps. Its result is that of the lowest validation loss.
func TestTrain_ContinuesAfterItsEnd(t *testing.T) {
	base := writeModel(t, 704, true)
	out := filepath.Join(t.TempDir(), "out")
	flags := []string{"--save_at_end", "--keep_best", "--keep", "1", "--validation_fraction", "1",
		"--validate_steps", "1", "--schedule", "constant", "--learning_rate", "1e-3"}
	mustTune(t, base, out, append(flags, "--steps", "2")...)
	stderr, code := tune(t, base, out, append(flags, "--steps", "4", "--resume")...)
	if code != 0 || !strings.Contains(stderr, "step 3/4") || strings.Contains(stderr, "step 2/4") ||
		!strings.Contains(stderr, "the result has the weights after step 4") {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	best := filepath.Join(out, "checkpoints", "step-00000004")
	if !sameTensors(t, out, best) {
		t.Error("the result is not the best checkpoint")
	}
	stderr, code = tune(t, base, out, append(flags, "--steps", "3", "--resume")...)
	if code != 1 || !strings.Contains(stderr, "give more steps") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	stderr, code = tune(t, base, out, append(flags, "--steps", "9", "--resume", "--batch_size",
		"1")...)
	if code != 1 || !strings.Contains(stderr, "batch_size 2 (now 1)") ||
		!strings.Contains(stderr, "only the number of steps or epochs, the validation data") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// Checkpoints elsewhere do not show whose result is in the output folder.
func TestTrain_ResumeReplacesNoOtherRunsResult(t *testing.T) {
	base := writeModel(t, 704, true)
	work := t.TempDir()
	one, two := filepath.Join(work, "one"), filepath.Join(work, "two")
	flags := []string{"--checkpoint_path", filepath.Join(work, "saved"), "--save_at_end"}
	mustTune(t, base, one, flags...)
	mustTune(t, base, two, "--lora_rank", "2")
	before := listing(t, two)
	stderr, code := tune(t, base, two, append(flags, "--resume")...)
	if code != 1 || !strings.Contains(stderr, two+" holds a result") ||
		!strings.Contains(stderr, "--overwrite") || !slices.Equal(listing(t, two), before) {
		t.Errorf("exit %d, %v: %s", code, listing(t, two), stderr)
	}
	mustTune(t, base, two, append(flags, "--resume", "--overwrite", "--steps", "3")...)
	if lora.IsAdapter(two) {
		t.Errorf("the folder holds %v", listing(t, two))
	}
}

// A run for which the disk is too small does not begin.
func TestTrain_ComparesTheDiskBeforeItBegins(t *testing.T) {
	base := writeModel(t, 704, true)
	info, err := os.Stat(filepath.Join(base, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	disk := t.TempDir() // with room for the result, but not for its checkpoint
	size := fmt.Sprintf("size=%d", 2*info.Size())
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, size); err != nil {
		t.Skip("needs a small file system: ", err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	out := filepath.Join(disk, "out")
	stderr, code := tune(t, base, out, "--save_at_end")
	if code != 1 || !strings.Contains(stderr, out+" has 0.00") ||
		!strings.Contains(stderr, "of free space, and the run needs") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(out, "checkpoints")); err == nil {
		t.Error("the run has begun")
	}
	stderr, code = tune(t, base, out)
	if code != 0 || !strings.Contains(stderr, "if the run is stopped, its checkpoint will not") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// template sets the chat template, and the end-of-text token, of a model's folder.
func template(t *testing.T, dir, template, eos string) {
	t.Helper()
	path := filepath.Join(dir, "tokenizer_config.json")
	text, err := os.ReadFile(path)
	config := map[string]any{}
	if err == nil {
		err = json.Unmarshal(text, &config)
	}
	config["chat_template"], config["eos_token"] = template, eos
	if text, _ = json.Marshal(config); err == nil {
		err = os.WriteFile(path, text, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
}

const chatML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" +
	"{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

// The token that ends the turns of the data ends generation, in the result, in an adapter, and in
// the GGUF file made of either.
func TestTrain_TurnEndsEndGeneration(t *testing.T) {
	base := writeModel(t, 704, true)
	template(t, base, chatML, "<|endoftext|>")
	const endOfText, turnEnd = 0, 2
	ends := func(path string) []int32 {
		return decode[modelInfo](t, succeed(t, "info", "--json", path)).Tokenizer.EOS
	}
	if got := ends(base); !slices.Equal(got, []int32{endOfText}) {
		t.Fatalf("the base ends with %v", got)
	}
	work := t.TempDir()
	for name, more := range map[string][]string{
		"full": nil, "adapter": {"--lora_rank", "2"}, "merged": {"--lora_rank", "2", "--merge"},
	} {
		out := filepath.Join(work, name)
		mustTune(t, base, out, more...)
		text, err := os.ReadFile(filepath.Join(out, "generation_config.json"))
		var generation struct {
			EOS tokenizer.IDs `json:"eos_token_id"`
		}
		if err == nil {
			err = json.Unmarshal(text, &generation)
		}
		if err != nil || !slices.Contains(generation.EOS, turnEnd) ||
			strings.Contains(string(text), "_from_model_config") {
			t.Errorf("%s: %v, %s", name, err, text)
		}
		gguf := filepath.Join(work, name+".gguf")
		succeed(t, "export", "--model_path", out, "--output_path", gguf)
		for _, path := range []string{out, gguf} {
			if got := ends(path); !slices.Equal(got, []int32{endOfText, turnEnd}) {
				t.Errorf("%s ends with %v", path, got)
			}
		}
	}
	// Texts have no turns.
	plain := filepath.Join(work, "plain.txt")
	os.WriteFile(plain, []byte("hello there\n"), 0o666)
	out := filepath.Join(work, "text")
	if _, stderr, code := invoke(t, "", "train", "--model_path", base, "--data_path", plain,
		"--output_path", out, "--steps", "1", "--checkpoint_steps", "0"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if got := ends(out); slices.Contains(got, turnEnd) {
		t.Errorf("a model tuned on texts ends with %v", got)
	}
}

// A resumed run renders its data with the time at which the run began.
func TestTrain_ResumesWithTheTimeOfTheRun(t *testing.T) {
	base := writeModel(t, 704, true)
	template(t, base, "{{ strftime_now('%H %M %S %f') }}"+chatML, "<|im_end|>")
	out := filepath.Join(t.TempDir(), "out")
	mustTune(t, base, out, "--checkpoint_steps", "1")
	if stderr, code := tune(t, base, out, "--resume"); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// /proc takes no files, although its permissions let root write.
func TestOutput_IsTestedByWriting(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "a", "b"): "", "/proc/a/b": "cannot write to /proc",
		filepath.Join(dir, "file", "a"): "is a file", "/dev/null": "is a file",
	} {
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o666)
		if err := checkFolder(path); err == nil && want != "" ||
			err != nil && (want == "" || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s gave %v, want %q", path, err, want)
		}
	}
	if names := listing(t, dir); !slices.Equal(names, []string{"file"}) {
		t.Errorf("the folder holds %v", names)
	}
	for _, args := range [][]string{
		{"train", "--model_path", dir, "--data_path", dir, "--output_path", "/proc/a"},
		{"export", "--model_path", dir, "--output_path", "/proc/a"},
		{"export", "--model_path", dir, "--output_path", "/proc/a.gguf"},
	} {
		if _, stderr, code := invoke(t, "", args...); code != 1 ||
			!strings.Contains(stderr, "cannot write to /proc") {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
}
