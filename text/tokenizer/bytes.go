package tokenizer

import (
	"strconv"
	"strings"
)

// Bytes returns the bytes that a token adds to a text that has begun; they may be a part of a
// character. It returns nil for special tokens, which a text does not show, for ids without a
// token, and where the bytes depend on the tokens beside it.
func (t *Tokenizer) Bytes(id int32) []byte {
	if id < 0 || int(id) >= len(t.decodeKind) || t.decodeKind[id] != textPiece {
		return nil
	}
	piece := t.decodeText[id]
	if raw, ok := byteLevelBytes(t.tokens[id]); ok && t.byteLevel && raw == piece {
		return []byte(piece)
	}
	if hex, ok := strings.CutPrefix(piece, "<0x"); ok && len(hex) == 3 && hex[2] == '>' {
		if b, err := strconv.ParseUint(hex[:2], 16, 8); err == nil &&
			t.Decode([]int32{id}, true) != piece { // it stands for a byte
			return []byte{byte(b)}
		}
	}
	twice := t.Decode([]int32{id, id, id}, true)
	once := t.Decode([]int32{id, id}, true)
	added, ok := strings.CutPrefix(twice, once)
	if !ok || added == "" {
		return nil
	}
	return []byte(added)
}
