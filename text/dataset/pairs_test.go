package dataset

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"conquer/text/tokenizer"
)

// pairTexts returns the two texts of a pair and the labeled part of each.
func pairTexts(tok *tokenizer.Tokenizer, s Sample) (texts, learn [2]string) {
	for i, part := range []Sample{{IDs: s.IDs[:s.Second], Labels: s.Labels[:s.Second]},
		{IDs: s.IDs[s.Second:], Labels: s.Labels[s.Second:]}} {
		texts[i], learn[i] = tok.Decode(part.IDs, false), labeledText(tok, part)
	}
	return texts, learn
}

// Every way to write the pair gives the same sample.
func TestLoad_PairsLabelOnlyTheAnswers(t *testing.T) {
	const user, yes, no = `{"role":"user","content":"q"}`, `{"role":"assistant","content":"yes"}`,
		`{"role":"assistant","content":"no"}`
	for _, c := range []struct{ template, record string }{
		{"", `{"prompt":"q","chosen":"yes","rejected":"no"}`},
		{"", `{"prompt":[` + user + `],"chosen":[` + yes + `],"rejected":"no"}`},
		{chatML, `{"prompt":"q","chosen":"yes","rejected":"no","score":3}`},
		{chatML, `{"prompt":[` + user + `],"chosen":[` + yes + `],"rejected":[` + no + `]}`},
		{chatML, `{"chosen":[` + user + `,` + yes + `],"rejected":[` + user + `,` + no + `]}`},
		{chatML, `{"prompt":"q","messages":[` + user + `,` + yes + `],"chosen":[` + user + `,` +
			yes + `],"rejected":[` + user + `,` + no + `]}`},
	} {
		tok := chars(t, c.template)
		d := mustLoad(t, writeTestFile(t, "pairs.jsonl", c.record), tok,
			Options{Layout: Preference})
		if d.Len() != 1 {
			t.Fatalf("%s: %s", c.record, d.Report)
		}
		texts, learn := pairTexts(tok, d.Samples[0])
		for i, answer := range []string{"yes", "no"} {
			want := "<user>q\x03\n<assistant>" + answer + "\x03\n"
			if c.template == "" {
				want = "\x02" + fmt.Sprintf(alpacaPrompt, "q") + answer + "\x03"
			}
			if texts[i] != want || strings.TrimSuffix(learn[i], "|") != answer+"\x03" {
				t.Errorf("%s: text %d is %q and learns %q", c.record, i, texts[i], learn[i])
			}
		}
		if d.Report.Targets != len("yes")+len("no")+2 {
			t.Errorf("%s: %s", c.record, d.Report)
		}
	}
}

func TestBatcher_PairsAreTwoSegments(t *testing.T) {
	tok := chars(t, chatML)
	var file strings.Builder
	for i, pair := range [][2]string{{"ab", "c"}, {"same", "same"}, {strings.Repeat("x", 40), "y"},
		{"d", "ef"}, {"cut off" + strings.Repeat("z", 40), "cut off" + strings.Repeat("z", 50)}} {
		fmt.Fprintf(&file, `{"prompt":"%d","chosen":%q,"rejected":%q}`+"\n", i, pair[0], pair[1])
	}
	path := writeTestFile(t, "pairs.jsonl", file.String())
	d, err := Load(path, tok, Options{Layout: Preference, MaxLength: 30})
	if err != nil {
		t.Fatal(err)
	}
	if d.Len() != 3 || d.Report.Dropped != 2 || d.Report.Truncated != 2 {
		t.Fatalf("%s", d.Report)
	}
	for _, pack := range []bool{false, true} {
		b, err := NewBatcher(d, BatchOptions{Rows: 4, Length: 100, Pack: pack, InOrder: true})
		if err != nil {
			t.Fatal(err)
		}
		batch := mustNext(t, b)
		seen := map[uint32]bool{}
		for r, sources := range batch.Sources {
			segment, at := int32(0), r*batch.Length
			for _, i := range sources {
				seen[i] = true
				s, err := d.At(int(i))
				if err != nil {
					t.Fatal(err)
				}
				for k, end := range s.Ends() {
					segment++
					for p := []int{0, s.Second}[k]; p < end; p++ {
						want := int32(p - []int{0, s.Second}[k])
						if batch.IDs[at+p] != s.IDs[p] || batch.Positions[at+p] != want ||
							batch.Segments[at+p] != segment || want == 0 &&
							batch.Labels[at+p] != IgnoreLabel {
							t.Fatalf("pack %v: row %d, token %d of sample %d is %d at position "+
								"%d of segment %d", pack, r, p, i, batch.IDs[at+p],
								batch.Positions[at+p], batch.Segments[at+p])
						}
					}
				}
				at += len(s.IDs)
			}
			if !pack && len(sources) > 1 {
				t.Errorf("row %d has the samples %v", r, sources)
			}
		}
		if len(seen) != 3 || batch.Samples != 3 {
			t.Errorf("pack %v: %d samples, %v", pack, batch.Samples, seen)
		}
	}
}

func TestLoad_PairsInColumnsEqualThoseInLines(t *testing.T) {
	tok := chars(t, chatML)
	text := arrow.BinaryTypes.String
	row := func(prompt, chosen, rejected string) string {
		message := `[{"role":"user","content":"%s"},{"role":"assistant","content":"%s"}]`
		return fmt.Sprintf(`{"prompt":%q,"chosen":`+message+`,"rejected":`+message+`}`, prompt,
			prompt, chosen, prompt, rejected)
	}
	for _, c := range []struct {
		schema *arrow.Schema
		rows   []string
	}{
		{schemaOf(column("score", arrow.PrimitiveTypes.Float64), column("prompt", text),
			column("chosen", text), column("rejected", text)),
			[]string{`{"prompt":"a","chosen":"b","rejected":"c","score":1.5}`,
				`{"prompt":"d","chosen":"e","rejected":"f"}`}},
		{schemaOf(column("prompt", text), column("chosen", messagesType),
			column("rejected", messagesType)), []string{row("a", "b", "c"), row("d", "e", "f")}},
	} {
		o := Options{Layout: Preference}
		want := mustLoad(t, writeTestFile(t, "d.jsonl", strings.Join(c.rows, "\n")), tok, o)
		for name, data := range map[string][]byte{"d.arrow": arrowBytes(t, false, c.schema,
			"["+strings.Join(c.rows, ",")+"]"), "d.parquet": parquetBytes(t, c.schema,
			"["+strings.Join(c.rows, ",")+"]")} {
			got := mustLoad(t, writeTestFile(t, name, string(data)), tok, o)
			sameSamples(t, name, got, want)
			if got.Report.Samples != 2 || got.Samples[1].Second != want.Samples[1].Second {
				t.Errorf("%s: %s", name, got.Report)
			}
		}
	}
}

func TestLoad_PairErrorsNameFileLineAndExpectation(t *testing.T) {
	const good = `{"prompt":"q","chosen":"yes","rejected":"no"}` + "\n"
	for record, want := range map[string]string{
		`{"chosen":"yes","rejected":"no"}`: `field "prompt" is missing`,
		`{"prompt":"q","chosen":"yes"}`:    `no known layout has the fields ["chosen" "prompt"]`,
		`{"text":"x"}`: `a record of ` +
			`layout text, expected a pair`,
		`{"prompt":"q","chosen":3,"rejected":"no"}`: `field ` +
			`"chosen" is 3, expected a list`,
		`{"prompt":"q","chosen":[],"rejected":"no"}`: `field ` +
			`"chosen" is empty`,
		`{"prompt":"q","chosen":"yes","rejected":[{"role":"user"}]}`: `message 0: ` +
			`content is missing`,
		`{"chosen":[{"role":"user","content":"a"}],"rejected":"no","prompt":""}`: "other does not",
		`{"chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"rejected":` +
			`[{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}`: `with the same`,
		`{`: `not JSON`,
	} {
		_, err := Load(writeTestFile(t, "a.jsonl", good+record), chars(t, chatML),
			Options{Layout: Preference})
		if err == nil || !strings.Contains(err.Error(), "a.jsonl:2: ") ||
			!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", record, err, want)
		}
	}
	if _, err := Load(writeTestFile(t, "a.jsonl", good), chars(t, chatML), Options{}); err == nil ||
		!strings.Contains(err.Error(), "a.jsonl:1: the record is a pair of answers") {
		t.Errorf("a pair in place of a sample: %v", err)
	}
	long := `{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},` +
		`{"role":"user","content":"c"}],"chosen":"d","rejected":"e"}`
	if _, err := Load(writeTestFile(t, "a.jsonl", long), chars(t, ""),
		Options{Layout: Preference}); err == nil ||
		!strings.Contains(err.Error(),
			"a.jsonl:1: a chat needs a tokenizer with a chat template") {
		t.Errorf("a chat without a template: %v", err)
	}
}

func TestLoad_RatedAnswersHaveLabels(t *testing.T) {
	tok := chars(t, "")
	for name, c := range map[string]struct{ file, content string }{
		"strings": {"rated.jsonl", `{"prompt":"q","completion":"yes","label":true}` + "\n" +
			`{"prompt":"q","completion":"no","label":false,"score":3}`},
		"numbers": {"rated.jsonl", `{"prompt":"q","completion":"yes","label":1}` + "\n" +
			`{"prompt":"q","completion":"no","label":0}`},
		"table": {"rated.csv", "label,completion,prompt,more\nTrue,yes,q,x\nfalse,no,q,y"},
	} {
		d := mustLoad(t, writeTestFile(t, c.file, c.content), tok, Options{Layout: Rated})
		if d.Rated() != 2 || d.Pairs() != 0 ||
			!strings.HasPrefix(d.Report.String(), "2 rated answers from 2 records") {
			t.Fatalf("%s: %s", name, d.Report)
		}
		for i, want := range []struct {
			text, learn string
			rating      Rating
		}{{"\x02qyes\x03", "yes\x03", Desirable}, {"\x02qno\x03", "no\x03", Undesirable}} {
			s := d.Samples[i]
			if text := tok.Decode(s.IDs, false); text != want.text || s.Rating != want.rating ||
				strings.TrimSuffix(labeledText(tok, s), "|") != want.learn {
				t.Errorf("%s: sample %d is %q, learns %q and is rated %d", name, i, text,
					labeledText(tok, s), s.Rating)
			}
		}
	}
	// A pair is two answers, and messages follow the template.
	d := mustLoad(t, writeTestFile(t, "pairs.jsonl",
		`{"prompt":"q","chosen":"yes","rejected":"no"}`+"\n"+
			`{"prompt":[{"role":"user","content":"q"}],"label":false,`+
			`"completion":[{"role":"assistant","content":"no"}]}`),
		chars(t, chatML), Options{Layout: Rated})
	if d.Len() != 3 || d.Rated() != 3 || d.Samples[0].Rating != Desirable ||
		d.Samples[1].Rating != Undesirable || d.Samples[0].Second != 0 ||
		!slices.Equal(d.Samples[1].IDs, d.Samples[2].IDs) ||
		!slices.Equal(d.Samples[1].Labels, d.Samples[2].Labels) {
		t.Errorf("pairs become %+v", d.Samples)
	}
	for line, want := range map[string]string{
		`{"prompt":"q","completion":"a"}`:                 "expected a rated answer",
		`{"prompt":"q","completion":"a","label":null}`:    "expected a rated answer",
		`{"prompt":"q","completion":"a","label":"maybe"}`: `field "label" is "maybe"`,
		`{"prompt":"q","completion":"a","label":0.5}`:     `field "label" is 0.5`,
		`{"text":"q"}`: "a record of layout text, expected a rated answer",
	} {
		_, err := Load(writeTestFile(t, "bad.jsonl", line), tok, Options{Layout: Rated})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// A split and a file read later keep the ratings and their number.
func TestSplit_KeepsRatings(t *testing.T) {
	var file strings.Builder
	for i := range 10 {
		fmt.Fprintf(&file, `{"prompt":"%d","completion":"a","label":%v}`+"\n", i, i%2 == 0)
	}
	d, err := Load(writeTestFile(t, "rated.jsonl", file.String()), chars(t, ""),
		Options{Layout: Rated})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if layouts := d.Files[0].Layouts; layouts[Rated] != 10 || len(layouts) != 1 {
		t.Errorf("the records are %v", layouts)
	}
	train, valid, err := d.Split(3, 1)
	if err != nil || train.Rated() != 7 || valid.Rated() != 3 {
		t.Fatalf("%d and %d of 10 samples are rated, %v", train.Rated(), valid.Rated(), err)
	}
}

func TestMismatched_TakesAnotherPromptsAnswer(t *testing.T) {
	text := func(prompt, answer string) Sample {
		var s Sample
		for i, r := range prompt + answer {
			s.IDs, s.Labels = append(s.IDs, r), append(s.Labels, r)
			if i < len(prompt) {
				s.Labels[i] = IgnoreLabel
			}
		}
		s.Rating = Desirable
		return s
	}
	spelled := func(s Sample) (text string) {
		for i, id := range s.IDs {
			if i > 0 && s.Labels[i] != IgnoreLabel && s.Labels[i-1] == IgnoreLabel {
				text += "|"
			}
			text += string(rune(id))
		}
		return text
	}
	d := &Dataset{Samples: []Sample{
		text("p", "abcde"), text("p", "b"), text("qq", "c"), text("qq", "d"), text("r", "e"),
		text("p", "f"),
	}}
	d.Samples[1].Rating = Undesirable
	m, err := NewMismatched(d, 4)
	if err != nil || m.Desirable() != 5 {
		t.Fatalf("%d desirable, %v", m.Desirable(), err)
	}
	want := []string{"p|e", "p|e", "qq|b", "qq|b", "r|d", "p|e"}
	for i, want := range want {
		s, err := m.At(i)
		if err != nil || spelled(s) != want {
			t.Errorf("sample %d gives %q, expected %q (%v)", i, spelled(s), want, err)
		}
	}
	// The longest answer is cut where the text ends.
	d.Samples = d.Samples[:3]
	if m, err = NewMismatched(d, 4); err != nil {
		t.Fatal(err)
	}
	if s, err := m.At(0); err != nil || spelled(s) != "p|c" {
		t.Errorf("around the end: %q, %v", spelled(s), err)
	}
	d.Samples[1].IDs[0] = 'x'
	if m, err = NewMismatched(d, 4); err != nil {
		t.Fatal(err)
	}
	if s, err := m.At(1); err != nil || spelled(s) != "x|abc" {
		t.Errorf("a long answer: %q, %v", spelled(s), err)
	}
	for _, pack := range []bool{false, true} {
		b, err := m.Batch(Batch{Sources: [][]uint32{{2, 0}, nil, {1}}}, pack)
		if err != nil || b.Samples != 3 || pack && b.Rows != 3 && b.Rows != 2 {
			t.Fatalf("pack %v: %+v, %v", pack, b, err)
		}
		for r, row := range b.Sources {
			at := r * b.Length
			for _, i := range row {
				s, _ := m.At(int(i))
				if !slices.Equal(b.IDs[at:at+len(s.IDs)], s.IDs) {
					t.Errorf("pack %v: row %d has %v, not sample %d", pack, r, b.IDs, i)
				}
				at += len(s.IDs)
			}
		}
	}
	if b, err := m.Batch(Batch{Sources: [][]uint32{nil}}, false); err != nil || b.Rows != 1 ||
		b.Tokens != 0 {
		t.Errorf("a batch of padding gives %+v, %v", b, err)
	}
	if _, err := NewMismatched(&Dataset{Samples: d.Samples[2:]}, 4); err == nil ||
		!strings.Contains(err.Error(), "same prompt") {
		t.Errorf("one prompt: %v", err)
	}
}
