package torch

// #include "conquer.h"
import "C"

import (
	"slices"
	"time"
)

// Operation is what one kind of operation took of the time that [Profile] looked at.
type Operation struct {
	Name  string        // libtorch's name, or conquer:: and the name of one of csrc's kernels
	Time  time.Duration // without the operations that it called
	Calls int
}

// Profile calls f and returns which operations of this thread its time went to, the costliest first. On a GPU each
// operation is waited for, so that its time is its own; f as a whole then takes longer than it otherwise would.
func Profile(device Device, f func()) []Operation {
	check(C.cq_profile_begin(C.int(device)), "profile")
	func() {
		defer C.cq_profile_end()
		f()
	}()
	var list []Operation
	for {
		var name *C.char
		var seconds C.double
		var calls C.int64_t
		if C.cq_profile_entry(C.int(len(list)), &name, &seconds, &calls) != 0 {
			break
		}
		list = append(list, Operation{C.GoString(name), time.Duration(float64(seconds) * 1e9), int(calls)})
	}
	slices.SortFunc(list, func(a, b Operation) int { return int(b.Time - a.Time) })
	return list
}
