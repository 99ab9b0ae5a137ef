package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"conquer/quant"
)

// header returns everything before the data.
func (w *ggufWriter) header() ([]byte, error) {
	b := &ggufBuffer{}
	b.WriteString("GGUF")
	b.put(uint32(3))
	b.put(uint64(len(w.tensors)))
	b.put(uint64(len(w.keys)))
	for _, key := range w.keys {
		b.text(key)
		if err := b.value(w.metadata[key]); err != nil {
			return nil, fmt.Errorf("metadata %s: %w", key, err)
		}
	}
	offset := 0
	for _, e := range w.tensors {
		b.text(e.name)
		b.put(uint32(len(e.shape)))
		for _, n := range slices.Backward(e.shape) {
			b.put(uint64(n))
		}
		kind, _ := quant.ByName(e.kind)
		b.put(uint32(kind.Number))
		b.put(uint64(offset))
		offset += (e.size + ggufAlign - 1) / ggufAlign * ggufAlign
	}
	b.Write(make([]byte, (ggufAlign-b.Len()%ggufAlign)%ggufAlign))
	return b.Bytes(), nil
}

type ggufBuffer struct{ bytes.Buffer }

// cannot fail: the value has a fixed size
func (b *ggufBuffer) put(v any) { binary.Write(b, binary.LittleEndian, v) }

func (b *ggufBuffer) text(s string) {
	b.put(uint64(len(s)))
	b.WriteString(s)
}

func (b *ggufBuffer) value(v any) error {
	switch v := v.(type) {
	case uint32:
		b.put(uint32(ggufUint32))
		b.put(v)
	case float32:
		b.put(uint32(ggufFloat32))
		b.put(v)
	case bool:
		b.put(uint32(ggufBool))
		b.put(v)
	case string:
		b.put(uint32(ggufString))
		b.text(v)
	case []string:
		b.put([]uint32{ggufArray, ggufString})
		b.put(uint64(len(v)))
		for _, s := range v {
			b.text(s)
		}
	case []int32:
		b.put([]uint32{ggufArray, ggufInt32})
		b.put(uint64(len(v)))
		b.put(v)
	case []uint32:
		b.put([]uint32{ggufArray, ggufUint32})
		b.put(uint64(len(v)))
		b.put(v)
	case []float32:
		b.put([]uint32{ggufArray, ggufFloat32})
		b.put(uint64(len(v)))
		b.put(v)
	default:
		return fmt.Errorf("a %T has no type in GGUF here", v)
	}
	return nil
}
