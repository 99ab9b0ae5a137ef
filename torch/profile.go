package torch

// #include "conquer.h"
import "C"

import (
	"slices"
	"time"
)

// Operation is the time that one kind of operation took during [Profile].
type Operation struct {
	Name  string        // libtorch's name, or conquer:: and the name of an operator of csrc
	Time  time.Duration // without the operations inside
	Calls int
}

// Profile calls f and returns the time of each operation on this thread, the longest first. On a
// GPU it waits for each operation, so that its time is measured alone; f takes longer than usual.
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
		list = append(list,
			Operation{C.GoString(name), time.Duration(float64(seconds) * 1e9), int(calls)})
	}
	slices.SortFunc(list, func(a, b Operation) int { return int(b.Time - a.Time) })
	return list
}
