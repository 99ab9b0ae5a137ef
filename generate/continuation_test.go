package generate_test

import (
	"context"
	"strings"
	"testing"

	"conquer/generate"
	"conquer/model"
	"conquer/text/tokenizer"
)

// The space before the first new word belongs to the text, is shown, and stop strings see it.
func TestGenerate_TextContinuesThePrompt(t *testing.T) {
	tok, err := tokenizer.Open("../text/tokenizer/testdata/llama2")
	if err != nil {
		t.Fatal(err)
	}
	m := tiny(t, model.Config{"vocab_size": float64(tok.VocabSize())})
	spaces := 0
	for _, text := range []string{"Once upon a", "The quick", "It's", "fox (x)", ""} {
		prompt := tok.Encode(text, true)
		o := generate.Options{MaxNewTokens: 8, IgnoreEOS: true, Temperature: 2}
		for o.Seed = range uint64(4) {
			shown := ""
			results, _, err := generate.Generate(context.Background(), m, tok, [][]int32{prompt}, o,
				func(_ int, piece string) { shown += piece })
			if err != nil {
				t.Fatal(err)
			}
			r := results[0]
			whole := tok.Decode(append(prompt[:len(prompt):len(prompt)], r.Tokens...), true)
			if text+r.Text != whole || shown != r.Text {
				t.Errorf("%q and %q, shown as %q, of %q", text, r.Text, shown, whole)
			}
			if !strings.HasPrefix(r.Text, " ") {
				continue
			}
			spaces++
			o.Stop = []string{r.Text[:2]}
			if got := mustGenerate(t, m, tok, [][]int32{prompt}, o)[0]; got.Text != "" ||
				got.Finish != generate.FinishStop {
				t.Errorf("stop %q: %q, %s", o.Stop, got.Text, got.Finish)
			}
			o.Stop = nil
		}
	}
	if spaces == 0 {
		t.Error("no text began with a space")
	}
}
