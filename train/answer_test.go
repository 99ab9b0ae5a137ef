package train

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/torch"
	"conquer/train/report"
)

// Questions are asked between the first and the last step, and change nothing of what is learned.
func TestAsk_BetweenSteps(t *testing.T) {
	noLeaks(t)
	data := samples(22, 1)
	o := options()
	o.LoRA = adapterConfig()
	o.LoRA.Dropout = 0.3
	want := train(t, tiny(t, true, torch.Float32), data, nil, o, nil)
	m := tiny(t, true, torch.Float32)
	var asked []int
	o.AskSteps, o.LogPath = 2, t.TempDir()
	o.Ask = func(step int) ([]Answer, error) {
		asked = append(asked, step)
		logits(t, m) // as generation does
		return []Answer{{Number: 1, Question: "why?", Text: "so\n\"quoted\"", Seconds: 0.5}}, nil
	}
	got := train(t, m, data, nil, o, nil)
	if !slices.Equal(asked, []int{2, 4}) || !slices.Equal(got.losses(), want.losses()) {
		t.Errorf("asked after steps %v; losses %v, want %v", asked, got.losses(), want.losses())
	}
	text, err := os.ReadFile(filepath.Join(o.LogPath, report.MetricsFile))
	line := `{"step":4,"question":"why?","answer":"so\n\"quoted\"","seconds":0.5}`
	if err != nil || !strings.Contains(string(text), line) {
		t.Errorf("%v: %s lacks %s", err, text, line)
	}
	o.Ask = func(int) ([]Answer, error) { return nil, errors.New("no answer") }
	m = tiny(t, true, torch.Float32)
	defer free(m)
	tr, err := New(m, data, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := tr.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("got %v", err)
	}
}
