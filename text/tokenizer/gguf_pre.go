package tokenizer

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// ggufPre is a pre-tokenizer that llama.cpp knows by the names in tokenizer.ggml.pre.
// It splits a text by one pattern after the other.
type ggufPre struct {
	names        []string
	patterns     []string
	ignoreMerges bool // a word that is a token is not merged
	addBOS       bool // unless tokenizer.ggml.add_bos_token says otherwise
	nfc          bool
}

// Parts of the patterns. gptWords is gpt2Pattern, and llama3Pattern and qwen2Pattern
// have scanners.
const (
	contractions = `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`
	upperWord    = `[^\r\n\p{L}\p{N}]?(?:[\p{L}&&[^a-z]])*(?:[\p{L}&&[^A-Z]])+`
	lowerWord    = `[^\r\n\p{L}\p{N}]?(?:[\p{L}&&[^a-z]])+(?:[\p{L}&&[^A-Z]])*`
	spacesEnd    = `\s*[\r\n]+|\s+(?!\S)|\s+`
	asian        = `[一-龥぀-ゟ゠-ヿ]+`
	// Of these ranges llama.cpp leaves out white space.
	oldAsian      = `[[一-龥ࠀ-一가-퟿]&&\S]+`
	asciiThenWord = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
	deepseek3     = asciiThenWord + `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|` +
		spacesEnd
	latinLetters = `A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-` +
		`Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1F7Dᾀ-ᾴᾶ-ᾼ\u1FBEῂ-ῄῆ-ῌῐ-\u1FD3ῖ-` +
		`\u1FDBῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212A-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ` +
		`-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃`
)

var ggufPres = []ggufPre{
	{names: []string{"gpt-2", "phi-2", "olmo", "mpt", "jina-es", "jina-de", "jina-v2-es",
		"jina-v2-de",
		"roberta-bpe", "jina-v1-en", "jina-v2-code", "gigachat", "a.x-4.0", "mellum", "modern-bert",
		"exaone4", "jais", "trillion", "granite-docling"}, patterns: []string{gpt2Pattern}},
	{names: []string{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone",
		"minerva-7b", "mellum2"}, patterns: []string{`\p{N}`, gpt2Pattern}},
	{names: []string{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral",
		"midm-2.0",
		"lfm2", "jina-v5-nano"}, patterns: []string{llama3Pattern}, ignoreMerges: true,
		addBOS: true},
	{names: []string{"smaug-bpe", "dbrx", "chatglm-bpe"}, patterns: []string{llama3Pattern}},
	{names: []string{"glm4", "glm5"}, patterns: []string{llama3Pattern}, ignoreMerges: true},
	{names: []string{"qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "solar-open", "kormo",
		"f2llmv2", "megrez", "grok-2"}, patterns: []string{qwen2Pattern}, nfc: true},
	{names: []string{"qwen35"}, patterns: []string{contractions +
		`|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|` +
		`\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|` + spacesEnd}},
	{names: []string{"tekken"}, patterns: []string{upperWord + `|` + lowerWord +
		`|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|` + spacesEnd}, ignoreMerges: true, addBOS: true},
	{names: []string{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"},
		patterns: []string{upperWord + contractions + `?|` + lowerWord + contractions +
			`?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|` + spacesEnd}},
	{names: []string{"deepseek-llm"}, patterns: []string{`[\r\n]`, `\s?[` + latinLetters + `]+`,
		`\s?[!-/:-~！-／：-～‘-‟、-。]+`, `\s+\z`, oldAsian, `\p{N}+`}},
	{names: []string{"deepseek-coder"}, patterns: []string{`[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`,
		oldAsian,
		`\p{N}`}},
	{names: []string{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
		patterns: []string{`\p{N}{1,3}`, asian, deepseek3}},
	{names: []string{"falcon"}, patterns: []string{"[\\p{P}\\$\\+<=>\\^~\\|`]+", gpt2Pattern,
		`[0-9][0-9][0-9]`}},
	{names: []string{"default", ""}, patterns: []string{`[\p{P}\$\+<=>\^~\|]+`, gpt2Pattern,
		`\p{N}+`,
		`[0-9][0-9][0-9]`}},
	{names: []string{"poro-chat", "bloom", "gpt3-finnish"},
		patterns: []string{` ?[^(\s|.,!?…。，、।۔،)]+`}},
	{names: []string{"viking"}, patterns: []string{` ?[^(\s|.,!?…。，、।۔،)]+`, `\p{N}`}},
	{names: []string{"bailingmoe", "bailingmoe2", "llada-moe"}, patterns: []string{
		`'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|` +
			` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`}},
	{names: []string{"seed-coder"}, patterns: []string{contractions +
		`|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|` + spacesEnd}},
	{names: []string{"superbpe"}, patterns: []string{`\p{N}+`, `(?=([0-9]{3})+(?![0-9]))`}},
	{names: []string{"minicpm5"}, patterns: []string{`\p{N}{1,3}`, contractions +
		`|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|` + spacesEnd},
		ignoreMerges: true},
}

// findGGUFPre returns the pre-tokenizer of a name.
func findGGUFPre(name string) (ggufPre, error) {
	for _, pre := range ggufPres {
		if slices.Contains(pre.names, name) {
			return pre, nil
		}
	}
	var known []string
	for _, pre := range ggufPres {
		known = append(known, pre.names[0])
	}
	return ggufPre{}, fmt.Errorf("tokenizer.ggml.pre is %q; known are the families of %s", name,
		strings.Join(known, ", "))
}

// json returns the pre-tokenizer as a stage of a tokenizer.json.
func (p ggufPre) json() json.RawMessage {
	byteLevel := map[string]any{"type": "ByteLevel", "add_prefix_space": false,
		"trim_offsets": true,
		"use_regex":    false}
	var stages []any
	for _, pattern := range p.patterns {
		switch {
		case pattern == gpt2Pattern && len(stages) == len(p.patterns)-1:
			byteLevel["use_regex"] = true // the same pattern
		case pattern == `\p{N}` && len(stages) == 0 && len(p.patterns) == 2 &&
			p.names[0] == "smollm":
			stages = append(stages, map[string]any{"type": "Digits", "individual_digits": true})
		default:
			stages = append(stages, map[string]any{"type": "Split", "behavior": "Isolated",
				"pattern": map[string]string{"Regex": pattern}, "invert": false})
		}
	}
	raw, err := json.Marshal(map[string]any{"type": "Sequence",
		"pretokenizers": append(stages, byteLevel)})
	if err != nil {
		panic(err) // strings and booleans always marshal
	}
	return raw
}
