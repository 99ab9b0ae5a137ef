package tokenizer

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// addedToken is a token that is matched in the text before any other stage. Its
// fields are those of tokenizer.json.
type addedToken struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"` // matches only between non-word characters
	LStrip     bool   `json:"lstrip"`      // also matches the white space before it
	RStrip     bool   `json:"rstrip"`      // also matches the white space after it
	Normalized bool   `json:"normalized"`  // matched in the normalized text
	Special    bool   `json:"special"`
}

// matcher finds added tokens in a text, leftmost first, then longest.
type matcher struct {
	prefixes
	tokens []*addedToken // by index in prefixes
}

// newMatcher returns the matcher of tokens by how they are spelled.
func newMatcher(tokens map[string]*addedToken) *matcher {
	m := &matcher{prefixes: *newPrefixes(slices.Collect(maps.Keys(tokens)))}
	for _, content := range m.sorted {
		m.tokens = append(m.tokens, tokens[content])
	}
	return m
}

// find returns the first added token at or after from, and its range.
func (m *matcher) find(s string, from int) (token *addedToken, start, end int) {
	for start = from; start < len(s); start++ {
		if b := int(s[start]); m.first[b] == m.first[b+1] {
			continue
		}
		m.each(s[start:], func(index, length int) { token, end = m.tokens[index], start+length })
		if token != nil {
			return token, start, end
		}
	}
	return nil, 0, 0
}

// split calls yield for each part s[start:end] of s: the id of an added token, or
// -1 and the text between two tokens.
func (m *matcher) split(s string, yield func(piece string, id int32, start, end int)) {
	done, search := 0, 0
	spaces := [2]int{} // the last white space that a token took after it
	for len(m.tokens) > 0 {
		token, start, end := m.find(s, search)
		if token == nil {
			break
		}
		search = end
		if token.SingleWord {
			before, _ := utf8.DecodeLastRuneInString(s[:start])
			after, _ := utf8.DecodeRuneInString(s[end:])
			if start > 0 && isWord(before) || end < len(s) && isWord(after) {
				continue
			}
		}
		if token.LStrip {
			if done < start {
				start = done + len(strings.TrimRightFunc(s[done:start], unicode.IsSpace))
			} else {
				start = done
			}
		}
		if token.RStrip {
			if end < spaces[0] || end > spaces[1] {
				spaces = [2]int{end, len(s) - len(strings.TrimLeftFunc(s[end:], unicode.IsSpace))}
			}
			end = spaces[1]
		}
		if done < start {
			yield(s[done:start], -1, done, start)
		}
		yield("", token.ID, start, end)
		done = end
	}
	if done < len(s) {
		yield(s[done:], -1, done, len(s))
	}
}
