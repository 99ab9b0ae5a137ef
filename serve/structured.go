package serve

import (
	"crypto/sha256"
	"encoding/json"
	"sync"

	"conquer/text/grammar"
	"conquer/text/tokenizer"
)

// responseFormat is OpenAI's description of what an answer must be.
type responseFormat struct {
	Type       string `json:"type"` // text, json_object or json_schema
	JSONSchema *struct {
		Name        string          `json:"name"`
		Description string          `json:"description"`
		Strict      *bool           `json:"strict"`
		Schema      json.RawMessage `json:"schema"`
	} `json:"json_schema"`
}

// structured says what an answer must be: one of its fields.
type structured struct {
	JSON   json.RawMessage `json:"json"` // a JSON schema
	Regex  *string         `json:"regex"`
	Choice []string        `json:"choice"`
}

// constraint returns the mask of the tokens that a request allows, nil for all.
func (s *Server) constraint(f *responseFormat, o *structured) (*grammar.Mask, error) {
	var mask *grammar.Mask
	var err error
	param, count := "response_format", 0
	if f != nil && f.Type != "text" {
		count++
		switch {
		case f.Type == "json_object":
			mask, err = s.grammars.get("object", nil, grammar.JSONObject)
		case f.Type == "json_schema" && f.JSONSchema != nil && given(f.JSONSchema.Schema) != nil:
			mask, err = s.grammars.schema(f.JSONSchema.Schema)
		default:
			return nil, invalid(param, "response_format must be of the type text, json_object or "+
				"json_schema, the last with json_schema.schema")
		}
	}
	if o != nil {
		param = "structured_outputs"
		if given(o.JSON) != nil {
			count++
			mask, err = s.grammars.schema(o.JSON)
		}
		if o.Regex != nil {
			count++
			mask, err = s.grammars.get("regex", []byte(*o.Regex), func() (*grammar.Grammar, error) {
				return grammar.Regexp(*o.Regex)
			})
		}
		if o.Choice != nil {
			count++
			list, _ := json.Marshal(o.Choice)
			mask, err = s.grammars.get("choice", list, func() (*grammar.Grammar, error) {
				return grammar.Choice(o.Choice)
			})
		}
		if count == 0 {
			return nil, invalid(param, "structured_outputs needs json, regex or choice")
		}
	}
	if err == nil && count > 1 {
		return nil, invalid(param, "an answer can have one form only: choose among json, regex, "+
			"choice and response_format")
	}
	if err != nil {
		return nil, invalid(param, "%v", err)
	}
	return mask, nil
}

// grammars keeps compiled grammars.
type grammars struct {
	tokenizer  *tokenizer.Tokenizer
	size       int
	vocabulary func() *grammar.Vocabulary
	bytes      [][]byte // of each token, once the vocabulary was made

	mutex sync.Mutex
	kept  map[[sha256.Size]byte]*grammar.Mask
	order [][sha256.Size]byte // oldest first
}

// maxGrammars is the most grammars that are kept.
const maxGrammars = 32

// newGrammars makes a store for grammars over a vocabulary of a size. Answers show the special
// tokens in shown, so that grammars may use them.
func newGrammars(t *tokenizer.Tokenizer, size int, shown []int32) *grammars {
	g := &grammars{tokenizer: t, size: size, kept: map[[sha256.Size]byte]*grammar.Mask{}}
	g.vocabulary = sync.OnceValue(func() *grammar.Vocabulary {
		g.bytes = make([][]byte, size)
		for id := range g.bytes {
			g.bytes[id] = t.Bytes(int32(id))
		}
		for _, id := range shown {
			g.bytes[id] = []byte(t.Token(id))
		}
		return grammar.NewVocabulary(size, g.of)
	})
	return g
}

func (g *grammars) of(id int32) []byte { return g.bytes[id] }

func (g *grammars) schema(schema json.RawMessage) (*grammar.Mask, error) {
	return g.get("json", schema, func() (*grammar.Grammar, error) {
		return grammar.JSONSchema(schema)
	})
}

// get returns the mask of a grammar of a kind and a source, and compiles it if it is not kept.
func (g *grammars) get(kind string, source []byte,
	compile func() (*grammar.Grammar, error)) (*grammar.Mask, error) {
	key := sha256.Sum256(append([]byte(kind+"\x00"), source...))
	g.mutex.Lock()
	mask := g.kept[key]
	g.mutex.Unlock()
	if mask != nil {
		return mask, nil
	}
	compiled, err := compile()
	if err != nil {
		return nil, err
	}
	mask, err = grammar.NewMask(compiled, g.vocabulary(), g.of)
	if err != nil {
		return nil, err
	}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.kept[key] == nil {
		if len(g.order) == maxGrammars {
			delete(g.kept, g.order[0])
			g.order = g.order[1:]
		}
		g.kept[key], g.order = mask, append(g.order, key)
	}
	return mask, nil
}
