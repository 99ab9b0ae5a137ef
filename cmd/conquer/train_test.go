package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestAModelOfCharactersIsTrainedFromNothingAndContinuesText(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "poem.txt")
	if err := os.WriteFile(data, []byte(strings.Repeat("round and round the tower the gulls go round\n", 60)), 0o666); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "model")
	stdout, stderr, code := invoke(t, "", "train", "--architecture", "bamba", "--variant", "bytes", "--tokenizer", "char_tokenizer",
		"--data_path", data, "--validation_path", data, "--output_path", out, "--pack", "--sequence_length", "128", "--batch_size", "2",
		"--steps", "30", "--learning_rate", "0.01", "--checkpoint_steps", "0", "--validate_steps", "30")
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	losses := regexp.MustCompile(`validation loss (\d+\.\d+)`).FindAllStringSubmatch(stderr, -1)
	if len(losses) != 2 || losses[0][1] < "5" || losses[1][1] > "3" { // ln 256 = 5.5
		t.Errorf("the losses before and after are %v\n%s", losses, stderr)
	}
	// The command that is printed for trying it works as it stands.
	_, suggestion, _ := strings.Cut(stdout, "try:\n  conquer ")
	if !strings.HasPrefix(suggestion, "generate --model_path "+out+" ") || strings.Contains(suggestion, "--chat") {
		t.Errorf("suggests %q", suggestion)
	}
	if text := succeed(t, "generate", "--model_path", out, "--prompt", "round and ", "--max_new_tokens", "8", "--ignore_eos"); len(text) < 8 {
		t.Errorf("continues with %q", text)
	}
	score := decode[scoreOutput](t, succeed(t, "score", "--model_path", out, "--text", "round the tower", "--json"))
	if score.Tokens != len("round the tower") || !(score.Perplexity > 1 && score.Perplexity < 100) {
		t.Errorf("scores %+v", score)
	}
}
