package tokenizer

import (
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
	root   *trieNode
	starts [256]bool
}

type trieNode struct {
	next  map[byte]*trieNode
	token *addedToken
}

func newMatcher() *matcher { return &matcher{root: &trieNode{}} }

func (m *matcher) add(content string, token *addedToken) {
	if content == "" {
		return
	}
	m.starts[content[0]] = true
	node := m.root
	for i := range len(content) {
		child := node.next[content[i]]
		if child == nil {
			if node.next == nil {
				node.next = map[byte]*trieNode{}
			}
			child = &trieNode{}
			node.next[content[i]] = child
		}
		node = child
	}
	node.token = token
}

// find returns the first added token at or after from, and its range.
func (m *matcher) find(s string, from int) (token *addedToken, start, end int) {
	for start = from; start < len(s); start++ {
		if !m.starts[s[start]] {
			continue
		}
		node := m.root
		for i := start; i < len(s); i++ {
			if node = node.next[s[i]]; node == nil {
				break
			}
			if node.token != nil {
				token, end = node.token, i+1
			}
		}
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
	for m.root.next != nil {
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
			start = max(len(strings.TrimRightFunc(s[:start], unicode.IsSpace)), done)
		}
		if token.RStrip {
			end = len(s) - len(strings.TrimLeftFunc(s[end:], unicode.IsSpace))
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
