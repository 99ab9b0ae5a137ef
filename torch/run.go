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

// Error is the value that a failed operation panics with. [Run] returns it as an error.
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
	ofWhichFree     = regexp.MustCompile(
		`total capacity of ([0-9.]+ [KMGT]iB) of which ([0-9.]+ [KMGT]iB) is free`,
	)
)

// OutOfMemory describes, for an ErrOutOfMemory, which operation needed how much memory.
func (e *Error) OutOfMemory() string {
	tried, free := triedToAllocate.FindStringSubmatch(e.Message), ofWhichFree.FindStringSubmatch(
		e.Message)
	if tried == nil || free == nil {
		first, _, _ := strings.Cut(e.Message, "\n")
		return "out of memory: " + strings.TrimPrefix(first, "out of memory: ")
	}
	return fmt.Sprintf("out of memory: %s needs %s, and %s of the GPU's %s are free", e.Op,
		tried[1], free[2], free[1])
}

func newError(op, message string, in []Tensor) *Error {
	shapes := make([]string, 0, len(in))
	for _, t := range in {
		shapes = append(shapes, t.String())
	}
	// libtorch appends the place in C++ that raised the error, which is of no use here.
	message, _, _ = strings.Cut(message, "\nException raised from")
	return &Error{Op: op, Shapes: strings.Join(shapes, ", "), Message: strings.TrimSpace(message)}
}

// takeGotchError returns and clears the calling thread's last error in gotch's C layer, "" if none.
func takeGotchError() string {
	message := unsafe.Pointer(libtch.GetAndResetLastErr())
	if message == nil {
		return ""
	}
	defer C.free(message)
	return C.GoString((*C.char)(message))
}

// Run calls f on a locked operating-system thread inside a new scope, and returns the [*Error] of
// an operation that panicked. It is the boundary between mathematics, which panics, and programs,
// which return errors. Runs may be nested. Tensors that f made are freed, except those released
// with Own.
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

// Scoped calls f inside an inner scope. Tensors that f made and did not keep are freed when it
// returns.
func Scoped(f func()) {
	runtime.LockOSThread() // the scope belongs to the thread
	defer runtime.UnlockOSThread()
	C.cq_scope_open()
	defer C.cq_scope_close()
	f()
}

// Scoped1 is Scoped for a function with a result, which it keeps.
func Scoped1(f func() Tensor) Tensor {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	C.cq_scope_open()
	defer C.cq_scope_close()
	return f().Keep()
}

// Keep moves t from the innermost scope to the scope around it.
func (t Tensor) Keep() Tensor {
	check(C.cq_scope_keep(t.handle()), "keep", t)
	return t
}

// Own removes t from all scopes; it lives until Free.
func (t Tensor) Own() Tensor {
	check(C.cq_scope_release(t.handle()), "own", t)
	return t
}

// Free frees a tensor that Own released. It does nothing for "no tensor". t must not be used
// afterwards.
func (t *Tensor) Free() {
	if t.c != nil {
		C.cq_tensor_free(t.handle())
		t.c = nil
	}
}

// LiveTensors counts the tensor handles that exist in this process, over all threads.
func LiveTensors() int { return int(C.cq_live_tensors()) }

// SetThreads sets how many threads an operation on the CPU may use. It applies to every scope
// opened afterwards, on any thread of the process. Without it, that is the number of processors
// that the process may use (its affinity and the quota of its control group), divided by the number
// of processes that a launcher started on this machine (LOCAL_WORLD_SIZE). OMP_NUM_THREADS takes
// precedence over both.
func SetThreads(n int) { C.cq_set_threads(C.int(n)) }

// Threads returns how many threads an operation on the CPU may use in this scope.
func Threads() int { return int(C.cq_threads()) }

// timeAdd returns the nanoseconds of one addition and its scope, both in C++, averaged over n.
func timeAdd(a, b Tensor, n int) float64 {
	return float64(C.cq_time_add(a.handle(), b.handle(), C.int64_t(n)))
}
