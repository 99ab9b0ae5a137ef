package dataset

import (
	"fmt"
	"slices"
	"sync/atomic"

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

// boundedMemory is an allocator that panics above a limit: a damaged file can ask for any size, any
// number of times.
type boundedMemory struct {
	memory.Allocator
	limit int64        // of a buffer, and of all while they are counted
	used  atomic.Int64 // by all buffers, while they are counted
	free  atomic.Bool  // buffers are not counted
}

func newBounded(limit int64) *boundedMemory {
	return &boundedMemory{Allocator: memory.NewGoAllocator(), limit: limit}
}

// uncount ends the limit of all buffers together. That of each stays.
func (b *boundedMemory) uncount() { b.free.Store(true) }

func (b *boundedMemory) check(size, more int) {
	if size < 0 || int64(size) > b.limit || !b.free.Load() && b.used.Add(int64(more)) > b.limit {
		panic(fmt.Sprintf("it asks for a buffer of %d bytes: its buffers may have %d", size,
			b.limit))
	}
}

// Allocate implements [memory.Allocator].
func (b *boundedMemory) Allocate(size int) []byte {
	b.check(size, size)
	return b.Allocator.Allocate(size)
}

// Reallocate implements [memory.Allocator].
func (b *boundedMemory) Reallocate(size int, old []byte) []byte {
	b.check(size, max(0, size-cap(old)))
	return b.Allocator.Reallocate(size, old)
}
