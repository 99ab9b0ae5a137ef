package checkpoint

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"conquer/torch"
)

// torchEntry is a tensor of a file that torch.load reads: a slice of a source's tensor, with its
// rows in Meta's order.
type torchEntry struct {
	record        // as it is written: the name and shape of the slice
	source string // its name in the source
	heads  int    // the number of heads whose rows are interleaved, or 0
	split  int    // the dimension along which the parts hold slices, or Replicated
	shares int    // if it shares the storage of another entry, that entry's index + 1, else 0
}

// torchAlign is the alignment of storages in torch.save's files, for mapping.
const torchAlign = 64

// writeTorch writes a dictionary of the part's tensors as torch.save does. The archive's files are
// in a folder of the archive's name.
func writeTorch(w io.Writer, archive string, source Source, entries []torchEntry, part int) error {
	counted := &countingWriter{w: w}
	z := zip.NewWriter(counted)
	create := func(name string) (io.Writer, error) {
		if err := z.Flush(); err != nil {
			return nil, err
		}
		header := &zip.FileHeader{Name: archive + "/" + name, Method: zip.Store}
		// A local header is 30 bytes, the name and an extra field of padding, "FB" as in PyTorch.
		padding := torchAlign - (counted.n+30+len(header.Name)+4)%torchAlign
		header.Extra = append(binary.LittleEndian.AppendUint16([]byte("FB"), uint16(padding)),
			bytes.Repeat([]byte("Z"), padding)...)
		return z.CreateHeader(header)
	}
	put := func(name string, text []byte) error {
		f, err := create(name)
		if err == nil {
			_, err = f.Write(text)
		}
		return err
	}
	if err := put("data.pkl", pickleTensors(entries)); err != nil {
		return err
	}
	if err := put("byteorder", []byte("little")); err != nil {
		return err
	}
	for i, e := range entries {
		if e.shares > 0 {
			continue
		}
		f, err := create(fmt.Sprintf("data/%d", i))
		if err != nil {
			return err
		}
		torch.Scoped(func() {
			var t torch.Tensor
			if t, err = e.read(source, part); err == nil {
				_, err = f.Write(t.Data())
			}
		})
		if err != nil {
			return err
		}
	}
	if err := put("version", []byte("3\n")); err != nil {
		return err
	}
	return z.Close()
}

// read gives the part's slice.
func (e *torchEntry) read(source Source, part int) (torch.Tensor, error) {
	info, ok := source.Info(e.source)
	if !ok {
		return torch.Tensor{}, fmt.Errorf("tensor %.120q: the source does not describe it",
			e.source)
	}
	t, err := readAs(source, record{name: e.source, dtype: e.dtype, shape: info.Shape})
	if err != nil {
		return t, err
	}
	if e.heads > 0 {
		t = permuteHeads(t, e.heads)
	}
	if e.split >= 0 && !slices.Equal(t.Shape(), e.shape) {
		t = t.Narrow(e.split, part*e.shape[e.split], e.shape[e.split])
	}
	return t.Contiguous(), nil
}

type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += n
	return n, err
}

// pickleTensors writes the pickle of the dictionary with the instructions that torch.save uses.
func pickleTensors(entries []torchEntry) []byte {
	p := &pickleWriter{}
	p.WriteString("\x80\x02}(")
	for i, e := range entries {
		key := i
		if e.shares > 0 {
			key = e.shares - 1
		}
		count := 1
		for _, n := range e.shape {
			count *= n
		}
		p.text(e.name)
		p.WriteString("ctorch._utils\n_rebuild_tensor_v2\n((")
		p.text("storage")
		for class, dtype := range storageDtypes {
			if dtype == e.dtype {
				module, name, _ := cutLast(string(class), ".")
				p.WriteString("c" + module + "\n" + name + "\n")
			}
		}
		p.text(fmt.Sprint(key))
		p.text("cpu")
		p.integer(count)
		p.WriteString("tQ")
		p.integer(0)
		p.WriteByte('(')
		for _, n := range e.shape {
			p.integer(n)
		}
		p.WriteString("t(")
		for j := range e.shape {
			stride := 1
			for _, n := range e.shape[j+1:] {
				stride *= max(n, 1)
			}
			p.integer(stride)
		}
		p.WriteString("t\x89ccollections\nOrderedDict\n)RtR")
	}
	p.WriteString("u.")
	return p.Bytes()
}

type pickleWriter struct{ bytes.Buffer }

func (p *pickleWriter) text(s string) {
	p.WriteByte('X')
	p.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(s))))
	p.WriteString(s)
}

func (p *pickleWriter) integer(n int) {
	if n < 1<<31 {
		p.WriteByte('J')
		p.Write(binary.LittleEndian.AppendUint32(nil, uint32(n)))
		return
	}
	p.WriteString("\x8a\x08")
	p.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}
