package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The settings of generation_config.json hold unless a flag replaces them. Those that are not
// supported are named once.
func TestSampling_UsesTheModelsSettings(t *testing.T) {
	dir := writeModel(t, 704, true)
	file := filepath.Join(dir, "generation_config.json")
	run := func(config string, more ...string) (generateOutput, string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, code := invoke(t, "", append([]string{"generate", "--model_path", dir,
			"--token_ids", "5,6,7", "--max_new_tokens", "12", "--seed", "3", "--json"}, more...)...)
		if code != 0 {
			t.Fatalf("%s: exit %d: %s", config, code, stderr)
		}
		return decode[generateOutput](t, stdout), stderr
	}
	plain, _ := run(`{}`)
	for config, flags := range map[string][]string{
		`{"repetition_penalty": 1.7}`: {"--repetition_penalty", "1.7"},
		`{"do_sample": true, "temperature": 0.5, "top_k": -1, "num_beams": null}`: nil, // greedy
		`{"eos_token_id": [1, 2], "max_length": 4, "min_p": 0.5}`:                 nil,
	} {
		want, _ := run(`{}`, flags...)
		if got, stderr := run(config); !slices.Equal(got.TokenIDs, want.TokenIDs) || stderr != "" {
			t.Errorf("%s: %v, want %v\n%s", config, got.TokenIDs, want.TokenIDs, stderr)
		}
	}
	warm := []string{"--temperature", "0.8"}
	for config, flags := range map[string][]string{
		`{"top_k": 3, "temperature": 0.1}`: {"--top_k", "3"},
		`{"do_sample": true, "top_k": -1}`: nil,
		`{"do_sample": true}`:              {"--top_k", "50"},
		`{"top_p": 0.3, "min_p": 0.01}`:    {"--top_p", "0.3", "--min_p", "0.01"},
		`{"temperature": 1e-39}`:           nil,
	} {
		want, _ := run(`{}`, append(flags, warm...)...)
		if got, _ := run(config, warm...); !slices.Equal(got.TokenIDs, want.TokenIDs) {
			t.Errorf("%s: %v, want %v", config, got.TokenIDs, want.TokenIDs)
		}
	}
	all, _ := run(`{"top_k": 3}`, "--temperature", "0.8", "--top_k", "-1")
	if want, _ := run(`{}`, warm...); !slices.Equal(all.TokenIDs, want.TokenIDs) {
		t.Errorf("--top_k -1: %v, want %v", all.TokenIDs, want.TokenIDs)
	}
	first, _ := run(`{"suppress_tokens": [` + joinIDs(plain.TokenIDs[:1]) + `]}`)
	if slices.Contains(first.TokenIDs, plain.TokenIDs[0]) {
		t.Errorf("token %d is suppressed: %v", plain.TokenIDs[0], first.TokenIDs)
	}
	got, stderr := run(`{"num_beams": 4, "typical_p": 0.9, "guidance_scale": 2}`)
	if !slices.Equal(got.IgnoredSettings, []string{"guidance_scale 2", "num_beams 4"}) ||
		stderr != "conquer generate: not supported in generation_config.json, and ignored: "+
			"guidance_scale 2, num_beams 4\n" {
		t.Errorf("%v, %s", got.IgnoredSettings, stderr)
	}
	if got, _ = run(`{"typical_p": 0.9}`, warm...); len(got.IgnoredSettings) != 1 {
		t.Errorf("sampled: %v", got.IgnoredSettings)
	}
	// A chat samples as the file says, or greedily if it says so.
	for config, flags := range map[string][]string{
		`{"do_sample": false, "temperature": 0.9}`: {"--temperature", "0"},
		`{"do_sample": true, "top_k": -1}`:         {"--temperature", "1", "--top_p", "1"},
	} {
		chat := func(config string, more ...string) string {
			os.WriteFile(file, []byte(config), 0o644)
			args := []string{"chat", "--model_path", dir, "--max_new_tokens", "8", "--seed", "4"}
			stdout, stderr, code := invoke(t, "hello\n", append(args, more...)...)
			if code != 0 || stderr != "" {
				t.Errorf("%s: exit %d: %s", config, code, stderr)
			}
			return stdout
		}
		if got, want := chat(config), chat(`{}`, flags...); got != want {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
	os.WriteFile(file, []byte(`{"temperature": -1}`), 0o644)
	_, stderr, code := invoke(t, "", "generate", "--model_path", dir, "--token_ids", "5")
	if code != 1 || !strings.Contains(stderr, "config.json: temperature is -1, expected 0 or") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// Penalties, biases and log-probabilities: a bias decides every token, the frequency penalty ends
// that, and log-probabilities do not show it.
func TestSampling_PenaltiesAndBiases(t *testing.T) {
	dir := writeModel(t, 704, true)
	run := func(more ...string) generateOutput {
		t.Helper()
		return decode[generateOutput](t, succeed(t, append([]string{"generate", "--model_path",
			dir, "--token_ids", "5,6,7", "--max_new_tokens", "6", "--ignore_eos", "--json"},
			more...)...))
	}
	plain, biased := run("--logprobs", "2"), run("--logit_bias", "9=1000", "--logprobs", "0")
	for i, p := range plain.Logprobs {
		if len(p.Top) != 2 || p.Top[0].ID != plain.TokenIDs[i] || p.Top[0].Logprob != p.Logprob ||
			p.Top[1].Logprob > p.Logprob || p.ID != plain.TokenIDs[i] {
			t.Errorf("token %d: %+v", plain.TokenIDs[i], p)
		}
	}
	if len(plain.Logprobs) != 6 || !slices.Equal(biased.TokenIDs, []int32{9, 9, 9, 9, 9, 9}) ||
		biased.Logprobs[0].Logprob > -1 {
		t.Errorf("%+v and %+v", plain, biased)
	}
	for _, penalty := range []string{"--presence_penalty", "--frequency_penalty"} {
		if got := run("--logit_bias", "9=1000", penalty, "2000"); got.TokenIDs[0] != 9 ||
			slices.Contains(got.TokenIDs[1:], 9) {
			t.Errorf("%s: %v", penalty, got.TokenIDs)
		}
	}
	for _, wrong := range [][]string{{"--logit_bias", "a=1"}, {"--logit_bias", "9"},
		{"--presence_penalty", "NaN"}, {"--logprobs", "1000"}} {
		if _, stderr, code := invoke(t, "", append([]string{"generate", "--model_path", dir,
			"--token_ids", "5", "--json"}, wrong...)...); code != 2 {
			t.Errorf("%q: exit %d, %s", wrong, code, stderr)
		}
	}
	if _, stderr, code := invoke(t, "", "generate", "--model_path", dir, "--token_ids", "5",
		"--logit_bias", "704=1"); code != 1 || !strings.Contains(stderr, "704") {
		t.Errorf("a token that the model does not have: exit %d, %s", code, stderr)
	}
}
