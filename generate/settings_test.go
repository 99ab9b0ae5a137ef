package generate

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"conquer/torch"
)

// generationFields are the fields of GenerationConfig in transformers 5.24.
const generationFields = `max_length max_new_tokens min_length min_new_tokens early_stopping
max_time stop_strings do_sample num_beams use_mtp use_cache cache_implementation cache_config
max_cache_len temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff
repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size bad_words_ids
renormalize_logits forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias token_healing
guidance_scale watermarking_config num_return_sequences output_attentions output_hidden_states
output_scores output_logits return_dict_in_generate pad_token_id bos_token_id eos_token_id
encoder_no_repeat_ngram_size decoder_start_token_id is_assistant num_assistant_tokens
num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens
max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
assistant_ensemble_weight speculation_type compile_config disable_compile
continuous_batching_config low_memory penalty_alpha dola_layers diversity_penalty num_beam_groups
constraints force_words_ids prefill_chunk_size _from_model_config transformers_version`

func TestSettings_EveryFieldIsDecided(t *testing.T) {
	fields := strings.Fields(generationFields)
	for _, name := range fields {
		if _, ok := settingsFields[name]; !ok {
			t.Errorf("%s is not decided", name)
		}
	}
	if len(fields) != len(settingsFields) {
		t.Errorf("%d fields, %d decisions", len(fields), len(settingsFields))
	}
}

// read reads the text of a generation_config.json.
func read(t *testing.T, text string) (Settings, error) {
	t.Helper()
	var config map[string]any
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	return ReadSettings(config)
}

// A field that is null, or whose value changes nothing, is not reported. Other values of fields
// that are not supported are.
func TestSettings_NameWhatIsNotSupported(t *testing.T) {
	for text, want := range map[string]string{
		`{"num_beams": 4}`:                          "num_beams 4",
		`{"num_beams": 1, "num_beam_groups": 1}`:    "",
		`{"guidance_scale": 1.5}`:                   "guidance_scale 1.5",
		`{"guidance_scale": 1.0}`:                   "",
		`{"typical_p": 0.9, "epsilon_cutoff": 0.1}`: "epsilon_cutoff 0.1, typical_p 0.9",
		`{"typical_p": 1.0, "epsilon_cutoff": 0.0}`: "",
		`{"eta_cutoff": 1.0, "top_h": null}`:        "",
		`{"top_h": 0.4}`:                            "top_h 0.4",
		`{"penalty_alpha": 0.6, "top_k": 4}`:        "penalty_alpha 0.6",
		`{"sequence_bias": [[[5], 2.0]]}`:           "sequence_bias [[[5] 2]]",
		`{"sequence_bias": null, "max_time": 9}`:    "max_time 9",
		`{"forced_eos_token_id": 2}`:                "forced_eos_token_id 2",
		`{"cache_implementation": "quantized"}`:     `cache_implementation "quantized"`,
		`{"cache_implementation": "static", "use_cache": true, "max_length": 4096,
		  "early_stopping": true, "token_healing": false, "eos_token_id": [1, -1],
		  "pad_token_id": -1, "a_new_field": 3, "encoder_repetition_penalty": 1.0}`: "",
	} {
		s, err := read(t, text)
		got := strings.Join(append(s.Unsupported, s.UnsupportedSampling...), ", ")
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestSettings_RefuseWhatTransformersRefuses(t *testing.T) {
	for _, text := range []string{
		`{"temperature": -1}`, `{"temperature": "0.5"}`, `{"temperature": {"__float__": "NaN"}}`,
		`{"top_k": -2}`, `{"top_k": 2.5}`, `{"top_p": -0.1}`, `{"min_p": 2}`, `{"min_p": -1}`,
		`{"repetition_penalty": 0}`, `{"repetition_penalty": -1}`, `{"do_sample": "true"}`,
		`{"no_repeat_ngram_size": -1}`, `{"min_length": 1.5}`, `{"bad_words_ids": [5]}`,
		`{"bad_words_ids": [[]]}`, `{"suppress_tokens": "5"}`, `{"begin_suppress_tokens": [-1]}`,
		`{"stop_strings": [3]}`, `{"stop_strings": ""}`, `{"eos_token_id": "2"}`,
		`{"eos_token_id": [` + strings.Repeat("1,", 1024) + `2]}`} {
		name := strings.Split(text, `"`)[1]
		if s, err := read(t, text); err == nil || !strings.Contains(err.Error(),
			"generation_config.json: "+name+" is ") {
			t.Errorf("%s: %+v, %v", text, s, err)
		}
	}
}

// The options after a file, for a caller whose own are temperature 0.6, top_p 0.9.
func TestSettings_CompleteTheOptions(t *testing.T) {
	for text, want := range map[string]Options{
		`{}`:                                    {Temperature: 0.6, TopP: 0.9},
		`{"do_sample": true}`:                   {Temperature: 1, TopP: 1, TopK: 50},
		`{"do_sample": true, "top_k": null}`:    {Temperature: 1, TopP: 1, TopK: 50},
		`{"do_sample": true, "top_k": -1}`:      {Temperature: 1, TopP: 1},
		`{"do_sample": true, "top_k": 0}`:       {Temperature: 1, TopP: 1},
		`{"do_sample": true, "top_k": 1000000}`: {Temperature: 1, TopP: 1, TopK: 1000000},
		`{"top_k": 7, "temperature": 0.2}`:      {Temperature: 0.2, TopP: 0.9, TopK: 7},
		`{"top_p": 1.5, "min_p": 0.1}`:          {Temperature: 0.6, TopP: 1, MinP: 0.1},
		`{"top_p": 0}`:                          {Temperature: 0.6, TopP: 1, TopK: 1},
		`{"temperature": 1e-40}`:                {Temperature: 1e-40, TopP: 0.9},
		`{"temperature": 0, "do_sample": true}`: {TopP: 1, TopK: 50},
		`{"repetition_penalty": 1.1}`: {Temperature: 0.6, TopP: 0.9,
			RepetitionPenalty: 1.1},
		`{"do_sample": false, "temperature": 0.3}`: {Temperature: 0.3, TopP: 0.9},
	} {
		s, err := read(t, text)
		if err != nil {
			t.Fatal(err)
		}
		got := Options{Temperature: 0.6, TopP: 0.9}
		none := func(string) bool { return false }
		s.Sample(&got, none)
		s.Constrain(&got, nil, none)
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
		kept := Options{Temperature: 0.6, TopP: 0.9, TopK: 3, RepetitionPenalty: 1.5}
		all := func(string) bool { return true }
		s.Sample(&kept, all)
		s.Constrain(&kept, nil, all)
		if kept.Temperature != 0.6 || kept.TopP != 0.9 || kept.TopK != 3 ||
			kept.RepetitionPenalty != 1.5 {
			t.Errorf("%s replaced what the caller chose: %+v", text, kept)
		}
	}
	s, _ := read(t, `{"eos_token_id": [2, 5], "stop_strings": "END", "min_new_tokens": 3,
		"suppress_tokens": [8], "no_repeat_ngram_size": 2, "bad_words_ids": [[1, 2]]}`)
	var o Options
	s.Constrain(&o, []int32{2, 3}, func(string) bool { return false })
	if fmt.Sprint(o.EOS, o.Stop) != "[2 3 5] [END]" || fmt.Sprintf("%+v", o.Rules) !=
		"{NoRepeatNGram:2 BadWords:[[1 2]] Suppress:[8] BeginSuppress:[] MinNewTokens:3 "+
			"MinLength:0}" {
		t.Errorf("%+v", o)
	}
}

// warperCases are distributions that transformers computed: testdata/warpers.json.
type warperCases struct {
	Logits []float32 `json:"logits"`
	Cases  []struct {
		Config        map[string]any `json:"config"`
		IDs           []int32        `json:"ids"` // prompt and text so far
		Prompt        int            `json:"prompt"`
		Probabilities []float64      `json:"probabilities"`
	} `json:"cases"`
}

func distance(a, b []float64) (worst float64) {
	for i := range a {
		worst = max(worst, math.Abs(a[i]-b[i]))
	}
	return worst
}

// The next token is drawn from the distribution that transformers computes with the same settings.
func TestSettings_DistributionsAreThoseOfTransformers(t *testing.T) {
	text, err := os.ReadFile("testdata/warpers.json")
	if err != nil {
		t.Fatal(err)
	}
	var all warperCases
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if len(all.Cases) < 100 {
		t.Fatalf("%d cases", len(all.Cases))
	}
	for _, c := range all.Cases {
		s, err := ReadSettings(c.Config)
		if err != nil {
			t.Fatal(err)
		}
		o := Options{MaxNewTokens: 1}
		none := func(string) bool { return false }
		s.Sample(&o, none)
		s.Constrain(&o, nil, none)
		got := make([]float64, len(all.Logits))
		if err := torch.Run(func() error {
			sampler := newSampler(o, 0, len(all.Logits), c.IDs)
			sampler.prompt, sampler.options.EOS = c.Prompt, o.EOS
			logits := torch.From(all.Logits, len(all.Logits))
			if err := sampler.weigh(floats(logits), c.IDs); err != nil {
				return err
			}
			p := floats(logits.MulScalar(1 / o.Temperature).Softmax(-1))
			if o.filters() {
				_, most := argmax(p)
				sampler.keep(p, most)
			} else {
				for i, p := range p {
					sampler.kept = append(sampler.kept, candidate{int32(i), p})
				}
			}
			total := 0.0
			for _, k := range sampler.kept {
				got[k.id] = float64(k.p)
				total += float64(k.p)
			}
			for i := range got {
				got[i] /= total
			}
			return nil
		}); err != nil {
			t.Errorf("%v: %v", c.Config, err)
			continue
		}
		if worst := distance(got, c.Probabilities); !(worst < 2e-6) {
			t.Errorf("%v after %v: %v\nwant %v", c.Config, c.IDs, got, c.Probabilities)
		}
	}
}
