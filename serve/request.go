package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"

	"conquer/generate"
)

// sampling are the fields that requests for text share. A nil pointer means that the field is not
// given.
type sampling struct {
	Model               string             `json:"model"`
	MaxTokens           *int               `json:"max_tokens"`
	MaxCompletionTokens *int               `json:"max_completion_tokens"`
	Temperature         *float64           `json:"temperature"`
	TopP                *float64           `json:"top_p"`
	TopK                *int               `json:"top_k"`
	MinP                *float64           `json:"min_p"`
	RepetitionPenalty   *float64           `json:"repetition_penalty"`
	PresencePenalty     *float64           `json:"presence_penalty"`
	FrequencyPenalty    *float64           `json:"frequency_penalty"`
	LogitBias           map[string]float64 `json:"logit_bias"`
	N                   *int               `json:"n"`
	Seed                *int64             `json:"seed"`
	Stop                texts              `json:"stop"`
	StopTokenIDs        []int32            `json:"stop_token_ids"`
	IgnoreEOS           bool               `json:"ignore_eos"`
	ResponseFormat      *responseFormat    `json:"response_format"`
	StructuredOutputs   *structured        `json:"structured_outputs"`
	Stream              bool               `json:"stream"`
	StreamOptions       *streamOptions     `json:"stream_options"`
	unused
}

// unused are fields of OpenAI's that change no answer here.
type unused struct {
	User             json.RawMessage `json:"user"`
	Metadata         json.RawMessage `json:"metadata"`
	Store            json.RawMessage `json:"store"`
	ServiceTier      json.RawMessage `json:"service_tier"`
	SafetyIdentifier json.RawMessage `json:"safety_identifier"`
	PromptCacheKey   json.RawMessage `json:"prompt_cache_key"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
	// OpenAI pads the chunks of a stream with random text unless told otherwise.
	IncludeObfuscation bool `json:"include_obfuscation"`
}

// texts is a JSON string or a list of strings.
type texts []string

// UnmarshalJSON implements json.Unmarshaler.
func (t *texts) UnmarshalJSON(data []byte) error {
	if data[0] == '[' {
		return json.Unmarshal(data, (*[]string)(t))
	}
	var one *string
	err := json.Unmarshal(data, &one)
	if *t = nil; one != nil {
		*t = texts{*one}
	}
	return err
}

// prompts is a prompt of a completion: a string, a list of strings, a list of token ids, or a list
// of such lists.
type prompts struct {
	texts []string
	ids   [][]int32
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *prompts) UnmarshalJSON(data []byte) error {
	var text string
	var one []int32
	switch {
	case json.Unmarshal(data, &text) == nil && string(data) != "null":
		p.texts = []string{text}
	case json.Unmarshal(data, &p.texts) == nil && len(p.texts) > 0:
	case json.Unmarshal(data, &one) == nil && len(one) > 0:
		p.texts, p.ids = nil, [][]int32{one}
	case json.Unmarshal(data, &p.ids) == nil && len(p.ids) > 0:
		p.texts = nil
	default:
		return errPrompt
	}
	return nil
}

var errPrompt = errors.New("expected a text, a list of texts, a list of token ids or a list of " +
	"such lists, not empty")

// decode reads the JSON object of a request.
func (s *Server) decode(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.options.MaxBody))
	if err != nil {
		return decodeError(err)
	}
	return decodeBody(body, into)
}

func decodeBody(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return decodeError(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return invalid("", "the body holds more than one JSON object")
	}
	return nil
}

// count returns the number of choices of each prompt.
func (q *sampling) count(most int) (int, error) {
	if q.N == nil {
		return 1, nil
	}
	if *q.N < 1 || *q.N > most {
		return 0, invalid("n", "n is %d, expected 1 to %d", *q.N, most)
	}
	return *q.N, nil
}

// checkModel refuses the name of another model.
func (s *Server) checkModel(name string) error {
	if name == "" || name == s.options.Model || s.adapters.has(name) {
		return nil
	}
	return s.noModel(name)
}

func (s *Server) noModel(name string) error {
	return &problem{status: http.StatusNotFound, kind: invalidRequest, param: "model",
		code: "model_not_found", message: fmt.Sprintf("the model %.80q does not exist: this "+
			"server has %q", name, s.options.Model)}
}

// named is the name that an answer gives the model of a request.
func (s *Server) named(model string) string {
	if model == "" {
		return s.options.Model
	}
	return model
}

// checkRead refuses a prompt that cannot be read.
func (s *Server) checkRead(ids []int32) error {
	if most := s.options.Limits.Length; len(ids) > most {
		return fmt.Errorf("there are %d tokens, at most %d are allowed", len(ids), most)
	}
	return generate.CheckIDs(s.model, ids)
}

// configure turns the fields into options. otherwise is the number of new tokens if the request
// does not say.
func (s *Server) configure(q *sampling, otherwise int) (generate.Options, error) {
	if err := s.checkModel(q.Model); err != nil {
		return generate.Options{}, err
	}
	o := s.options.Defaults
	o.MaxNewTokens = otherwise
	for _, limit := range []*int{q.MaxTokens, q.MaxCompletionTokens} {
		if limit != nil {
			o.MaxNewTokens = *limit
		}
	}
	o.MaxNewTokens = min(o.MaxNewTokens, s.options.MaxTokens)
	set(&o.Temperature, q.Temperature)
	set(&o.TopP, q.TopP)
	set(&o.MinP, q.MinP)
	set(&o.RepetitionPenalty, q.RepetitionPenalty)
	set(&o.PresencePenalty, q.PresencePenalty)
	set(&o.FrequencyPenalty, q.FrequencyPenalty)
	if set(&o.TopK, q.TopK); o.TopK == -1 {
		o.TopK = 0
	}
	o.Seed = rand.Uint64()
	if q.Seed != nil {
		o.Seed = uint64(*q.Seed)
	}
	if len(q.LogitBias) > 0 {
		o.LogitBias = map[int32]float64{}
		maps.Copy(o.LogitBias, s.options.Defaults.LogitBias)
	}
	for name, bias := range q.LogitBias {
		id, err := strconv.ParseInt(name, 10, 32)
		if err != nil {
			return o, invalid("logit_bias", "logit_bias names %.40q, expected a token id", name)
		}
		o.LogitBias[int32(id)] = bias
	}
	o.IgnoreEOS = o.IgnoreEOS || q.IgnoreEOS
	var err error
	if o.Grammar, err = s.constraint(q.ResponseFormat, q.StructuredOutputs); err != nil {
		return o, err
	}
	return o, s.stops(q, &o)
}

func set[T any](to *T, value *T) {
	if value != nil {
		*to = *value
	}
}

// maxStops is the most stop strings and stop tokens of a request.
const maxStops = 64

// stops sets what ends the text. The text of a special token is not part of an answer, so the token
// itself ends it.
func (s *Server) stops(q *sampling, o *generate.Options) error {
	if len(q.Stop)+len(q.StopTokenIDs) > maxStops {
		return invalid("stop", "there are %d stop strings and tokens, at most %d are allowed",
			len(q.Stop)+len(q.StopTokenIDs), maxStops)
	}
	if q.Stop != nil {
		o.Stop = nil
	}
	ends := slices.Clone(q.StopTokenIDs)
	for _, stop := range q.Stop {
		if id, ok := s.tokenizer.ID(stop); ok && s.tokenizer.IsSpecial(id) {
			ends = append(ends, id)
		} else {
			o.Stop = append(o.Stop, stop)
		}
	}
	if o.IgnoreEOS && len(ends) > 0 { // the stop tokens still hold
		o.IgnoreEOS, o.EOS = false, nil
	}
	o.EOS = slices.Concat(o.EOS, ends)
	return nil
}
