package jinja_test

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"conquer/text/jinja"
)

// A case is a template and what jinja2 makes of it.
type templateCase struct {
	Template string
	Context  json.RawMessage
	Want     string
	Error    string // jinja2 fails
}

// check renders a case and compares.
func (c templateCase) check(t *testing.T) {
	t.Helper()
	template, err := jinja.Compile(c.Template)
	got := ""
	if err == nil {
		template.Now = func() time.Time { return time.Date(2024, 7, 6, 13, 5, 9, 0, time.UTC) }
		got, err = template.RenderJSON(t.Context(), c.Context)
	}
	switch {
	case c.Error != "" && err == nil:
		t.Errorf("%s\ncontext %s\ngot %q, want the error %s", c.Template, c.Context, got, c.Error)
	case c.Error == "" && (err != nil || got != c.Want):
		t.Errorf("%s\ncontext %s\ngot  %q, %v\nwant %q", c.Template, c.Context, got, err, c.Want)
	}
}

// TestTemplate_AgreesWithJinja2 reads cases that tools/parity/chat_templates.py has written.
func TestTemplate_AgreesWithJinja2(t *testing.T) {
	path := os.Getenv("CONQUER_TEMPLATES")
	if path == "" {
		t.Skip("CONQUER_TEMPLATES is not set: `make parity` sets it")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var cases []templateCase
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		c.check(t)
	}
	t.Logf("%d templates", len(cases))
}
