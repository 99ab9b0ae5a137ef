package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// evalTask writes a task over data of its own and returns the path of its file.
func evalTask(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"pets.yaml": "task: pets\ndataset_path: json\ndataset_kwargs:\n  data_files: " +
			"{train: train.jsonl, test: test.jsonl}\noutput_type: multiple_choice\n" +
			"training_split: train\ntest_split: test\ndoc_to_text: \"{{sound}}:\"\n" +
			"doc_to_choice: [cat, dog]\ndoc_to_target: label\n",
		"train.jsonl": "{\"sound\": \"purr\", \"label\": 0}\n" +
			"{\"sound\": \"growl\", \"label\": 1}\n",
		"test.jsonl": "{\"sound\": \"meow\", \"label\": 0}\n{\"sound\": \"bark\", \"label\": 1}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "pets.yaml")
}

func TestEval_PrintsATableAndWritesLMEvalsLayout(t *testing.T) {
	dir, task := writeModel(t, 700, true), evalTask(t)
	out := filepath.Join(t.TempDir(), "new", "out.json")
	table := succeed(t, "eval", "--model_path", dir, "--tasks", task, "--num_fewshot", "1",
		"--log_samples", "--output_path", out)
	for _, want := range []string{"pets", "acc_norm", "standard error"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var results struct {
		Results map[string]map[string]any
		Shots   map[string]int `json:"n-shot"`
		Samples map[string][]struct {
			Arguments [][]string
			Acc       float64
		}
	}
	if err := json.Unmarshal(data, &results); err != nil {
		t.Fatal(err)
	}
	samples := results.Samples["pets"]
	if len(samples) != 2 || results.Shots["pets"] != 1 {
		t.Fatalf("got %s", data)
	}
	mean := (samples[0].Acc + samples[1].Acc) / 2
	if results.Results["pets"]["acc,none"] != mean {
		t.Errorf("acc is %v, its mean %v", results.Results["pets"]["acc,none"], mean)
	}
	if prompt := samples[0].Arguments[0][0]; !strings.HasSuffix(prompt, "\n\nmeow:") {
		t.Errorf("the prompt is %q", prompt)
	}
	var printed map[string]any
	text := succeed(t, "eval", "--model_path", dir, "--tasks", task, "--json", "--limit", "0.5")
	if err := json.Unmarshal([]byte(text), &printed); err != nil || printed["samples"] != nil {
		t.Errorf("%v in %s", err, text)
	}
}

func TestEval_MistakesAreNamed(t *testing.T) {
	dir, task := writeModel(t, 700, true), evalTask(t)
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(broken, []byte("task: x\ndoc_to_txt: y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no tasks":     {nil, 2, "--tasks"},
		"unknown task": {[]string{"--tasks", "hellaswga"}, 1, "hellaswag"},
		"unknown key":  {[]string{"--tasks", broken}, 1, "broken.yaml:"},
		"limit":        {[]string{"--tasks", task, "--limit", "1.5"}, 2, "--limit"},
		"data":         {[]string{"--tasks", task, "--data", "dogs=/x"}, 2, "dogs"},
		"data form":    {[]string{"--tasks", task, "--data", "pets"}, 2, "TASK=PATH"},
		"no split":     {[]string{"--tasks", task, "--data", "pets:test=/nowhere"}, 1, "/nowhere"},
		"examples":     {[]string{"--tasks", task, "--num_fewshot", "9"}, 1, "--num_fewshot"},
		"generation": {[]string{"--tasks", "gsm8k", "--data", "gsm8k=" + filepath.Dir(task),
			"--gen_kwargs", "beams=3"}, 1, "beams"},
	} {
		args := append([]string{"eval", "--model_path", dir}, c.args...)
		_, stderr, code := invoke(t, "", args...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit %d, %s", name, code, stderr)
		}
	}
}

func TestEval_ComparesRunsAndStrategies(t *testing.T) {
	dir, task := writeModel(t, 700, true), evalTask(t)
	out := filepath.Join(t.TempDir(), "a.json")
	succeed(t, "eval", "--model_path", dir, "--tasks", task, "--log_samples", "--output_path", out)
	table := succeed(t, "eval", "--model_path", dir, "--tasks", task, "--compare", out)
	if !strings.Contains(table, "+0.0000 to +0.0000") {
		t.Errorf("a run differs from itself:\n%s", table)
	}
	var compared struct {
		Comparison []struct{ P, Difference float64 }
	}
	text := succeed(t, "eval", "--model_path", dir, "--tasks", task, "--compare", out, "--json")
	if err := json.Unmarshal([]byte(text), &compared); err != nil ||
		len(compared.Comparison) != 2 || compared.Comparison[0].P != 1 {
		t.Errorf("%v in %s", err, text)
	}
	bamba := writeBamba(t)
	table = succeed(t, "eval", "--model_path", bamba, "--tokenizer", "char_tokenizer", "--tasks",
		task, "--chunking", "default-optimized,independent-optimized")
	if !strings.Contains(table, "default-optimized") || !strings.Contains(table, "independent") {
		t.Errorf("the table is\n%s", table)
	}
	for name, args := range map[string][]string{
		"state-space": {"--model_path", dir, "--chunking", "independent"},
		"exclude":     {"--model_path", dir, "--chunking", "independent", "--compare", out},
		"no such":     {"--model_path", dir, "--compare", "/nowhere.json"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"eval", "--tasks", task}, args...)...)
		if code == 0 || !strings.Contains(stderr, name) {
			t.Errorf("%s: exit %d, %s", name, code, stderr)
		}
	}
}

func TestProbe_PrintsAndDrawsEveryCell(t *testing.T) {
	dir, bamba, folder := writeModel(t, 700, true), writeBamba(t), t.TempDir()
	table := succeed(t, "probe", "--model_path", dir, "--lengths", "100,200", "--depths", "0,100",
		"--repeats", "1", "--heat_map", filepath.Join(folder, "a.svg"))
	if lines := strings.Split(strings.TrimSpace(table), "\n"); len(lines) != 3 ||
		!strings.HasPrefix(lines[2], "100 %") {
		t.Errorf("the table is\n%s", table)
	}
	var out probeOutput
	text := succeed(t, "probe", "--model_path", bamba, "--tokenizer", "char_tokenizer", "--kind",
		"needle", "--lengths", "250", "--repeats", "2", "--json", "--chunking",
		"default-optimized,windowed:1-optimized", "--heat_map", filepath.Join(folder, "b.png"))
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Results) != 2 ||
		len(out.Results[1].Cells) != 5 || out.Results[1].Strategy != "windowed:1-optimized" {
		t.Errorf("%v in %s", err, text)
	}
	for _, name := range []string{"a.svg", "b-default-optimized.png",
		"b-windowed_1-optimized.png"} {
		if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Size() < 500 {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, args := range map[string][]string{
		"--kind": {"--kind", "thread"}, "--depths": {"--depths", "120"},
		"--lengths":  {"--lengths", "0"},
		"--heat_map": {"--heat_map", "x.gif"}, "state-space": {"--chunking", "independent"},
		"longer": {"--lengths", "100000"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"probe", "--model_path", dir}, args...)...)
		if code == 0 || !strings.Contains(stderr, name) {
			t.Errorf("%s: exit %d, %s", name, code, stderr)
		}
	}
}

// A task's data set is fetched from a server with the hub's API. Its README says which file is
// which split; without that the files' names do.
func TestEval_FetchesDataSets(t *testing.T) {
	model := writeModel(t, 700, true)
	for _, named := range []bool{true, false} {
		dir := t.TempDir()
		files := map[string]string{"test.jsonl": "{\"sound\": \"bark\", \"label\": 1}\n"}
		if named {
			files = map[string]string{
				"README.md": "---\nconfigs:\n- config_name: pets\n  data_files:\n" +
					"  - split: test\n    path: odd-*.jsonl\n---\n# Pets\n",
				"odd-1.jsonl": files["test.jsonl"], "test.jsonl": "{\"sound\": 1}\n",
			}
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		serveHub(t, "datasets", dir)
		task := filepath.Join(t.TempDir(), "pets.yaml")
		if err := os.WriteFile(task, []byte("task: pets\ndataset_path: org/tiny@v1\n"+
			"dataset_name: pets\noutput_type: multiple_choice\ntest_split: test\n"+
			"doc_to_text: \"{{sound}}:\"\ndoc_to_choice: [cat, dog]\ndoc_to_target: label\n"),
			0o644); err != nil {
			t.Fatal(err)
		}
		table := succeed(t, "eval", "--model_path", model, "--tasks", task)
		if !strings.Contains(table, "acc_norm") {
			t.Errorf("the table is\n%s", table)
		}
	}
}
