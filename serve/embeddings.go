package serve

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"net/http"
)

// embeddingRequest is the body of /v1/embeddings.
type embeddingRequest struct {
	Model          string  `json:"model"`
	Input          prompts `json:"input"`
	EncodingFormat string  `json:"encoding_format"` // float or base64
	Pooling        string  `json:"pooling"`         // mean or last
	Dimensions     *int    `json:"dimensions"`
	unused
}

// embeddings answers /v1/embeddings with the last hidden states of each input, pooled over its
// tokens and scaled to length 1.
func (s *Server) embeddings(w http.ResponseWriter, r *http.Request) {
	var q embeddingRequest
	if err := s.decode(w, r, &q); err != nil {
		fail(w, err)
		return
	}
	tasks, err := s.embeddingTasks(&q)
	if err == nil {
		err = s.submit(r, q.Model, tasks)
	}
	if err != nil {
		fail(w, err)
		return
	}
	count := 0
	data := make([]any, len(tasks))
	for i, t := range tasks {
		if _, err := t.answer.whole(r.Context()); err != nil {
			fail(w, err)
			return
		}
		var vector any = t.pool.vector()
		if q.EncodingFormat == "base64" {
			vector = packed(t.pool.vector())
		}
		count += len(t.prompt)
		data[i] = map[string]any{"object": "embedding", "index": i, "embedding": vector}
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "model": s.named(q.Model),
		"data": data, "usage": map[string]int{"prompt_tokens": count, "total_tokens": count}})
}

// embeddingTasks checks a request and makes a task for each input.
func (s *Server) embeddingTasks(q *embeddingRequest) ([]*task, error) {
	if err := s.checkModel(q.Model); err != nil {
		return nil, err
	}
	switch {
	case q.Dimensions != nil && *q.Dimensions != s.model.Head().Shape[1]:
		return nil, invalid("dimensions", "dimensions is %d, but the model's states have %d",
			*q.Dimensions, s.model.Head().Shape[1])
	case q.EncodingFormat != "" && q.EncodingFormat != "float" && q.EncodingFormat != "base64":
		return nil, invalid("encoding_format", "encoding_format is %.40q, expected float or base64",
			q.EncodingFormat)
	case q.Pooling != "" && q.Pooling != "mean" && q.Pooling != "last":
		return nil, invalid("pooling", "pooling is %.40q, expected mean or last", q.Pooling)
	}
	ids, err := s.promptIDs(q.Input)
	if err != nil {
		return nil, invalid("input", "%v", err)
	}
	if len(ids) > maxInputs {
		return nil, invalid("input", "there are %d inputs, at most %d are allowed", len(ids),
			maxInputs)
	}
	tasks := make([]*task, len(ids))
	for i, list := range ids {
		if err := s.checkRead(list); err != nil {
			return nil, invalid("input", "input %d: %v", i+1, err)
		}
		tasks[i] = &task{prompt: list, pool: &pool{last: q.Pooling == "last"}, answer: newAnswer()}
	}
	return tasks, nil
}

// maxInputs is the most inputs of a request for embeddings.
const maxInputs = 512

// packed is a vector in OpenAI's base64 form: float32 in little-endian order.
func packed(vector []float64) string {
	data := make([]byte, 0, 4*len(vector))
	for _, v := range vector {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(v)))
	}
	return base64.StdEncoding.EncodeToString(data)
}
