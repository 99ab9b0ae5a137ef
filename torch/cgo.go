package torch

// #cgo LDFLAGS: -lconquer
// #cgo noescape cq_scope_adopt
// #cgo nocallback cq_scope_adopt
// #cgo noescape cq_tensor_describe
// #cgo nocallback cq_tensor_describe
// // conquer.h version 4: change the number with conquer.h, since Go's build cache does not see it.
// #include <stdlib.h>
// #include "conquer.h"
import "C"
