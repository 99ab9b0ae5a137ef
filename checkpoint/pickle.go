package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"conquer/internal/budget"
)

// A pickle is a program for a small stack machine that can import and call any Python function. The
// machine below knows only the instructions of a dictionary of tensors and the few globals that
// PyTorch uses in one (like torch.load with weights_only); anything else is an error. Nothing is
// called: a "call" of a known global runs a Go function of pickleCalls, which builds a plain value.
// The instructions are those of https://github.com/python/cpython/blob/main/Lib/pickletools.py.

// The values on the machine's stack are nil, bool, int, float64, string, *pickleList (a tuple or
// list), *pickleDict, pickleGlobal, *pickleStorage and *pickleTensor.
type (
	pickleList   struct{ items []any }
	pickleGlobal string
	pickleDict   struct {
		keys   []string // in the order of their first appearance
		values map[string]any
	}
	// pickleStorage is a run of elements of one type in the archive's file data/key.
	pickleStorage struct {
		key, dtype string // dtype is safetensors' name
		count      int
	}
	pickleTensor struct {
		storage        *pickleStorage
		offset         int // in elements
		shape, strides []int
	}
)

// storageDtypes maps PyTorch's storage classes to safetensors' dtypes.
var storageDtypes = map[pickleGlobal]string{
	"torch.FloatStorage": "F32", "torch.HalfStorage": "F16", "torch.BFloat16Storage": "BF16",
	"torch.DoubleStorage": "F64",
	"torch.LongStorage":   "I64", "torch.IntStorage": "I32", "torch.ShortStorage": "I16",
	"torch.CharStorage": "I8",
	"torch.ByteStorage": "U8", "torch.BoolStorage": "BOOL",
}

// pickleCalls are the globals that may be called, and the functions that build their results.
var pickleCalls = map[pickleGlobal]func(args []any) (any, error){
	"collections.OrderedDict": func(args []any) (any, error) {
		if len(args) != 0 {
			return nil, fmt.Errorf("an OrderedDict made of %d arguments, expected none", len(args))
		}
		return newPickleDict(), nil
	},
	"torch._utils._rebuild_tensor_v2": rebuildTensor,
	"torch._utils._rebuild_parameter": func(args []any) (any, error) {
		if len(args) >= 1 {
			if t, ok := args[0].(*pickleTensor); ok {
				return t, nil
			}
		}
		return nil, fmt.Errorf("a parameter that is made of no tensor")
	},
}

func newPickleDict() *pickleDict { return &pickleDict{values: map[string]any{}} }

func (d *pickleDict) set(key string, value any) {
	if _, ok := d.values[key]; !ok {
		d.keys = append(d.keys, key)
	}
	d.values[key] = value
}

// rebuildTensor is torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad,
// hooks).
func rebuildTensor(args []any) (any, error) {
	if len(args) < 4 {
		return nil, fmt.Errorf("a tensor made of %d arguments, expected at least 4", len(args))
	}
	storage, ok := args[0].(*pickleStorage)
	offset, ok2 := args[1].(int)
	shape, ok3 := pickleInts(args[2])
	strides, ok4 := pickleInts(args[3])
	if !ok || !ok2 || !ok3 || !ok4 || offset < 0 || len(shape) != len(strides) {
		return nil, fmt.Errorf("a tensor that is not made of a storage, an offset, a size and a " +
			"stride")
	}
	return &pickleTensor{storage, offset, shape, strides}, nil
}

// pickleInts gives a tuple of integers that are not negative, at most maxRank of them.
func pickleInts(v any) ([]int, bool) {
	list, ok := v.(*pickleList)
	if !ok {
		return nil, false
	}
	if len(list.items) > maxRank {
		return nil, false
	}
	ints := make([]int, len(list.items))
	for i, item := range list.items {
		if ints[i], ok = item.(int); !ok || ints[i] < 0 {
			return nil, false
		}
	}
	return ints, true
}

// unpickle runs a pickle and returns its result. What the instructions make is taken from the
// budget.
func unpickle(data []byte, left *budget.Budget) (value any, err error) {
	m := &pickleMachine{data: data, memo: map[int]any{}, budget: left}
	for {
		at := m.at
		op := m.take(1)
		if m.err == nil {
			if op[0] == '.' {
				value = m.pop()
				if m.err == nil && len(m.stack) != 0 {
					m.fail("%d values are left over", len(m.stack))
				}
			} else {
				m.step(op[0])
			}
		}
		if m.err != nil {
			return nil, fmt.Errorf("pickle, byte %d: %w", at, m.err)
		}
		if op[0] == '.' {
			return value, nil
		}
	}
}

type pickleMachine struct {
	data  []byte
	at    int
	stack []any
	marks []int
	memo  map[int]any

	budget *budget.Budget
	err    error
}

func (m *pickleMachine) fail(format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf(format, args...)
	}
}

// The bytes that are taken from the budget for an instruction, and for the instructions that make
// objects or keep them.
const (
	pickleStep   = 48  // a place on the stack, and in the list that it moves to
	pickleObject = 160 // a list, a dictionary, a storage or a tensor
	pickleEntry  = 96  // an entry of a dictionary or of the memo
)

// allow takes bytes from the budget.
func (m *pickleMachine) allow(bytes int) {
	if m.err == nil {
		m.err = m.budget.Take(bytes)
	}
}

// text returns the next n bytes as a string.
func (m *pickleMachine) text(n int) string {
	b := m.take(n)
	if m.allow(len(b)); m.err != nil {
		return ""
	}
	return string(b)
}

// remember keeps the value on top of the stack.
func (m *pickleMachine) remember(n int) {
	m.allow(pickleEntry)
	m.memo[n] = m.top()
}

// take returns the next n bytes; after a failure, zeros, at most as many as the pickle has bytes.
func (m *pickleMachine) take(n int) []byte {
	if m.err == nil && (n < 0 || n > len(m.data)-m.at) {
		m.fail("it ends in the middle")
	}
	if m.err != nil {
		return make([]byte, min(max(n, 0), 8))
	}
	b := m.data[m.at : m.at+n]
	m.at += n
	return b
}

// number reads a little-endian number of n bytes.
func (m *pickleMachine) number(n int) int {
	var b [8]byte
	copy(b[:], m.take(n))
	u := binary.LittleEndian.Uint64(b[:])
	if u > math.MaxInt64 {
		m.fail("a length of %d", u)
		return 0
	}
	return int(u)
}

func (m *pickleMachine) line() string {
	if m.err != nil {
		return ""
	}
	end := bytes.IndexByte(m.data[m.at:], '\n')
	if end < 0 {
		m.fail("it ends in the middle")
		return ""
	}
	return strings.TrimSuffix(m.text(end+1), "\n")
}

func (m *pickleMachine) push(v any) { m.stack = append(m.stack, v) }

func (m *pickleMachine) pop() any {
	least := 0
	if len(m.marks) > 0 {
		least = m.marks[len(m.marks)-1]
	}
	if len(m.stack) <= least {
		m.fail("a value is taken from an empty stack")
		return nil
	}
	v := m.stack[len(m.stack)-1]
	m.stack = m.stack[:len(m.stack)-1]
	return v
}

// toMark pops all values above the last mark.
func (m *pickleMachine) toMark() []any {
	if len(m.marks) == 0 {
		m.fail("values are taken from a mark that is not there")
		return nil
	}
	mark := m.marks[len(m.marks)-1]
	m.marks = m.marks[:len(m.marks)-1]
	items := slices.Clone(m.stack[mark:])
	m.stack = m.stack[:mark]
	return items
}

// top is the value on top of the stack.
func (m *pickleMachine) top() any {
	v := m.pop()
	m.push(v)
	return v
}

func (m *pickleMachine) step(op byte) {
	if m.allow(pickleStep); m.err != nil {
		return
	}
	switch op {
	case 0x80: // PROTO
		if n := m.take(1)[0]; n < 2 || n > 5 {
			m.fail("protocol %d, expected 2 to 5", n)
		}
	case 0x95: // FRAME
		m.number(8)
	case '(':
		m.marks = append(m.marks, len(m.stack))
	case 'N':
		m.push(nil)
	case 0x88, 0x89:
		m.push(op == 0x88)
	case 'J':
		m.push(int(int32(m.number(4))))
	case 'K':
		m.push(m.number(1))
	case 'M':
		m.push(m.number(2))
	case 0x8a: // LONG1
		n := int(m.take(1)[0])
		if n > 8 {
			m.fail("an integer of %d bytes, expected at most 8", n)
			return
		}
		var b [8]byte
		raw := m.take(n)
		copy(b[:], raw)
		if n > 0 && n < 8 && raw[n-1]&0x80 != 0 {
			for i := n; i < 8; i++ {
				b[i] = 0xff
			}
		}
		m.push(int(int64(binary.LittleEndian.Uint64(b[:]))))
	case 'G':
		m.push(math.Float64frombits(binary.BigEndian.Uint64(m.take(8))))
	case 'X', 'T':
		m.push(m.text(m.number(4)))
	case 0x8c, 'U':
		m.push(m.text(m.number(1)))
	case 0x8d:
		m.push(m.text(m.number(8)))
	case '}':
		m.allow(pickleObject)
		m.push(newPickleDict())
	case ']', ')':
		m.allow(pickleObject)
		m.push(&pickleList{})
	case 't':
		m.allow(pickleObject)
		m.push(&pickleList{m.toMark()})
	case 0x85, 0x86, 0x87: // TUPLE1 to TUPLE3
		m.allow(pickleObject)
		items := make([]any, op-0x84)
		for i := len(items) - 1; i >= 0; i-- {
			items[i] = m.pop()
		}
		m.push(&pickleList{items})
	case 'a', 'e':
		items := []any{nil}
		if op == 'a' {
			items[0] = m.pop()
		} else {
			items = m.toMark()
		}
		if list, ok := m.top().(*pickleList); ok {
			list.items = append(list.items, items...)
		} else {
			m.fail("values are appended to something that is not a list")
		}
	case 's', 'u':
		var items []any
		if op == 's' {
			value := m.pop()
			items = []any{m.pop(), value}
		} else {
			items = m.toMark()
		}
		m.setItems(items)
	case 'q':
		m.remember(m.number(1))
	case 'r':
		m.remember(m.number(4))
	case 0x94: // MEMOIZE
		m.remember(len(m.memo))
	case 'h':
		m.recall(m.number(1))
	case 'j':
		m.recall(m.number(4))
	case 'c':
		module := m.line()
		m.global(module, m.line())
	case 0x93: // STACK_GLOBAL
		name, ok := m.pop().(string)
		module, ok2 := m.pop().(string)
		if !ok || !ok2 {
			m.fail("a global without a name")
			return
		}
		m.global(module, name)
	case 'R':
		m.allow(pickleObject)
		args, ok := m.pop().(*pickleList)
		global, ok2 := m.pop().(pickleGlobal)
		call := pickleCalls[global]
		switch {
		case m.err != nil:
		case !ok || !ok2:
			m.fail("something that is not a function is called")
		case call == nil:
			m.fail("it calls %s", global)
		default:
			v, err := call(args.items)
			if err != nil {
				m.fail("%w", err)
			}
			if t, ok := v.(*pickleTensor); ok {
				m.allow(8 * len(t.shape) * 2)
			}
			m.push(v)
		}
	case 'b': // BUILD, the state of an object: state_dict() stores the versions of modules in it
		state := m.pop()
		if _, ok := m.top().(*pickleDict); !ok || m.err == nil && !isPickleDict(state) {
			m.fail("a state is set on something that is not a dictionary")
		}
	case 'Q':
		m.storage(m.pop())
	default:
		m.fail("the instruction 0x%02x (%q) is not used by a dictionary of tensors: only "+
			"tensors are read", op, op)
	}
}

func isPickleDict(v any) bool { _, ok := v.(*pickleDict); return ok }

func (m *pickleMachine) recall(n int) {
	v, ok := m.memo[n]
	if !ok {
		m.fail("the value %d is used before it is made", n)
	}
	m.push(v)
}

// setItems stores alternating keys and values in the dictionary on top. Keys that are not strings,
// as in an optimizer's state, are dropped.
func (m *pickleMachine) setItems(items []any) {
	d, ok := m.top().(*pickleDict)
	if m.err == nil && (!ok || len(items)%2 != 0) {
		m.fail("values are set in something that is not a dictionary")
	}
	if m.err != nil {
		return
	}
	for i := 0; i < len(items); i += 2 {
		if key, ok := items[i].(string); ok {
			m.allow(pickleEntry)
			d.set(key, items[i+1])
		}
	}
}

// global is a name in a Python module. Only those that a dictionary of tensors needs are accepted.
func (m *pickleMachine) global(module, name string) {
	g := pickleGlobal(module + "." + name)
	if m.err == nil && pickleCalls[g] == nil && storageDtypes[g] == "" {
		m.fail("it names %.80q, which Python would import and could run: only tensors are read",
			string(g))
	}
	m.push(g)
}

// storage reads a persistent id ("storage", class, key, location, number of elements).
func (m *pickleMachine) storage(id any) {
	list, ok := id.(*pickleList)
	if m.err != nil || !ok || len(list.items) != 5 || list.items[0] != "storage" {
		m.fail("a reference outside the pickle that is not to a storage")
		return
	}
	class, ok := list.items[1].(pickleGlobal)
	key, ok2 := list.items[2].(string)
	count, ok3 := list.items[4].(int)
	if !ok || !ok2 || !ok3 || storageDtypes[class] == "" || count < 0 || key == "" ||
		strings.ContainsAny(key, "/\\\x00") {
		m.fail("a storage that is not described by its class, key and number of elements")
		return
	}
	m.allow(pickleObject)
	m.push(&pickleStorage{key, storageDtypes[class], count})
}
