package jinja_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"conquer/text/jinja"
)

// Each template is refused by a limit, and soon. A tenth of the usual steps shows theirs.
func TestTemplate_CostIsBounded(t *testing.T) {
	nested := func(open, middle, close string, n int) string {
		return strings.Repeat(open, n) + middle + strings.Repeat(close, n)
	}
	loops := func(body string) string {
		return "{% for i in range(99999) %}{% for j in range(99999) %}" + body +
			"{% endfor %}{% endfor %}"
	}
	kept := func(e string) string {
		return "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l, " +
			e + "] %}{% endfor %}"
	}
	manyNames := func(pattern string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, pattern, i)
		}
		return b.String()
	}
	pairs := jinja.NewDict()
	for i := range 20000 {
		pairs.Set(fmt.Sprint("k", i), i)
	}
	for name, c := range map[string]struct{ source, limit string }{
		"nested loops": {"{% for a in range(99999) %}{% for b in range(99999) %}{% " +
			"endfor %}{% endfor %}", "steps"},
		"empty loop bodies": {nested("{% for a in range(90000) %}", "", "{% endfor %}", 3),
			"steps"},
		"a long range": {"{{ range(100001)|length }}", "range"},
		"doubling a string": {"{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set " +
			"ns.s = ns.s ~ ns.s %}{% endfor %}", "bytes"},
		"repeating a string": {"{{ 'ab' * 99999999 }}", "bytes"},
		"repeating a list":   {"{{ ([1, 2] * 99999999)|length }}", "bytes"},
		"a large power":      {"{{ 9 ** 999999 }}", "bytes"},
		"a tower of powers":  {"{{ 9 ** 9 ** 9 ** 9 ** 9 ** 9 }}", "bytes"},
		"a wide format":      {"{{ '%999999999d' % 1 }}", "bytes"},
		"a wide field":       {"{{ '{:>999999999}'.format(1) }}", "bytes"},
		"a wide center":      {"{{ 'x'.center(999999999) }}", "bytes"},
		"a growing replace": {"{% set s = 'a' * 100000 %}{{ s.replace('a', s)|length }}",
			"bytes"},
		"a wide indent":     {"{{ 'x'|indent(999999999) }}", "bytes"},
		"an indented dump":  {"{{ [1]|tojson(indent=999999999) }}", "bytes"},
		"long output":       {"{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "bytes"},
		"endless recursion": {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "macro depth"},
		"a recursive loop": {"{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
			"macro depth"},
		"nested parentheses": {"{{ " + nested("(", "1", ")", 5000) + " }}", "nesting"},
		"nested lists":       {"{{ " + nested("[", "", "]", 5000) + " }}", "nesting"},
		"nested nots":        {"{{ " + strings.Repeat("not ", 5000) + "1 }}", "nesting"},
		"nested signs":       {"{{ " + strings.Repeat("-", 5000) + "1 }}", "nesting"},
		"nested ifs":         {nested("{% if 1 %}", "", "{% endif %}", 5000), "nesting"},
		"a long list":        {"{{ range(99999)|list|length }}{{ 'x' * 20000000 }}", "bytes"},
		"a list in itself": {"{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set " +
			"ns.l = [ns.l] %}{% endfor %}{{ ns.l }}", "nesting"},
		"comparing deep ones": {"{% set ns = namespace(a=[], b=[]) %}{% for i in range(5000) " +
			"%}{% set ns.a = [ns.a] %}{% set ns.b = [ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
			"nesting"},
		"sorting much": {"{% for i in range(99) %}{{ range(99999)|sort|first }}{% endfor %}",
			"steps"},
		"listing much": {
			"{% for i in range(99999) %}{{ range(99999)|list|first }}{% endfor %}", "steps"},
		"searching much": {"{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ " +
			"s.find('b') }}{% endfor %}", "steps"},
		"slicing much": {"{% set l = range(99999)|list %}{% for i in range(99999) %}{% " +
			"set x = l[1:] %}{% endfor %}", "steps"},
		"splitting much": {"{% set s = 'a ' * 99999 %}{% for i in range(99999) %}{% set x " +
			"= s.split() %}{% endfor %}", "steps"},
		"a wide batch":  {"{{ [1]|batch(99999999, 0)|list|length }}", "bytes"},
		"many slices":   {"{{ [1]|slice(99999999)|list|length }}", "bytes"},
		"long literals": {kept("[" + strings.Repeat("1,", 10000) + "]"), "steps"},
		"long conditions": {loops("{% if " + strings.Repeat("0 or ", 900) + "1 %}{% endif %}"),
			"steps"},
		"many statements": {loops(strings.Repeat("{% if 0 %}{% endif %}", 5000)), "steps"},
		"captured text": {kept("'x'") + loops("{% set x %}"+strings.Repeat("x", 500000)+
			"{% endset %}{% set ns.l = [ns.l, x] %}"), "steps"},
		"a long chain of or":      {"{{ " + strings.Repeat("1 or ", 5000) + "1 }}", "nesting"},
		"a long sum":              {"{{ " + strings.Repeat("1+", 5000) + "1 }}", "nesting"},
		"a long chain of calls":   {"{{ a" + strings.Repeat("()", 5000) + " }}", "nesting"},
		"a long chain of filters": {"{{ a" + strings.Repeat("|e", 5000) + " }}", "nesting"},
		"a long chain of members": {"{{ a" + strings.Repeat(".a", 5000) + " }}", "nesting"},
		"a long chain of items":   {"{{ a" + strings.Repeat("[0]", 5000) + " }}", "nesting"},
		"comparing much": {"{% set s = 'a' * 2000000 %}{% set t = 'a' * 2000000 %}" +
			loops("{% set x = s == t %}"), "steps"},
		"counting much": {"{% set s = 'a' * 9999999 %}" + loops("{% set x = s|length %}"), "steps"},
		"indexing much": {"{% set s = 'a' * 9999999 %}" + loops("{% set x = s[9999998] %}"),
			"steps"},
		"showing much": {"{% set s = 'a' * 99999 %}" + loops("{% set x = [s]|string %}"), "steps"},
		"parsing numbers much": {"{% set s = '1' * 99999 %}" + loops("{% set x = s|float %}"),
			"steps"},
		"large products": {"{% set n = 9 ** 15000 %}" + loops("{% set x = n * n // n %}"),
			"bytes"},
		"large quotients": {"{% set n = 9 ** 15000 %}" + loops("{% set x = n // 7 ** 9000 %}"),
			"steps"},
		"many dates":    {kept("strftime_now('%c' * 9999)"), "steps"},
		"a long date":   {"{{ strftime_now('%c' * 999999) }}", "bytes"},
		"escaping much": {kept("('<' * 99999)|forceescape"), "steps"},
		"copying dicts": {kept("dict(pairs)"), "steps"},
		"quoting much":  {kept("pairs|urlencode"), "steps"},
		"many keywords": {"{% macro f() %}{{ kwargs }}{% endmacro %}{{ f(**pairs) }}", "steps"},
		"many lines":    {"{{ ('\n' * 16000000)|indent|length }}", "bytes"},
		"many parts":    {"{{ ('a' * 16000000).split('a')|length }}", "bytes"},
		"many variables": {loops(manyNames("{%% if 0 %%}{%% set a%d = 1 %%}{%% endif %%}",
			5000)), "steps"},
		"a key in itself": {"{% set ns = namespace(t=(1,)) %}{% for i in range(60) %}{% set " +
			"ns.t = (ns.t, ns.t) %}{% endfor %}{{ {ns.t: 1} }}", "steps"},
		"a deep key": {"{% set ns = namespace(t=(1,)) %}{% for i in range(5000) %}{% set " +
			"ns.t = (ns.t,) %}{% endfor %}{{ {ns.t: 1} }}", "nesting"},
		"escaping what holds itself": {"{% set ns = namespace(t=(1,)) %}{% for i in range(60) " +
			"%}{% set ns.t = (ns.t, ns.t) %}{% endfor %}{{ ('%s'|safe) % (ns.t,) }}", "steps"},
		"texts of messages": {"{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set " +
			"ns.l = [ns.l, messages[0].content ~ i] %}{% endfor %}", "steps"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			template, err := jinja.Compile(c.source)
			if err == nil {
				if c.limit == "steps" {
					template.Limits.Steps /= 10
				}
				template.Limits.Time = time.Minute
				message := jinja.NewDict()
				message.Set("content", strings.Repeat("word ", 1000))
				_, err = template.Trace(t.Context(), map[string]any{"pairs": pairs,
					"messages": []any{message}})
			}
			var limit *jinja.LimitError
			if !errors.As(err, &limit) || limit.Limit != c.limit {
				t.Errorf("got %v, want the limit of %s", err, c.limit)
			}
			// Each takes some 0.1 s on a free core. A loaded machine may need much longer.
			if took := time.Since(began); took > time.Minute {
				t.Errorf("refused after %v", took)
			}
		})
	}
}

func TestTemplate_ContextCancelsARendering(t *testing.T) {
	template, err := jinja.Compile("{% for a in range(99999) %}{% for b in range(99999) %}{% " +
		"endfor %}{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	template.Limits.Steps = 1 << 40
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := template.Render(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestTemplate_TimeIsBounded(t *testing.T) {
	template, err := jinja.Compile("{% for a in range(99999) %}{% for b in range(99999) %}{% " +
		"endfor %}{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	template.Limits.Steps, template.Limits.Time = 1<<40, 20*time.Millisecond
	_, err = template.Render(t.Context(), nil)
	var limit *jinja.LimitError
	if !errors.As(err, &limit) || limit.Limit != "time" ||
		!strings.Contains(err.Error(), "20 milliseconds") {
		t.Errorf("got %v", err)
	}
}

func TestCompile_RefusesALongTemplate(t *testing.T) {
	_, err := jinja.Compile(strings.Repeat("x", 2<<20))
	if err == nil || !strings.Contains(err.Error(), "2097152 bytes, expected at most") {
		t.Errorf("got %v", err)
	}
}

// A message of n letters that a template joins letter by letter is one mark, not n² of them.
func TestTrace_JoinsTheLettersOfAMessage(t *testing.T) {
	template, err := jinja.Compile("{% set ns = namespace(s='') %}{% for c in " +
		"messages[0].content %}{% set ns.s = ns.s + c %}{% endfor %}{{ ns.s }}")
	if err != nil {
		t.Fatal(err)
	}
	message := jinja.NewDict()
	message.Set("content", strings.Repeat("word ", 2000))
	trace, err := template.Trace(t.Context(), map[string]any{"messages": []any{message}})
	if err != nil || len(trace.Text) != 10000 || len(trace.Marks) != 1 {
		t.Errorf("%d bytes, %d marks, %v", len(trace.Text), len(trace.Marks), err)
	}
}

func TestTemplate_GenerationSpansAreByteOffsets(t *testing.T) {
	template, err := jinja.Compile("{% for m in messages %}{{ m.role }}: " +
		"{% if m.role == 'a' %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% else " +
		"%}{{ m.content }}{% endif %}\n{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	message := func(role, content string) any {
		return map[string]any{"role": role,
			"content": content}
	}
	text, spans, err := template.RenderSpans(t.Context(), map[string]any{
		"messages": []any{message("u", "é?"), message("a", "ön"), message("u", "x"),
			message("a", "")},
	})
	if err != nil || !template.HasGeneration() {
		t.Fatal(err)
	}
	var got []string
	for _, s := range spans {
		got = append(got, text[s.Start:s.End])
	}
	if want := "[ön</s> </s>]"; fmt.Sprint(got) != want {
		t.Errorf("spans of %q are %v, want %s", text, got, want)
	}
}

func TestError_NamesTheLine(t *testing.T) {
	_, err := jinja.Compile("a\n{% if x %}\n{{ y| }}{% endif %}")
	if err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("compile: %v", err)
	}
	template, err := jinja.Compile("a\n\n{{ raise_exception('no role ' ~ role) }}")
	if err != nil {
		t.Fatal(err)
	}
	_, err = template.Render(t.Context(), map[string]any{"role": "x"})
	var failure *jinja.Error
	if !errors.As(err, &failure) || !failure.Raised || failure.Line != 3 ||
		failure.Message != "no role x" {
		t.Errorf("render: %+v", err)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, seed := range []string{
		"{% for m in messages %}{{ m.role }}{% endfor %}", "{{ 'a' ~ 1|string }}",
		"{% macro f(a, b=1) %}{{ a }}{% endmacro %}{{ f(2) }}",
		"{% set ns = namespace(x=1) %}{{ ns.x }}",
		"{{ messages[1:]|map(attribute='role')|list|tojson(indent=1) }}",
		"{{ '%5.2f' % 1.5 }}{{ '{:>4}'.format(1) }}",
		"{%- if a is not none and b in [1] -%}x{%- else -%}y{%- endif -%}",
		"{% filter upper %}a{% endfilter %}{% call f() %}{% endcall %}",
		"{% raw %}{{ }}{% endraw %}{# c #}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		template, err := jinja.Compile(source)
		if err == nil {
			template.Limits.Steps, template.Limits.Bytes = 5000, 1<<16
			_, err = template.Render(context.Background(), map[string]any{
				"messages": []any{map[string]any{"role": "user", "content": "é <b>"}}, "a": 1,
				"b": []any{1, 2.5, nil},
			})
		}
		if err != nil && strings.Contains(err.Error(), "internal error") {
			t.Fatal(err)
		}
	})
}

func BenchmarkTemplate_TenMessages(b *testing.B) {
	template, err := jinja.Compile(`{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|header|>system<|end|>\n\n" }}
{%- if tools is not none %}{{- "Environment: tools\n" }}{%- endif %}
{{- "Knowledge until: December 2023\nToday: " + date_string + "\n\n" }}
{{- system_message }}{{- "<|turn|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|header|>' + message['role'] + '<|end|>\n\n' +
            message['content'] | trim + '<|turn|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
                {{- raise_exception("one call at a time") }}
            {%- endif %}
    {%- elif message.role == "tool" %}
        {{- "<|header|>tool<|end|>\n\n" }}{{- message.content|tojson }}{{- "<|turn|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|end|>\n\n' }}{%- endif %}`)
	if err != nil {
		b.Fatal(err)
	}
	var messages []any
	for i := range 10 {
		m := jinja.NewDict()
		m.Set("role", []string{"user", "assistant"}[i%2])
		m.Set("content", "A sentence of a conversation, as long as people usually write.")
		messages = append(messages, m)
	}
	values := map[string]any{"messages": messages, "add_generation_prompt": true,
		"bos_token": "<s>", "tools": nil}
	for b.Loop() {
		if _, err := template.Render(context.Background(), values); err != nil {
			b.Fatal(err)
		}
	}
}
