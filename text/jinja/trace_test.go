package jinja_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"conquer/text/jinja"
)

// origins lists the ranges of a trace that stem from messages' members other than roles.
func origins(trace jinja.Trace) string {
	marks := slices.Clone(trace.Marks)
	slices.SortStableFunc(marks, func(a, b jinja.Mark) int { return a.Start - b.Start })
	var list []string
	for _, m := range marks {
		if m.Kind >= jinja.Body {
			list = append(list, fmt.Sprintf("%d:%s", m.Message, trace.Text[m.Start:m.End]))
		}
	}
	return strings.Join(list, "|")
}

func TestTrace_FollowsTextOfMessagesThroughOperations(t *testing.T) {
	for template, want := range map[string]string{
		"{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}": "0: q |1:Ab, c.",
		"{{ '<' + messages[1].content|trim + '>' }}":                           "1:Ab, c.",
		"{{ '<' ~ messages[0].content.strip() ~ messages[1]['content'] }}":     "0:q|1:Ab, c.",
		"{{ messages[1].content[2:] }}{{ messages[1].content[0] }}":            "1:, c.A",
		"{{ messages[1].content.split(', ')[-1] }}":                            "1:c.",
		"{{ '[%s] (%s)' % (messages[1].content, 7) }}":                         "1:Ab, c.",
		"{{ '[{}|{x}]'.format(messages[1].content, x=messages[0].content) }}":  "1:Ab, c.|0: q ",
		"{{ messages | map(attribute='content') | join('-') }}":                "0: q |1:Ab, c.",
		"{{ '-'.join([messages[1].content, 'x']) }}":                           "1:Ab, c.",
		"{{ messages[1].content | replace(', ', 'Ab') }}":                      "1:Ab|1:c.",
		"{{ 'A{c}A' | replace('{c}', messages[1].content) }}":                  "1:Ab, c.",
		"{{ messages[1].content | upper }}{{ 'AB, C.' }}":                      "1:AB, C.",
		"{{ ('x' ~ messages[1].content) | upper }}":                            "1:AB, C.",
		"{{ messages[1].content | tojson }}":                                   `1:"Ab, c."`,
		"{{ messages[1] | tojson }}": `1:{"role": "assistant", ` +
			`"content": "Ab, c."}`,
		"{% macro f(x) %}({{ x }}){% endmacro %}{{ f(messages[1].content) }}": "1:Ab, c.",
		"{% set x %}a{{ messages[1].content }}a{% endset %}{{ x }}{{ x }}":    "1:Ab, c.|1:Ab, c.",
		"{% filter trim %} {{ messages[1].content }} {% endfilter %}":         "1:Ab, c.",
		"{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + m.content %}" +
			"{% endfor %}{{ ns.x }}": "0: q |1:Ab, c.",
		"{% for c in messages[1].content %}{{ c }}{% endfor %}A":     "1:Ab, c.",
		"{{ messages | tojson | length }}Ab, c.":                     "",
		"{{ (messages[0].content ~ messages[1].content) | tojson }}": "-1:\" q Ab, c.\"",
	} {
		compiled, err := jinja.Compile(template)
		if err != nil {
			t.Fatal(err)
		}
		var messages []any
		for _, m := range [][2]string{{"user", " q "}, {"assistant", "Ab, c."}} {
			d := jinja.NewDict()
			d.Set("role", m[0])
			d.Set("content", m[1])
			messages = append(messages, d)
		}
		values := map[string]any{"messages": messages}
		plain, err := compiled.Render(context.Background(), values)
		if err != nil {
			t.Fatalf("%s: %v", template, err)
		}
		trace, err := compiled.Trace(context.Background(), values)
		if err != nil || trace.Text != plain {
			t.Errorf("%s: traced %q, %v, want %q", template, trace.Text, err, plain)
		}
		if got := origins(trace); got != want {
			t.Errorf("%s: %s, want %s", template, got, want)
		}
	}
}

func TestTrace_NotesWhatALoopWroteForAMessage(t *testing.T) {
	compiled, err := jinja.Compile("{% for m in messages[1:] %}({{ m.role }}){% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	var messages []any
	for _, role := range []string{"system", "user", "assistant"} {
		d := jinja.NewDict()
		d.Set("role", role)
		messages = append(messages, d)
	}
	trace, err := compiled.Trace(context.Background(), map[string]any{"messages": messages})
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, m := range trace.Marks {
		if m.Kind == jinja.Turn {
			got += fmt.Sprint(m.Message, trace.Text[m.Start:m.End])
		}
	}
	if got != "1(user)2(assistant)" {
		t.Error(got)
	}
}
