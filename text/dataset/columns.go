package dataset

import (
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow/memory"
)

// recordColumns are the columns that belong to records.
var recordColumns = []string{"messages", "conversations", "conversation", "instruction", "input",
	"output", "system", "prompt", "completion", "chosen", "rejected", "label", "tokens", "text",
	"tools", "documents", "chat_template_kwargs"}

// pickColumns returns the indices of the columns that belong to a record. name
// returns the name of each of the n columns.
func pickColumns(opts Options, n int, name func(int) string) (picked []int, err error) {
	var names []string
	for i := range n {
		names = append(names, name(i))
		if opts.all || slices.Contains(recordColumns, opts.Columns.target(name(i))) {
			picked = append(picked, i)
		}
	}
	if opts.all {
		return picked, nil
	}
	has := func(name string) bool { return slices.Contains(names, name) }
	if err := opts.Columns.check(names); err != nil {
		return nil, err
	}
	renamed := func(name string) bool { return has(opts.Columns.source(name)) || has(name) }
	if layoutOf(opts.Layout, renamed) == AnyLayout {
		return nil, fmt.Errorf("no known layout has the columns %s; %s",
			someNames(slices.Compact(names)), knownLayouts)
	}
	return picked, nil
}

// someNames lists the first of many names for an error.
func someNames(names []string) string {
	const most = 20
	text := fmt.Sprintf("%.80q", names[:min(len(names), most)])
	if len(names) > most {
		text += fmt.Sprintf(" and %d more", len(names)-most)
	}
	return text
}

// maxBuffer is the largest buffer that a decoder may allocate: a damaged file
// can ask for any size.
const maxBuffer = 2 << 30

// boundedMemory is an allocator that panics above maxBuffer.
type boundedMemory struct{ memory.Allocator }

var bounded = boundedMemory{memory.NewGoAllocator()}

func checkBuffer(size int) {
	if size < 0 || size > maxBuffer {
		panic(fmt.Sprintf("it asks for a buffer of %d bytes", size))
	}
}

func (b boundedMemory) Allocate(size int) []byte {
	checkBuffer(size)
	return b.Allocator.Allocate(size)
}

func (b boundedMemory) Reallocate(size int, old []byte) []byte {
	checkBuffer(size)
	return b.Allocator.Reallocate(size, old)
}
