package pyjson_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"conquer/internal/pyjson"
)

func TestStandard_WrapsBareWordsOnly(t *testing.T) {
	for text, want := range map[string]string{
		`{"a": 1}`:                  `{"a": 1}`,
		`[0.0, Infinity]`:           `[0.0, {"__float__": "Infinity"}]`,
		`[-Infinity,NaN]`:           `[{"__float__": "-Infinity"},{"__float__": "NaN"}]`,
		`{"a":NaN}`:                 `{"a":{"__float__": "NaN"}}`,
		`NaN`:                       `{"__float__": "NaN"}`,
		`"NaN"`:                     `"NaN"`,
		`["a \" Infinity", "\\"]`:   `["a \" Infinity", "\\"]`,
		`["\\", Infinity]`:          `["\\", {"__float__": "Infinity"}]`,
		`{"__float__": "Infinity"}`: `{"__float__": "Infinity"}`,
		`[Infinityx]`:               `[Infinityx]`,
		`["unfinished \`:            `["unfinished \`,
	} {
		if got := string(pyjson.Standard([]byte(text))); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// Standard must not change JSON, and what it changes must be JSON if only the words were not.
func FuzzStandard(f *testing.F) {
	for _, text := range []string{`{"a": [0.0, Infinity]}`, `"\\\"NaN"`, `[-Infinity, "NaN"]`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var before, after any
		standard := pyjson.Standard(text)
		if json.Unmarshal(text, &before) != nil {
			return
		}
		err := json.Unmarshal(standard, &after)
		if err != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("%q became %q: %v", text, standard, err)
		}
	})
}
