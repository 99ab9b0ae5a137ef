package torch

// #include <stdlib.h>
// #include "conquer.h"
import "C"

import (
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"unsafe"

	"github.com/sugarme/gotch/libtch"
)

// Error is what an operation panics with and [Run] returns.
type Error struct {
	Op      string // the operation, as libtorch names it
	Shapes  string // dtype, shape and device of its inputs
	Message string // libtorch's reason
}

// ErrOutOfMemory is matched by errors.Is when a device had no memory left for an operation.
var ErrOutOfMemory = errors.New("out of memory")

func (e *Error) Error() string {
	if e.Shapes == "" {
		return fmt.Sprintf("%s: %s", e.Op, e.Message)
	}
	return fmt.Sprintf("%s(%s): %s", e.Op, e.Shapes, e.Message)
}

// Is makes errors.Is(err, ErrOutOfMemory) true for an allocation that failed.
func (e *Error) Is(target error) bool {
	return target == ErrOutOfMemory && (strings.Contains(e.Message, "out of memory") ||
		strings.Contains(e.Message, "can't allocate memory"))
}

var (
	triedToAllocate = regexp.MustCompile(`Tried to allocate ([0-9.]+ [KMGT]iB)`)
	ofWhichFree     = regexp.MustCompile(`total capacity of ([0-9.]+ [KMGT]iB) of which ([0-9.]+ [KMGT]iB) is free`)
)

// OutOfMemory says of an error that is ErrOutOfMemory what there was no room for, in a few words.
func (e *Error) OutOfMemory() string {
	tried, free := triedToAllocate.FindStringSubmatch(e.Message), ofWhichFree.FindStringSubmatch(e.Message)
	if tried == nil || free == nil {
		first, _, _ := strings.Cut(e.Message, "\n")
		return "out of memory: " + strings.TrimPrefix(first, "out of memory: ")
	}
	return fmt.Sprintf("out of memory: %s needs %s, and %s of the GPU's %s are free", e.Op, tried[1], free[2], free[1])
}

func newError(op, message string, in []Tensor) *Error {
	shapes := make([]string, 0, len(in))
	for _, t := range in {
		shapes = append(shapes, t.String())
	}
	// libtorch's text goes on with where in C++ it was raised: of no use here.
	message, _, _ = strings.Cut(message, "\nException raised from")
	return &Error{Op: op, Shapes: strings.Join(shapes, ", "), Message: strings.TrimSpace(message)}
}

// takeGotchError takes the calling thread's last error out of gotch's C layer: "" when there was none.
func takeGotchError() string {
	message := unsafe.Pointer(libtch.GetAndResetLastErr())
	if message == nil {
		return ""
	}
	defer C.free(message)
	return C.GoString((*C.char)(message))
}

// Run calls f on a locked operating-system thread inside a fresh scope, and turns an [*Error] that an operation panicked
// with into an error. It is the boundary between mathematics, which panics, and programs, which return errors; a Run
// inside a Run is a boundary of its own. Tensors that f leaves behind are freed, but for those it took out with Own.
func Run(f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	C.cq_scope_open()
	defer C.cq_scope_close()
	depth, grad := C.cq_scope_depth(), GradEnabled()
	defer func() {
		if r := recover(); r != nil {
			torchErr, ok := r.(*Error)
			if !ok {
				panic(r)
			}
			for C.cq_scope_depth() > depth {
				C.cq_scope_close()
			}
			setGrad(grad)
			err = torchErr
		}
	}()
	return f()
}

// Scoped calls f inside an inner scope: what f makes is freed when it returns, but for what it keeps.
func Scoped(f func()) {
	C.cq_scope_open()
	defer C.cq_scope_close()
	f()
}

// Scoped1 is Scoped for an f with a result, which is kept.
func Scoped1(f func() Tensor) Tensor {
	C.cq_scope_open()
	defer C.cq_scope_close()
	return f().Keep()
}

// Keep hands t, which belongs to the innermost scope, to the scope outside it.
func (t Tensor) Keep() Tensor {
	check(C.cq_scope_keep(t.handle()), "keep", t)
	return t
}

// Own takes t out of every scope; it lives until Free.
func (t Tensor) Own() Tensor {
	check(C.cq_scope_release(t.handle()), "own", t)
	return t
}

// Free frees a tensor taken out with Own; freeing no tensor does nothing. The tensor must not be used afterwards.
func (t *Tensor) Free() {
	if t.c != nil {
		C.cq_tensor_free(t.handle())
		t.c = nil
	}
}

// LiveTensors counts the tensor handles that exist in this process, over all threads.
func LiveTensors() int { return int(C.cq_live_tensors()) }

// SetThreads sets how many threads an operation on the CPU may use, in every scope that opens from now on, whichever thread of
// the process it opens on.
func SetThreads(n int) { C.cq_set_threads(C.int(n)) }

// Threads returns how many threads an operation on the CPU may use in this scope.
func Threads() int { return int(C.cq_threads()) }

// timeAdd is what one addition and its scope take when C++ does both, in nanoseconds, over n repetitions.
func timeAdd(a, b Tensor, n int) float64 {
	return float64(C.cq_time_add(a.handle(), b.handle(), C.int64_t(n)))
}
