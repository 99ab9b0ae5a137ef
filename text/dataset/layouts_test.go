package dataset

import (
	"path/filepath"
	"slices"
	"testing"
)

// Files in the layouts that people publish, and what is learned from each of their records.
func TestLoad_LearnsTheAnswersOfPublishedLayouts(t *testing.T) {
	tok := withSpecial(t, "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"+
		"{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"+
		"{% endfor %}<|im_end|>\n{% endfor %}"+
		"{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
	for name, want := range map[string][]string{
		"nulls.jsonl": {"It warns ships.<|im_end|>|", "The North Sea.<|im_end|>|"},
		"table.csv": {"Red, of course.<|im_end|>|", "5<|im_end|>|",
			"Hello.<|im_end|>|"},
		"sharegpt.jsonl":          {"The keeper.<|im_end|>|", "Nobody.<|im_end|>|"},
		"prompt-completion.jsonl": {"lit.</s>", "Yes.<|im_end|>|"},
		"tools.jsonl": {`{"name": "tide", "arguments": {"place": "Dover"}}<|im_end|>|` +
			"At ten past five.<|im_end|>|", "Good morning.<|im_end|>|"},
	} {
		d := mustLoad(t, filepath.Join("testdata", "records", name), tok, Options{})
		var learned []string
		for _, s := range readAll(t, d).Samples {
			learned = append(learned, labeledText(tok, s))
		}
		if !slices.Equal(learned, want) {
			t.Errorf("%s: learns %q, expected %q", name, learned, want)
		}
	}
}
