package jinja_test

import (
	"encoding/json"
	"os"
	"testing"
)

// The files of testdata hold what jinja2 3.1.6 makes of each template in transformers' environment.
func TestTemplate_RendersTheCases(t *testing.T) {
	for _, file := range []string{"testdata/cases.json", "testdata/errors.json"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var cases []templateCase
		if err := json.Unmarshal(data, &cases); err != nil {
			t.Fatal(err)
		}
		if len(cases) < 50 {
			t.Errorf("%s has %d cases", file, len(cases))
		}
		for _, c := range cases {
			c.check(t)
		}
	}
}
