package jinja_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"testing"
	"time"

	"conquer/text/jinja"
)

func TestTemplate_SeesTheEnvironmentOfTransformers(t *testing.T) {
	const source = "{% if tools is defined and tools %}tools{% endif %}\n" +
		"    {% if true %}\nx{% endif %}\n" +
		"{{ eos_token|length }}{{ messages[0].content.strip() }}{{ strftime_now('%Y') }}"
	template, err := jinja.Compile(source)
	if err != nil {
		t.Fatal(err)
	}
	got, err := template.Render(t.Context(), map[string]any{
		"eos_token": "\x03",
		"messages":  []any{map[string]any{"role": "user", "content": " hi "}},
	})
	if want := "x1hi" + time.Now().Format("2006"); err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestTemplate_RaiseExceptionIsAnError(t *testing.T) {
	template, err := jinja.Compile("{{ raise_exception('no such role') }}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := template.Render(t.Context(), nil); err == nil ||
		!strings.Contains(err.Error(), "no such role") {
		t.Errorf("raise_exception gives %v", err)
	}
}

func TestTemplate_RenderStopsWhenTheContextIsDone(t *testing.T) {
	template, err := jinja.Compile("text")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := template.Render(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestCompile_RefusesABrokenTemplate(t *testing.T) {
	if _, err := jinja.Compile("{% if %}"); err == nil {
		t.Error("a broken template compiles")
	}
}

func ExampleTemplate_Render() {
	template, err := jinja.Compile("{% for name in names %}Hello, {{ name }}!\n{% endfor %}")
	if err != nil {
		log.Fatal(err)
	}
	text, err := template.Render(context.Background(),
		map[string]any{"names": []any{"Ada", "Alan"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(text)
	// Output:
	// Hello, Ada!
	// Hello, Alan!
}
