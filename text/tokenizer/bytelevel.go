package tokenizer

// byteRune maps each byte to the printable character that represents it in
// byte-level vocabularies (GPT-2's table). runeByte is the inverse.
var byteRune, runeByte = func() (to [256]rune, from map[rune]byte) {
	from = make(map[rune]byte, 256)
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !('!' <= r && r <= '~' || 0xA1 <= r && r <= 0xAC || 0xAE <= r && r <= 0xFF) {
			r = next
			next++
		}
		to[b], from[r] = r, byte(b)
	}
	return to, from
}()

// byteLevelBytes returns the bytes that a byte-level token represents. ok is false
// if a character of the token represents no byte.
func byteLevelBytes(token string) (raw string, ok bool) {
	b := make([]byte, 0, len(token))
	for _, r := range token {
		c, ok := runeByte[r]
		if !ok {
			return "", false
		}
		b = append(b, c)
	}
	return string(b), true
}
