package serve

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"

	"conquer/model"
)

// prefixes keeps what was read of earlier prompts, piece by piece: the keys and values of a piece,
// and the states of state-space layers after it. A prompt that begins with the same pieces starts
// from copies of them, which are equal to the last bit to what it would read. The pieces that were
// not used for longest make room for new ones.
type prefixes struct {
	model   model.Model
	piece   int
	most    int64 // bytes
	bytes   int64
	pieces  map[prefixKey]*list.Element // of *prefix
	order   *list.List                  // least recently used first
	metrics *metrics
}

// prefixKey is the hash of an adapter's number and all tokens up to the end of a piece.
type prefixKey [sha256.Size]byte

// prefix is a piece with all that is before it in a prompt.
type prefix struct {
	key   prefixKey
	cache *model.Cache // one row, as long as a piece
	bytes int64
}

func newPrefixes(m model.Model, piece int, most int64, metrics *metrics) *prefixes {
	return &prefixes{model: m, piece: piece, most: most, metrics: metrics,
		pieces: map[prefixKey]*list.Element{}, order: list.New()}
}

func (p *prefixes) free() {
	for p.order.Len() > 0 {
		p.evict()
	}
}

// keys returns the keys of the whole pieces of ids, as an adapter reads them; 0: none.
func (p *prefixes) keys(adapter int, ids []int32) []prefixKey {
	var keys []prefixKey
	hash := sha256.New()
	binary.Write(hash, binary.LittleEndian, int64(adapter))
	for end := p.piece; end <= len(ids); end += p.piece {
		data, _ := binary.Append(nil, binary.LittleEndian, ids[end-p.piece:end])
		hash.Write(data)
		keys = append(keys, prefixKey(hash.Sum(nil)))
	}
	return keys
}

// load copies the longest known beginning of ids into a cache of one row and returns its length. At
// least one token is left to read.
func (p *prefixes) load(adapter int, ids []int32, into *model.Cache) int {
	var found []*list.Element
	for _, key := range p.keys(adapter, ids[:len(ids)-1]) {
		e := p.pieces[key]
		if e == nil {
			break
		}
		found = append(found, e)
	}
	for i, e := range found {
		into.CopyColumns(0, i*p.piece, e.Value.(*prefix).cache, 0, 0, p.piece)
	}
	if n := len(found); n > 0 {
		into.CopyStates(0, found[n-1].Value.(*prefix).cache, 0)
	}
	for i := len(found) - 1; i >= 0; i-- { // what others build on is used last
		p.order.MoveToBack(found[i])
	}
	p.metrics.prefixTokens.Add(float64(len(found) * p.piece))
	return len(found) * p.piece
}

// store keeps the last piece of ids, which a cache of one row holds. It does nothing if ids do not
// end with a whole piece, or if the piece is known.
func (p *prefixes) store(adapter int, ids []int32, from *model.Cache) {
	if len(ids)%p.piece != 0 || p.most == 0 {
		return
	}
	keys := p.keys(adapter, ids)
	key := keys[len(keys)-1]
	if p.pieces[key] != nil {
		return
	}
	cache := p.model.NewCache(1, p.piece, model.DType(p.model), model.Device(p.model))
	entry := &prefix{key: key, cache: cache, bytes: cache.Bytes()}
	for p.order.Len() > 0 && p.bytes+entry.bytes > p.most {
		p.evict()
	}
	if p.bytes+entry.bytes > p.most {
		cache.Free()
		return
	}
	cache.CopyColumns(0, 0, from, 0, len(ids)-p.piece, p.piece)
	cache.CopyStates(0, from, 0)
	p.pieces[key] = p.order.PushBack(entry)
	for i := len(keys) - 2; i >= 0; i-- { // a piece is of use only with those before it
		if e := p.pieces[keys[i]]; e != nil {
			p.order.MoveToBack(e)
		}
	}
	p.bytes += entry.bytes
	p.metrics.prefixBytes.Set(float64(p.bytes))
}

// evict forgets the piece that was not used for longest.
func (p *prefixes) evict() {
	e := p.order.Front()
	entry := p.order.Remove(e).(*prefix)
	delete(p.pieces, entry.key)
	entry.cache.Free()
	p.bytes -= entry.bytes
	p.metrics.prefixBytes.Set(float64(p.bytes))
}
