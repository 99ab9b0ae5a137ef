// Package families registers all model families: import it for its effect, or import only the
// families that a program needs. A family that is not in llama or bamba has a folder here.
package families

import (
	_ "conquer/bamba"
	_ "conquer/families/falconh1"
	_ "conquer/families/granite"
	_ "conquer/families/granitehybrid"
	_ "conquer/families/granitemoe"
	_ "conquer/families/mixtral"
	_ "conquer/families/nemotronh"
	_ "conquer/families/qwen3"
	_ "conquer/families/qwen3moe"
	_ "conquer/families/smollm3"
	_ "conquer/llama"
)
