package dataset

import (
	"bytes"
	"unicode/utf8"
)

// plain is a file that is one text. It is read in blocks, so that a sample of a
// long text costs the encoding of one block rather than of the whole text. A
// position is the number of a block.
type plain struct {
	name string
	data []byte
}

const blockBytes = 64 << 10

// blockStart returns the offset of block k. It is near k*blockBytes: after the
// last line feed before that, else after the last space.
func (p *plain) blockStart(k int) int {
	at := k * blockBytes
	if k == 0 || at >= len(p.data) {
		return min(at, len(p.data))
	}
	before := p.data[at-blockBytes/2 : at]
	for _, separator := range []byte("\n ") {
		if i := bytes.LastIndexByte(before, separator); i >= 0 {
			return at - len(before) + i + 1
		}
	}
	for !utf8.RuneStart(p.data[at]) {
		at--
	}
	return at
}

func (p *plain) scan(take func(at int64) error) error {
	if len(bytes.TrimSpace(p.data)) == 0 {
		return nil
	}
	for k := 0; p.blockStart(k) < len(p.data); k++ {
		if err := take(int64(k)); err != nil {
			return err
		}
	}
	return nil
}

// leadBytes is how much of the previous block is encoded to find its last token.
const leadBytes = 256

func (p *plain) record(at int64) (record, error) {
	start, end := p.blockStart(int(at)), p.blockStart(int(at)+1)
	r := record{layout: RawText, text: string(p.data[start:end]), open: end < len(p.data)}
	if at > 0 {
		lead := max(0, start-leadBytes)
		for !utf8.RuneStart(p.data[lead]) {
			lead++
		}
		r.lead = string(p.data[lead:start])
	}
	return r, nil
}

// where names a line at most half a block after the first line of the block.
func (p *plain) where(at int64) string {
	return lineAt(p.name+":", p.data, min(at*blockBytes, int64(len(p.data))))
}

func (p *plain) offset(at int64) int64 { return at * blockBytes }

func (p *plain) title() string { return p.name }

func (p *plain) size() int64 { return int64(len(p.data)) }
