package tokenizer

import "slices"

// ggufEnds are the tokens that end a generation in every GGUF file that has them,
// whatever its metadata say. llama.cpp knows the same ones.
var ggufEnds = []string{
	"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
	"<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
	"<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
	"<｜end▁of▁sentence｜>", "[e~[",
}

// ggufFill are the tokens that separate files in a prompt for code. In generated
// text they end it. The metadata may name another token by the key.
var ggufFill = []struct {
	key   string
	names []string
}{
	{"fim_pad", []string{"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
	{"fim_rep", []string{"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
	{"fim_sep", []string{"<|file_sep|>"}},
}

// endsGGUF reports whether a token's name alone makes it a control token.
func endsGGUF(name string) bool {
	for _, fill := range ggufFill {
		if slices.Contains(fill.names, name) {
			return true
		}
	}
	return slices.Contains(ggufEnds, name)
}

// setGGUFEnds sets the ids that end a generation: those of the metadata, then the
// tokens of ggufEnds and ggufFill.
func (t *Tokenizer) setGGUFEnds(meta ggufMeta) {
	for _, key := range []string{"eos", "eot", "eom"} {
		t.addEOS(meta.id(key))
	}
	for id, token := range t.tokens {
		if slices.Contains(ggufEnds, token) {
			t.addEOS(int32(id))
		}
	}
	for _, fill := range ggufFill {
		id := meta.id(fill.key)
		if id < 0 {
			isFill := func(token string) bool { return slices.Contains(fill.names, token) }
			id = int32(slices.IndexFunc(t.tokens, isFill))
		}
		t.addEOS(id)
	}
	ends := map[string]bool{}
	for _, id := range t.eos {
		ends[t.tokens[id]] = true
	}
	drop := func(name string) {
		t.eos = slices.DeleteFunc(t.eos, func(id int32) bool { return t.tokens[id] == name })
	}
	// In these two formats <|end|> ends a message, but not the turn.
	if (ends["<|call|>"] || ends["<|calls|>"]) && (ends["<|return|>"] || ends["<|flush|>"]) {
		drop("<|end|>")
	}
	// In these vocabularies </s> is ordinary text.
	if ends["<|tool_response>"] || ends["<|plamo:eos|>"] {
		drop("</s>")
	}
}

// setNames names the special tokens for templates, by their ids.
func (t *Tokenizer) setNames() {
	t.names = map[string]string{}
	for role, id := range map[string]int32{
		"bos_token": t.bos, "unk_token": t.unk, "pad_token": t.pad,
	} {
		if t.valid(id) {
			t.names[role] = t.tokens[id]
		}
	}
	if len(t.eos) > 0 {
		t.names["eos_token"] = t.tokens[t.eos[0]]
	}
}
