package text

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/wangkuiyi/gotorch/tool/tgz"
)

// record is one entry of a data file, not yet encoded.
type record struct {
	where    string // file:line
	layout   Layout
	text     string    // of RawText
	input    string    // of Instruction
	messages []Message // of Instruction and Chat
}

// maxEntry is the largest file in an archive that is read: what an archive
// claims to hold may be far more than the machine does.
const maxEntry = 1 << 30

// readRecords reads a file, a folder or an archive.
func readRecords(path string, layout Layout) (records []record, skipped int, err error) {
	switch layout {
	case AnyLayout, Instruction, Chat, RawText:
	default:
		return nil, 0, fmt.Errorf("layout %q is not known; known are %s, %s and %s", layout, Instruction, Chat, RawText)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	take := func(name string, data []byte, explicit bool) error {
		found, isText, err := parseRecords(name, data, layout)
		if !isText && !explicit {
			skipped++
			return nil
		}
		if !isText {
			return fmt.Errorf("%s: not a text file in UTF-8", name)
		}
		records = append(records, found...)
		return err
	}
	switch {
	case info.IsDir():
		err = filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if strings.HasPrefix(entry.Name(), ".") && name != path {
				if entry.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if !entry.Type().IsRegular() {
				return nil
			}
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return take(name, data, false)
		})
	case strings.HasSuffix(path, ".tar.gz") || strings.HasSuffix(path, ".tgz"):
		err = readArchive(path, take)
	default:
		var data []byte
		if data, err = os.ReadFile(path); err == nil {
			err = take(path, data, true)
		}
	}
	return records, skipped, err
}

func readArchive(path string, take func(name string, data []byte, explicit bool) error) error {
	r, err := tgz.OpenFile(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer r.Close()
	for {
		entry, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		base := filepath.Base(entry.Name)
		if entry.Typeflag != tar.TypeReg || strings.HasPrefix(base, ".") {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(r, maxEntry+1))
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, entry.Name, err)
		}
		if len(data) > maxEntry {
			return fmt.Errorf("%s: %s is larger than %d bytes", path, entry.Name, maxEntry)
		}
		if err := take(path+":"+entry.Name, data, false); err != nil {
			return err
		}
	}
}

// parseRecords reads the records in one file's content; isText is false for
// content that is not text.
func parseRecords(name string, data []byte, layout Layout) (records []record, isText bool, err error) {
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return nil, false, nil
	}
	data = bytes.TrimPrefix(data, []byte("\xEF\xBB\xBF"))
	ext := strings.ToLower(filepath.Ext(name))
	switch {
	case layout == RawText && ext != ".jsonl", ext != ".json" && ext != ".jsonl" && ext != ".ndjson":
		if len(bytes.TrimSpace(data)) == 0 {
			return nil, true, nil
		}
		return []record{{where: name, layout: RawText, text: string(data)}}, true, nil
	case ext == ".json":
		records, err = parseArray(name, data, layout)
	default:
		records, err = parseLines(name, data, layout)
	}
	return records, true, err
}

func parseLines(name string, data []byte, layout Layout) (records []record, err error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		r, err := parseRecord(line, layout)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		r.where = fmt.Sprintf("%s:%d", name, n)
		records = append(records, r)
	}
	return records, lines.Err()
}

func parseArray(name string, data []byte, layout Layout) (records []record, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	line, counted := 1, 0
	// here is the file and line of the next value.
	here := func() string {
		at := int(d.InputOffset())
		for at < len(data) && strings.IndexByte(" \t\r\n,", data[at]) >= 0 {
			at++
		}
		if at > counted {
			line += bytes.Count(data[counted:at], []byte("\n"))
			counted = at
		}
		return fmt.Sprintf("%s:%d", name, line)
	}
	where := here()
	if token, err := d.Token(); err != nil || token != json.Delim('[') {
		return nil, fmt.Errorf("%s: expected an array of records (for one record a line, name the file .jsonl)", where)
	}
	for d.More() {
		where = here()
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, fmt.Errorf("%s: %w", where, jsonProblem(err))
		}
		r, err := parseRecord(raw, layout)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		r.where = where
		records = append(records, r)
	}
	where = here()
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("%s: the array does not end: %w", where, jsonProblem(err))
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: something follows the array of records", here())
	}
	return records, nil
}

func jsonProblem(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends inside a record")
	}
	return fmt.Errorf("not JSON: %w", err)
}

const knownLayouts = "known are instruction (instruction, input, output), chat (messages of role and content) and text (text)"

// parseRecord reads one record and tells its layout from its fields.
func parseRecord(data []byte, layout Layout) (r record, err error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		if _, wrongType := errors.AsType[*json.UnmarshalTypeError](err); wrongType {
			return r, fmt.Errorf("expected an object, got %.40s", data)
		}
		return r, jsonProblem(err)
	}
	has := func(name string) bool { _, ok := fields[name]; return ok }
	found := AnyLayout
	switch {
	case has("messages"):
		found = Chat
	case has("instruction"):
		found = Instruction
	case has("text"):
		found = RawText
	default:
		names := slices.Sorted(maps.Keys(fields))
		return r, fmt.Errorf("no known layout has the fields %q; %s", names, knownLayouts)
	}
	if layout != AnyLayout && layout != found {
		return r, fmt.Errorf("a record of layout %s, expected %s", found, layout)
	}
	r.layout = found
	text := func(name string, required bool) (s string) {
		raw, ok := fields[name]
		if !ok || string(raw) == "null" {
			if required && err == nil {
				err = fmt.Errorf("field %q is missing; expected for layout %s; %s", name, found, knownLayouts)
			}
			return ""
		}
		if e := json.Unmarshal(raw, &s); e != nil && err == nil {
			err = fmt.Errorf("field %q is %.40s, expected a string", name, raw)
		}
		return s
	}
	switch found {
	case Chat:
		r.messages, err = parseMessages(fields["messages"])
	case Instruction:
		question := text("instruction", true)
		if input := text("input", false); strings.TrimSpace(input) != "" {
			r.input = input
		}
		answer, system := text("output", true), text("system", false)
		if system != "" {
			r.messages = append(r.messages, Message{"system", system})
		}
		r.messages = append(r.messages, Message{"user", question}, Message{"assistant", answer})
	case RawText:
		r.text = text("text", true)
	}
	return r, err
}

func parseMessages(raw json.RawMessage) ([]Message, error) {
	var list []struct {
		Role    *string
		Content *string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("field \"messages\" is %.60s, expected a list of {\"role\": string, \"content\": string}", raw)
	}
	messages, answers := make([]Message, len(list)), 0
	for i, m := range list {
		if m.Role == nil || m.Content == nil {
			return nil, fmt.Errorf("message %d lacks role or content, expected {\"role\": string, \"content\": string}", i)
		}
		messages[i] = Message{*m.Role, *m.Content}
		if *m.Role == assistantRole {
			answers++
		}
	}
	if answers == 0 {
		return nil, fmt.Errorf("none of %d messages has the role %q, so there is nothing to learn", len(list), assistantRole)
	}
	return messages, nil
}
