package dataset

import (
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
)

func columnsOf(t testing.TB, list string) *Columns {
	t.Helper()
	c, err := ParseColumns(strings.Split(list, ","))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseColumns_RefusesWhatItCannotMean(t *testing.T) {
	for text, want := range map[string]string{
		"instruction":       "expected NAME=COLUMN",
		"=a":                "expected NAME=COLUMN",
		"output=":           "expected NAME=COLUMN",
		"question=a":        "known are messages",
		"output=a,output=b": "given twice",
		"output=a,input=a":  "stands for both",
	} {
		if _, err := ParseColumns(strings.Split(text, ",")); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	c := columnsOf(t, " messages = dialog=x,role=who,content=who")
	if len(c.names) != 3 || c.names["messages"] != " dialog=x" {
		t.Errorf("%v", c)
	}
}

// The columns of every format are renamed alike.
func TestLoad_ColumnsAreMapped(t *testing.T) {
	tok := chars(t, chatML)
	text := func(names ...string) *arrow.Schema {
		var fields []arrow.Field
		for _, n := range names {
			fields = append(fields, column(n, arrow.BinaryTypes.String))
		}
		return schemaOf(fields...)
	}
	row := `{"question":"Q","context":"C","answer":"A","text":"not this","output":null}`
	want := mustLoad(t, writeTestFile(t, "want.jsonl",
		`{"instruction":"Q","input":"C","output":"A"}`), tok, Options{})
	schema := text("question", "context", "answer", "text", "output")
	for name, data := range map[string]string{
		"a.jsonl":   row + "\n",
		"a.json":    "[" + row + "]",
		"a.csv":     "question,context,answer,text,output\nQ,C,A,not this,\n",
		"a.tsv":     "question\tcontext\tanswer\nQ\tC\tA\n",
		"a.arrow":   string(arrowBytes(t, false, schema, "["+row+"]")),
		"b.arrow":   string(arrowBytes(t, true, schema, "["+row+"]")),
		"a.parquet": string(parquetBytes(t, schema, "["+row+"]")),
	} {
		path := writeTestFile(t, name, data)
		opts := Options{Columns: columnsOf(t, "instruction=question,input=context,output=answer")}
		sameSamples(t, name, readAll(t, mustLoad(t, path, tok, opts)), readAll(t, want))
		opts.Columns = columnsOf(t, "instruction=question,input=contxt,output=answer")
		_, err := Load(path, tok, opts)
		if err == nil || !strings.Contains(err.Error(), `no column "contxt"`) ||
			!strings.Contains(err.Error(), `"context"`) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		opts.Columns = columnsOf(t, "instruction=question,input=context,output=answr")
		if _, err = Load(path, tok, opts); err == nil ||
			!strings.Contains(err.Error(), `no column "answr"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file without any of the mapped columns is another data set, which may have other names. A
// column that none of the files has is named.
func TestLoad_ColumnsOfOneOfSeveralDataSets(t *testing.T) {
	own := writeTestFile(t, "a.jsonl", `{"instruction":"Q","output":"A"}`)
	other := writeTestFile(t, "b.csv", "question,answer\nQ,A\n")
	c := columnsOf(t, "instruction=question,output=answer")
	mustLoad(t, writeTestFile(t, "a.txt", "a text"), chars(t, ""), Options{Columns: c})
	if err := c.Unused(); err == nil || !strings.Contains(err.Error(), "has no columns") {
		t.Error(err)
	}
	want := mustLoad(t, own, chars(t, chatML), Options{Columns: c})
	if err := c.Unused(); err == nil || !strings.Contains(err.Error(), `no column "question"`) ||
		!strings.Contains(err.Error(), `"output"`) {
		t.Error(err)
	}
	sameSamples(t, other, mustLoad(t, other, chars(t, chatML), Options{Columns: c}), want)
	if err := c.Unused(); err != nil {
		t.Error(err)
	}
}

func TestLoad_MappedTokensAreIDs(t *testing.T) {
	want := readAll(t, mustLoad(t, writeTestFile(t, "a.jsonl", `{"tokens":[65,66,67]}`),
		chars(t, ""), Options{}))
	schema := schemaOf(column("input_ids", arrow.ListOf(arrow.PrimitiveTypes.Int64)))
	documents := schemaOf(column("input_ids", arrow.PrimitiveTypes.Int64))
	for name, data := range map[string]string{
		"a.jsonl":   `{"input_ids":[65,66,67]}`,
		"a.csv":     "input_ids\n\"[65,66,67]\"\n",
		"a.arrow":   string(arrowBytes(t, false, schema, `[{"input_ids":[65,66,67]}]`)),
		"a.parquet": string(parquetBytes(t, schema, `[{"input_ids":[65,66,67]}]`)),
		"b.arrow": string(arrowBytes(t, false, documents,
			`[{"input_ids":65},{"input_ids":66},{"input_ids":67}]`)),
	} {
		d := mustLoad(t, writeTestFile(t, name, data), chars(t, ""),
			Options{Columns: columnsOf(t, "tokens=input_ids")})
		sameSamples(t, name, readAll(t, d), want)
	}
}

// A record that lacks a mapped column may have the field under its own name, and swapped names do
// not replace each other.
func TestLoad_MappedAndOwnNamesMix(t *testing.T) {
	tok := chars(t, chatML)
	d := mustLoad(t, writeTestFile(t, "a.jsonl", `{"question":"1","output":"2"}
{"instruction":"1","output":"2"}
`), tok, Options{Columns: columnsOf(t, "instruction=question")})
	s := readAll(t, d).Samples
	if len(s) != 2 || fmt.Sprint(s[0]) != fmt.Sprint(s[1]) {
		t.Errorf("%v", s)
	}
	d = mustLoad(t, writeTestFile(t, "a.jsonl", `{"output":"1","instruction":"2"}`), tok,
		Options{Columns: columnsOf(t, "instruction=output,output=instruction")})
	if swapped := readAll(t, d).Samples; fmt.Sprint(swapped[0]) != fmt.Sprint(s[0]) {
		t.Errorf("%v, want %v", swapped, s[0])
	}
}

func TestLoad_FieldsOfMessagesAreMapped(t *testing.T) {
	tok := chars(t, chatML)
	want := readAll(t, mustLoad(t, writeTestFile(t, "a.jsonl", `{"messages":[{"role":"user",`+
		`"content":"Q"},{"role":"assistant","content":"A"}]}`), tok, Options{}))
	for data, columns := range map[string]string{
		`{"dialog":[{"who":"human","says":"Q"},{"who":"gpt","says":"A"}]}`:      "",
		`{"dialog":[{"who":"user","says":"Q"},{"who":"assistant","says":"A"}]}`: "",
		`{"dialog":{"who":["user","bot"],"says":["Q","A"]}}`:                    "",
		`{"dialog":"[{\"who\":\"user\",\"says\":\"Q\"},` +
			`{\"who\":\"bot\",\"says\":\"A\"}]"}`: "",
		`{"dialog":[{"who":"user","content":"Q"},` +
			`{"who":"gpt","content":"A"}]}`: "messages=dialog,role=who",
		`{"dialog":[{"role":"user","says":"Q","content":"-"},{"role":"assistant","says":"A",` +
			`"content":"-"}]}`: "messages=dialog,content=says",
		`{"messages":[{"role":"x","who":"user","says":"Q"},` +
			`{"role":"x","who":"gpt","says":"A"}]}`: "role=who,content=says",
	} {
		if columns == "" {
			columns = "messages=dialog,role=who,content=says"
		}
		d := mustLoad(t, writeTestFile(t, "a.jsonl", data), tok,
			Options{Columns: columnsOf(t, columns)})
		sameSamples(t, data, readAll(t, d), want)
	}
}

// A mask and reasoning may have other names too.
func TestLoad_MasksAndReasoningAreMapped(t *testing.T) {
	tok := withSpecial(t, thinkTemplate)
	const chat = `{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A",` +
		`"train":false},{"role":"user","content":"R"},{"role":"assistant","content":"B",` +
		`"reasoning_content":"why"}]}`
	want := readAll(t, mustLoad(t, writeTestFile(t, "a.jsonl", chat), tok, Options{}))
	if text := tok.Decode(want.Samples[0].IDs, false); !strings.Contains(text, "why") {
		t.Fatalf("the template does not show the reasoning: %s", text)
	}
	d := mustLoad(t, writeTestFile(t, "a.jsonl", strings.NewReplacer("train", "learn",
		"reasoning_content", "thoughts").Replace(chat)), tok,
		Options{Columns: columnsOf(t, "train=learn,reasoning_content=thoughts")})
	sameSamples(t, "mapped", readAll(t, d), want)
}

func TestLoad_SkipsBadRecordsAndNamesThem(t *testing.T) {
	tok := chars(t, chatML)
	var lines []string
	for i := range 700 {
		lines = append(lines, fmt.Sprintf(`{"instruction":"%d","output":"A"}`, i))
	}
	good := readAll(t, mustLoad(t, writeTestFile(t, "a.jsonl", strings.Join(lines, "\n")), tok,
		Options{}))
	for at, bad := range map[int]string{
		3: `{"instruction":"no end`, 40: `{"instruction":7,"output":"A"}`,
		300: "{\"text\":\"\xff\"}", 301: `{"other":1}`, 302: `[]`, 303: `{"messages":[]}`,
		650: `null`,
	} {
		lines[at] = bad
	}
	path := writeTestFile(t, "a.jsonl", strings.Join(lines, "\n"))
	if _, err := Load(path, tok, Options{}); err == nil {
		t.Fatal("bad records are read")
	}
	d := mustLoad(t, path, tok, Options{SkipBad: true})
	if d.Report.Bad != 7 || d.Report.Records != 693 ||
		!strings.Contains(d.Report.String(), "7 bad records skipped") {
		t.Errorf("%s", d.Report)
	}
	if len(d.Bad) != maxBad {
		t.Fatalf("%q", d.Bad)
	}
	for i, line := range []string{":4: not JSON", ":41: field", ":301: not text", ":302: no known",
		":303: expected an object"} {
		if !strings.Contains(d.Bad[i], path+line) {
			t.Errorf("%s, want line %s", d.Bad[i], line)
		}
	}
	var want []Sample
	for i, s := range good.Samples {
		if lines[i] == fmt.Sprintf(`{"instruction":"%d","output":"A"}`, i) {
			want = append(want, s)
		}
	}
	sameSamples(t, "the others", readAll(t, d), &Dataset{Samples: want})
	both := new(Dataset)
	both.Append(d)
	both.Append(d)
	if both.Report.Bad != 14 || len(both.Bad) != maxBad {
		t.Errorf("%d, %q", both.Report.Bad, both.Bad)
	}

	d = mustLoad(t, writeTestFile(t, "a.csv", "instruction,output\na,b\nc\nd,e\n"), tok,
		Options{SkipBad: true})
	if d.Report.Bad != 1 || d.Len() != 2 || !strings.Contains(d.Bad[0], "a.csv:3: 1 field") {
		t.Errorf("%s, %q", d.Report, d.Bad)
	}
}

// Skipping is for single records: a file of which none can be read, a file that cannot be read on,
// and a tokenizer that cannot render chats are errors.
func TestLoad_SkippingDoesNotHideOtherErrors(t *testing.T) {
	chat := `{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}`
	for _, c := range []struct{ name, data, template, want string }{
		{"a.jsonl", "x\ny\n", chatML, "2 bad records skipped): "},
		{"a.json", `[{"text":"a"}, oops]`, chatML, "a.json:1"},
		{"a.csv", "text\na\n\"b", chatML, "quoted field"},
		{"a.jsonl", `{"text":"a"}` + "\n" + chat, "", "chat template"},
	} {
		_, err := Load(writeTestFile(t, c.name, c.data), chars(t, c.template),
			Options{SkipBad: true})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.data, err, c.want)
		}
	}
}

func FuzzLoad_Columns(f *testing.F) {
	f.Add("messages=d,role=r,content=c", `{"d":[{"r":"human","c":"a"},{"r":"gpt","c":"b"}]}`)
	f.Add("instruction=q,output=a", `{"q":"1","a":"2"}`)
	f.Add("messages=d,role=r", `{"d":{"r":["user"],"content":["a"]}}`)
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, list, record string) {
		columns, err := ParseColumns(strings.Split(list, ","))
		if err != nil {
			return
		}
		opts := Options{Columns: columns, SkipBad: true, MaxLength: 64,
			prompts: new(promptCache)}
		r, err := parseRecord([]byte(record), opts, columns.checker())
		if err != nil {
			return
		}
		e, err := r.encode(tok, opts)
		for _, s := range e.samples {
			if err == nil && len(s.IDs) != len(s.Labels) {
				t.Errorf("%d ids, %d labels", len(s.IDs), len(s.Labels))
			}
		}
	})
}
