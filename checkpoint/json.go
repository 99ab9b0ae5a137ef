package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// strictObject reads data as exactly one JSON object. It calls visit for each key; visit must
// consume the key's value. Unlike encoding/json it refuses duplicate keys and invalid UTF-8, with
// which two readers of one file could see different tensors.
func strictObject(data []byte, visit func(d *json.Decoder, key string) error) error {
	if !utf8.Valid(data) {
		return fmt.Errorf("the JSON is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := eachKey(d, "the file", func(key string) error { return visit(d, key) }); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("expected nothing after the JSON object")
	}
	return nil
}

// eachKey consumes an object and calls visit before each value. what names the object in errors.
func eachKey(d *json.Decoder, what string, visit func(key string) error) error {
	if err := expectDelim(d, '{', what); err != nil {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := jsonToken(d)
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("%s: expected a key, found %v", what, t)
		}
		if seen[key] {
			return fmt.Errorf("%s: the key %.80q appears twice", what, key)
		}
		seen[key] = true
		if err := visit(key); err != nil {
			return err
		}
	}
	return expectDelim(d, '}', what)
}

// naturals consumes an array of non-negative integers that fit an int; more than limit of them is
// an error.
func naturals(d *json.Decoder, what string, limit int) ([]int, error) {
	if err := expectDelim(d, '[', what); err != nil {
		return nil, err
	}
	list := []int{}
	for d.More() {
		t, err := jsonToken(d)
		if err != nil {
			return nil, err
		}
		number, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s: expected numbers, found %v", what, t)
		}
		n, err := strconv.ParseInt(number.String(), 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%s: expected integers from 0 to 2^63-1, found %.40s", what,
				number)
		}
		if len(list) == limit {
			return nil, fmt.Errorf("%s: expected at most %d numbers", what, limit)
		}
		list = append(list, int(n))
	}
	return list, expectDelim(d, ']', what)
}

// stringValue consumes a string.
func stringValue(d *json.Decoder, what string) (string, error) {
	t, err := jsonToken(d)
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("%s: expected a string, found %v", what, t)
	}
	return s, nil
}

func expectDelim(d *json.Decoder, want json.Delim, what string) error {
	t, err := jsonToken(d)
	if err != nil {
		return err
	}
	if t != want {
		return fmt.Errorf("%s: expected %q, found %.40q", what, want.String(), fmt.Sprint(t))
	}
	return nil
}

func jsonToken(d *json.Decoder) (json.Token, error) {
	t, err := d.Token()
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("the JSON ends in the middle")
	}
	if err != nil {
		return nil, fmt.Errorf("JSON at byte %d: %w", d.InputOffset(), err)
	}
	return t, nil
}

// asDecimals formats the floats of an object, and of objects in it, so that Python reads them as
// floats: 100000.0, 1e-05.
func asDecimals(object map[string]any) {
	for key, value := range object {
		if inner, ok := value.(map[string]any); ok {
			asDecimals(inner)
		}
		if f, ok := value.(float64); ok {
			text := strconv.FormatFloat(f, 'g', -1, 64)
			if !strings.ContainsAny(text, ".e") {
				text += ".0"
			}
			object[key] = json.Number(text)
		}
	}
}

// jsonText formats a value as Hugging Face's JSON files are.
func jsonText(value any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(value)
	return []byte(b.String()), err
}
