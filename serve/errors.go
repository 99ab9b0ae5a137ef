package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// problem is an error that a client is told, in OpenAI's form.
type problem struct {
	status  int
	kind    string
	param   string // the field of the request, or ""
	code    string // or ""
	message string
	final   bool // of the statuses that clients try again: another try would fail too
}

func (p *problem) Error() string { return p.message }

// MarshalJSON writes the object that OpenAI's clients read.
func (p *problem) MarshalJSON() ([]byte, error) {
	orNull := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	return json.Marshal(map[string]any{"message": p.message, "type": p.kind,
		"param": orNull(p.param), "code": orNull(p.code)})
}

const (
	invalidRequest = "invalid_request_error"
	serverError    = "server_error"
)

// invalid is the problem of a field of a request.
func invalid(param, format string, args ...any) *problem {
	return &problem{status: http.StatusBadRequest, kind: invalidRequest, param: param,
		message: fmt.Sprintf(format, args...)}
}

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	p := problemOf(err)
	if p.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	if p.final {
		w.Header().Set("x-should-retry", "false")
	}
	writeJSON(w, p.status, map[string]any{"error": p})
}

// writeJSON answers with a value.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.Encode(v)
}

// decodeError is the problem of a body that is not the JSON object that a handler expects.
func decodeError(err error) *problem {
	var tooLarge *http.MaxBytesError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &tooLarge):
		return &problem{status: http.StatusRequestEntityTooLarge, kind: invalidRequest,
			message: fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit)}
	case errors.Is(err, errPrompt):
		return invalid("prompt", "the prompt or input is wrong: %v", err)
	case errors.As(err, &wrongType) && wrongType.Field != "":
		name := wrongType.Field[strings.LastIndexByte(wrongType.Field, '.')+1:]
		return invalid(name, "%s is a JSON %s, expected %s", name, wrongType.Value,
			jsonType(wrongType))
	}
	if name, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown {
		name = strings.Trim(name, `"`)
		return invalid(name, "the field %q is not supported here: leave it out", name)
	}
	return invalid("", "the body is not a JSON object that this endpoint accepts: %v", err)
}

// jsonType names the JSON type that a Go type is read from.
func jsonType(e *json.UnmarshalTypeError) string {
	switch e.Type.Kind().String() {
	case "string":
		return "a string"
	case "bool":
		return "true or false"
	case "slice":
		return "a list"
	case "struct", "map":
		return "an object"
	case "float64", "float32":
		return "a number"
	}
	return "an integer"
}
