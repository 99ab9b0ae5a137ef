package torch

// #include <stdlib.h>
// #include "conquer.h"
import "C"

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"
)

var tracing atomic.Bool

// Span calls f and shows it under a name in the trace that is being recorded, if any. Operations of
// torch/dist that begin in it bear its name in the communication rows.
func Span(f func(), format string, args ...any) {
	if !tracing.Load() {
		f()
		return
	}
	name := C.CString(fmt.Sprintf(format, args...))
	defer C.free(unsafe.Pointer(name))
	check(C.cq_span_begin(name), "span")
	defer C.cq_span_end()
	f()
}

// Traced is the time of one operation during a trace.
type Traced struct {
	Name  string
	GPU   bool // a kernel or copy on a GPU; false: an operation of the host
	Calls int
	Total time.Duration
	Own   time.Duration // without the operations inside
}

// Trace calls f, records libtorch's operations on this goroutine and the threads that it started,
// writes them to path as a trace for chrome://tracing and ui.perfetto.dev, and returns the time by
// operation, the longest first. The trace is written even if f fails; f's error is returned.
func Trace(path string, f func() error) ([]Traced, error) {
	runtime.LockOSThread() // the profiler belongs to the thread
	defer runtime.UnlockOSThread()
	if C.cq_trace_begin() != 0 {
		return nil, fmt.Errorf("the profiler does not start: %s", C.GoString(C.cq_last_error()))
	}
	tracing.Store(true)
	failed := f()
	tracing.Store(false)
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var table *C.char
	if C.cq_trace_end(cpath, &table) != 0 {
		return nil, fmt.Errorf("%s: the trace was not written: %s", path,
			C.GoString(C.cq_last_error()))
	}
	return parseTrace(C.GoString(table)), failed
}

func parseTrace(table string) []Traced {
	var rows []Traced
	for line := range strings.Lines(table) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 5)
		if len(fields) < 5 {
			continue
		}
		number := func(s string) int64 { n, _ := strconv.ParseInt(s, 10, 64); return n }
		rows = append(rows, Traced{
			Name: fields[4], GPU: fields[0] == "gpu", Calls: int(number(fields[1])),
			Total: time.Duration(number(fields[2])), Own: time.Duration(number(fields[3])),
		})
	}
	slices.SortStableFunc(rows, func(a, b Traced) int { return int(b.Own - a.Own) })
	return rows
}
