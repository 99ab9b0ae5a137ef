package dataset

import (
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
)

// A record means what its values say: null, missing and empty fields are the same.
func TestLoad_ValuesTellTheLayout(t *testing.T) {
	tok := withSpecial(t, imTemplate)
	for _, c := range []struct{ record, want string }{
		{`{"messages":null,"instruction":"q","input":null,"output":"a"}`, "a<|im_end|>|"},
		{`{"messages":[],"instruction":"q","input":"","output":"a","text":"t"}`, "a<|im_end|>|"},
		{`{"messages":[{"role":"user","content":"q","name":null},{"role":"assistant",` +
			`"content":"a"}],` +
			`"instruction":null,"output":null}`, "a<|im_end|>|"},
		{`{"instruction":"","output":"","text":"t"}`, "</s>"},
		{`{"conversations":[{"from":"system","value":"s"},{"from":"human","value":"q"},` +
			`{"from":"gpt","value":"a"}]}`, "a<|im_end|>|"},
		{`{"conversations":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],` +
			`"system":"s"}`, "a<|im_end|>|"},
		{`{"prompt":"The lamp is ","completion":"lit."}`, "lit.</s>"},
		{`{"prompt":"[{\"role\":\"user\",\"content\":\"q\"}]","completion":"[{\"role\":` +
			`\"assistant\",\"content\":\"a\"}]"}`, "a<|im_end|>|"},
		{`{"prompt":"Numbers: ","completion":"[1,2]"}`, "[1,2]</s>"},
		{`{"prompt":"q","completion":[{"role":"assistant","content":"a"}]}`, "a<|im_end|>|"},
		{`{"messages":{"role":["user","assistant"],"content":["q","a"]}}`, "a<|im_end|>|"},
		{`{"messages":["{\"role\":\"user\",\"content\":\"q\"}",` +
			`"{\"role\":\"assistant\",\"content\":\"a\"}"]}`, "a<|im_end|>|"},
		{`{"messages":"[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",` +
			`\"content\":\"a\"}]"}`, "a<|im_end|>|"},
		{`{"messages":[{"role":"user","content":[{"type":"text","text":"q"}]},` +
			`{"role":"assistant",` +
			`"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}` +
			`]}`, "ab<|im_end|>|"},
		{`{"tools":[{"type":"function"}],"messages":[{"role":"user","content":"q"},{"role":` +
			`"assistant","content":null,"tool_calls":[{"function":{"name":"f","arguments":"{}"}}` +
			`]},` +
			`{"role":"tool","content":"1"},{"role":"assistant","content":"a"}]}`, "a<|im_end|>|"},
	} {
		d := mustLoad(t, writeTestFile(t, "a.jsonl", c.record), tok, Options{})
		if got := labeledText(tok, d.Samples[0]); d.Len() != 1 || !strings.HasSuffix(got, c.want) {
			t.Errorf("%s: learns %q, want %q", c.record, got, c.want)
		}
	}
}

func TestLoad_ToolsAndDocumentsReachTheTemplate(t *testing.T) {
	tok := withSpecial(t, "{% if tools %}{{ tools | tojson }}{% endif %}{% for d in documents "+
		"or [] %}"+
		"{{ d.title }}{% endfor %}{{ style }}{% for m in messages %}{{ m.role + ':' + m.content }}"+
		"{% endfor %}")
	const chat = `"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]`
	const tools = `[{"name": "f", "parameters": {"b": 1, "a": {}}}]`
	defaults := Options{}
	defaults.Inputs.Tools = []byte(tools)
	defaults.Inputs.Kwargs = []byte(`{"style":"X"}`)
	for record, c := range map[string]struct {
		o    Options
		want string
	}{
		`{` + chat + `,"tools":` + tools + `}`: {Options{}, tools + "user:qassistant:a"},
		`{` + chat + `,"tools":"[{\"name\":\"f\",\"parameters\":{\"b\":1,\"a\":{}}}]"}`: {Options{},
			tools + "user:qassistant:a"},
		`{` + chat + `,"documents":[{"title":"D"}],` +
			`"chat_template_kwargs":{"style":"Y"}}`: {Options{},
			"DYuser:qassistant:a"},
		`{` + chat + `}`: {defaults, tools + "Xuser:qassistant:a"},
		`{` + chat + `,"tools":[],"chat_template_kwargs":{"style":"Y"}}`: {defaults,
			tools + "Yuser:qassistant:a"},
		`{"instruction":"q","output":"a","chat_template_kwargs":{"style":"Z"}}`: {Options{},
			"Zuser:qassistant:a"},
	} {
		d := mustLoad(t, writeTestFile(t, "a.jsonl", record), tok, c.o)
		if got := tok.Decode(d.Samples[0].IDs, false); got != c.want {
			t.Errorf("%s: %q, want %q", record, got, c.want)
		}
	}
	none := `{` + chat + `,"tools":"null","documents":"null"}`
	d := mustLoad(t, writeTestFile(t, "a.jsonl", none), tok, Options{})
	if got := tok.Decode(d.Samples[0].IDs, false); got != "user:qassistant:a" {
		t.Errorf("%s: %q", none, got)
	}
	for record, want := range map[string]string{
		`{` + chat + `,"tools":{"a":1}}`: "a.jsonl:1: tools is {\"a\":1}, expected a list of " +
			"objects",
		`{` + chat + `,"chat_template_kwargs":{"messages":1}}`: "chat_template_kwargs cannot set " +
			"messages",
		`{"messages":[{"from":"robot","value":"x"}]}`: `a.jsonl:1: message 0: from is "robot"`,
		`{"messages":[{"role":"user","content":[{"type":"image"}]}]}`: "message 0: part 0 of " +
			"content is",
		`{"messages":{"role":["user"],"content":[]}}`: `field "messages" is an object of lists ` +
			`that have 1 and 0 values`,
		`{"prompt":"q","completion":[{"role":"user","content":"a"}]}`: `none of the messages in ` +
			`"completion" has the role "assistant"`,
		`null`: "expected an object, got null",
	} {
		_, err := Load(writeTestFile(t, "a.jsonl", record), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", record, err, want)
		}
	}
}

// The same table as JSON lines, Arrow and Parquet gives the same samples.
func TestLoad_ColumnsOfEveryTypeEqualLines(t *testing.T) {
	tok := withSpecial(t, "{{ tools | tojson }}{{ messages[0].when }}{{ messages[1].when }}"+
		thinkTemplate)
	text := arrow.BinaryTypes.String
	call := arrow.ListOf(arrow.StructOf(column("id", text), column("function", arrow.StructOf(
		column("name", text), column("arguments", arrow.StructOf(column("x",
			arrow.PrimitiveTypes.Int64),
			column("y", arrow.PrimitiveTypes.Float64), column("z",
				arrow.FixedWidthTypes.Boolean)))))))
	message := func(text arrow.DataType, list func(arrow.DataType) arrow.DataType) arrow.DataType {
		return list(arrow.StructOf(column("role", text), column("content", text),
			column("tool_calls", call), column("weight", arrow.PrimitiveTypes.Float64),
			column("when", arrow.FixedWidthTypes.Timestamp_us)))
	}
	list := func(t arrow.DataType) arrow.DataType { return arrow.ListOf(t) }
	large := func(t arrow.DataType) arrow.DataType { return arrow.LargeListOf(t) }
	rows := []string{
		`{"messages":[{"role":"user","content":"q","when":"2024-07-06T13:05:09+00:00"},` +
			`{"role":"assistant","content":null,"when":"2024-07-06T13:05:09.250000+00:00",` +
			`"tool_calls":[` +
			`{"id":"1","function":{"name":"f","arguments":{"x":1,"y":2.0}}},{"id":null,` +
			`"function":` +
			`{"name":"g","arguments":{"z":true}}}]},{"role":"tool","content":"r",` +
			`"tool_calls":[]},` +
			`{"role":"assistant","content":"a","weight":1}],"instruction":null,"tools":null}`,
		`{"messages":null,"instruction":"i","output":"o","tools":"[{\"name\":\"t\"}]"}`,
		`{"messages":[],"instruction":"i","output":"p","input":"x"}`,
	}
	want := mustLoad(t, writeTestFile(t, "d.jsonl", strings.Join(rows, "\n")), tok, Options{})
	if want.Len() != 3 {
		t.Fatal(want.Report)
	}
	batches := []string{"[" + rows[0] + "," + rows[1] + "]", "[" + rows[2] + "]"}
	for _, messages := range []arrow.DataType{message(text, list),
		message(arrow.BinaryTypes.LargeString, large)} {
		schema := schemaOf(column("id", arrow.FixedWidthTypes.Timestamp_s),
			column("messages", messages), column("instruction", text),
			column("output", arrow.BinaryTypes.LargeString), column("input", text),
			column("tools", text))
		for name, data := range map[string][]byte{
			"d.arrow":   arrowBytes(t, false, schema, batches...),
			"s.arrow":   arrowBytes(t, true, schema, batches...),
			"d.parquet": parquetBytes(t, schema, batches...)} {
			got := mustLoad(t, writeTestFile(t, name, string(data)), tok, Options{})
			sameSamples(t, name, got, want)
		}
	}
	maps := schemaOf(column("messages", arrow.ListOf(arrow.MapOf(text, text))))
	want = mustLoad(t, writeTestFile(t, "d.jsonl", `{"messages":[{"role":"user","content":"q"},`+
		`{"role":"assistant","content":"a"}]}`), tok, Options{})
	batches = []string{`[{"messages":[[{"key":"role","value":"user"},{"key":"content",` +
		`"value":"q"},{"key":"name","value":null}],[{"key":"content","value":"a"},{"key":"role",` +
		`"value":"assistant"}]]}]`}
	for name, data := range map[string][]byte{
		"d.arrow":   arrowBytes(t, false, maps, batches...),
		"d.parquet": parquetBytes(t, maps, batches...)} {
		sameSamples(t, "maps in "+name, mustLoad(t, writeTestFile(t, name, string(data)), tok,
			Options{}), want)
	}
	schema := schemaOf(column("text", arrow.FixedWidthTypes.Time32s))
	for name, data := range map[string][]byte{
		"d.arrow":   arrowBytes(t, false, schema, `[{"text":"13:05:09"}]`),
		"d.parquet": parquetBytes(t, schema, `[{"text":"13:05:09"}]`)} {
		_, err := Load(writeTestFile(t, name, string(data)), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), name+`: row 1: column "text": `) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoad_DictionariesAndEmptyPagesAreRead(t *testing.T) {
	tok := withSpecial(t, imTemplate)
	words := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32,
		ValueType: arrow.BinaryTypes.String}
	rows := []string{`{"prompt":"a","completion":"b"}`, `{"prompt":"a","completion":"c"}`}
	want := mustLoad(t, writeTestFile(t, "d.jsonl", strings.Join(rows, "\n")), tok, Options{})
	schema := schemaOf(column("prompt", words), column("completion", arrow.BinaryTypes.String))
	data := arrowBytes(t, false, schema, "["+strings.Join(rows, ",")+"]")
	sameSamples(t, "dictionary", mustLoad(t, writeTestFile(t, "d.arrow", string(data)), tok,
		Options{}), want)

	// pyarrow wrote this file of 7 chats with pages of one value. Some of its pages are empty.
	d := mustLoad(t, "testdata/empty-pages.parquet", tok, Options{})
	if got := labeledText(tok, d.Samples[len(d.Samples)-1]); d.Len() != 7 ||
		got != "a6<|im_end|>|" {
		t.Errorf("%s: %q", d.Report, got)
	}
}
