package generate

import (
	"conquer/model"
)

// states are the states of state-space layers after a number of tokens.
type states struct {
	length int
	cache  *model.Cache
}

// maxStates is the memory of the states that a session keeps, in bytes. Older ones make room.
const maxStates = 2 << 30

// pieceOf returns the length of the pieces in which a session reads prompts, the same as a server's
// on a GPU. Turns are read sooner with smaller ones, long prompts with larger ones.
func pieceOf(m model.Model) int {
	if r, ok := m.(interface{ DependsOnLength() bool }); ok && r.DependsOnLength() {
		return m.MaxLength() // the whole prompt decides how its first tokens are rotated
	}
	if model.Device(m).IsCUDA() {
		return 1024
	}
	return 128
}

// hasStates reports whether a cache cannot return to an earlier token by itself. Keys and values
// can, the state of a state-space layer cannot.
func hasStates(c *model.Cache) bool {
	for i := range c.Layers {
		if c.Layers[i].State.Defined() || c.Layers[i].Conv.Defined() {
			return true
		}
	}
	return false
}

// keepStates keeps the states that the cache has now, unless it has none.
func (s *Session) keepStates() {
	if !hasStates(s.cache) {
		return
	}
	copied := s.model.NewCache(1, 1, model.DType(s.model), model.Device(s.model))
	copied.CopyStates(0, s.cache, 0)
	s.states = append(s.states, &states{s.cache.Length, copied})
	for most := max(1, int(maxStates/copied.Bytes())); len(s.states) > most; {
		s.states[0].cache.Free()
		s.states = s.states[1:]
	}
}

// dropStates forgets the states after more than length tokens.
func (s *Session) dropStates(length int) {
	n := len(s.states)
	for n > 0 && s.states[n-1].length > length {
		n--
		s.states[n].cache.Free()
	}
	s.states = s.states[:n]
}
