package bamba

import "conquer/model/statespace"

// A Strategy decides with which state each chunk begins; [Chunks] is what it decides from.
type (
	Strategy = statespace.Strategy
	Chunks   = statespace.Chunks
)

// RegisterStrategy makes a chunking strategy of one's own known to Bamba and to every other family
// with state-space layers. See [statespace.RegisterStrategy].
var RegisterStrategy = statespace.RegisterStrategy
