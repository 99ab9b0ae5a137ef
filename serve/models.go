package serve

import "net/http"

// modelObject describes the model as OpenAI does, and the tokens of its context.
type modelObject struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	Parent      string `json:"parent,omitempty"` // of an adapter
	Root        string `json:"root,omitempty"`   // its folder
	MaxModelLen int    `json:"max_model_len"`
}

// modelObjects describes the model and its adapters.
func (s *Server) modelObjects() []modelObject {
	base := modelObject{ID: s.options.Model, Object: "model", Created: s.created,
		OwnedBy: "conquer", MaxModelLen: s.options.Limits.Length}
	list := []modelObject{base}
	for _, a := range s.adapters.list() {
		one := base
		one.ID, one.Parent, one.Root = a.Name, base.ID, a.Path
		list = append(list, one)
	}
	return list
}

// models answers /v1/models.
func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": s.modelObjects()})
}

// oneModel answers /v1/models/ID.
func (s *Server) oneModel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	for _, m := range s.modelObjects() {
		if m.ID == id {
			writeJSON(w, http.StatusOK, m)
			return
		}
	}
	fail(w, s.noModel(id))
}

// tokenizeRequest is the body of /tokenize.
type tokenizeRequest struct {
	Model            string `json:"model"`
	Prompt           string `json:"prompt"`
	AddSpecialTokens *bool  `json:"add_special_tokens"`
}

// tokenize answers /tokenize with the token ids of a text.
func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	var q tokenizeRequest
	if err := s.decode(w, r, &q); err != nil {
		fail(w, err)
		return
	}
	ids := s.tokenizer.Encode(q.Prompt, q.AddSpecialTokens == nil || *q.AddSpecialTokens)
	if ids == nil {
		ids = []int32{}
	}
	writeJSON(w, http.StatusOK, map[string]any{"tokens": ids, "count": len(ids),
		"max_model_len": s.options.Limits.Length})
}
