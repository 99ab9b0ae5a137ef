package checkpoint

import (
	"archive/zip"
	"bytes"
	"cmp"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"path"
	"slices"
	"strings"

	"conquer/internal/budget"
)

// maxDirectory is the longest list of files in an archive that is read; a model of 100,000 tensors
// takes a half of it.
const maxDirectory = 16 << 20

// directoryReader fails when more bytes of a file were read than a list of files takes.
type directoryReader struct {
	*bytes.Reader
	left int
}

func (r *directoryReader) ReadAt(p []byte, offset int64) (int, error) {
	if r.left -= len(p); r.left < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return r.Reader.ReadAt(p, offset)
}

// parseTorch reads a dictionary of tensors that torch.save wrote: a zip archive of a pickle, which
// describes the tensors, and an uncompressed file for each storage. The pickle is not executed: see
// [unpickle]. Records are in the dictionary's order; strides are set for tensors that are not
// contiguous. What is read is taken from the budget.
func parseTorch(data []byte, left *budget.Budget) ([]record, error) {
	if !bytes.HasPrefix(data, []byte("PK")) {
		return nil, fmt.Errorf("it is not a zip archive, as PyTorch writes since 1.6: truncated, " +
			"or older? torch.load and torch.save it again")
	}
	list := &directoryReader{bytes.NewReader(data), maxDirectory}
	archive, err := zip.NewReader(list, int64(len(data)))
	switch {
	case list.left < 0:
		return nil, fmt.Errorf("its list of files has more than %d bytes", maxDirectory)
	case err != nil:
		return nil, fmt.Errorf("%w: truncated?", err)
	}
	// an entry of 46 bytes becomes a file and a span
	if err := left.Take(8 * (maxDirectory - list.left)); err != nil {
		return nil, err
	}
	list.left = math.MaxInt
	files := map[string]span{}
	var pickle *span
	var checksum uint32
	var order []span
	for _, f := range archive.File {
		if files[f.Name].name != "" {
			return nil, fmt.Errorf("the file %.80q is in the archive twice", f.Name)
		}
		offset, err := f.DataOffset()
		if err != nil {
			return nil, fmt.Errorf("%.80q: %w", f.Name, err)
		}
		if f.CompressedSize64 > uint64(len(data)) || offset < 0 ||
			uint64(offset) > uint64(len(data))-f.CompressedSize64 {
			return nil, fmt.Errorf("%.80q: its %d bytes at %d end behind the file, which has %d: "+
				"truncated?", f.Name, f.CompressedSize64, offset, len(data))
		}
		s := span{f.Name, int(offset), int(f.CompressedSize64),
			f.Method == zip.Store && f.CompressedSize64 == f.UncompressedSize64}
		files[f.Name] = s
		order = append(order, s)
		switch path.Base(f.Name) {
		case "data.pkl":
			if pickle != nil {
				return nil, fmt.Errorf("the archive has two files data.pkl")
			}
			pickle, checksum = &s, f.CRC32
		case "constants.pkl":
			return nil, fmt.Errorf("it is a TorchScript program, expected a dictionary of tensors")
		}
	}
	slices.SortFunc(order, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(order); i++ {
		if before := order[i-1]; before.offset+before.bytes > order[i].offset {
			return nil, fmt.Errorf("the files %.80q and %.80q overlap", before.name, order[i].name)
		}
	}
	switch {
	case pickle == nil:
		return nil, fmt.Errorf("the archive has no file data.pkl: not written by torch.save?")
	case !pickle.plain:
		return nil, fmt.Errorf("data.pkl is compressed, which torch.save does not do")
	}
	prefix := strings.TrimSuffix(pickle.name, "data.pkl")
	if order, ok := files[prefix+"byteorder"]; ok && string(order.of(data)) != "little" {
		return nil, fmt.Errorf("its numbers are %.10q-endian, expected little", order.of(data))
	}
	if err := left.Take(pickle.bytes); err != nil {
		return nil, fmt.Errorf("data.pkl of %d bytes: %w", pickle.bytes, err)
	}
	text := pickle.of(data)
	if crc32.ChecksumIEEE(text) != checksum {
		return nil, fmt.Errorf("data.pkl does not have the checksum that the archive gives it: " +
			"damaged?")
	}
	value, err := unpickle(text, left)
	if err != nil {
		return nil, err
	}
	return torchRecords(value, prefix, files, len(data))
}

// span is the place of a file in an archive.
type span struct {
	name          string
	offset, bytes int
	plain         bool // not compressed
}

func (s span) of(data []byte) []byte { return data[s.offset : s.offset+s.bytes] }

// torchRecords locates the tensors of an unpickled dictionary, or of the one that a training
// program stored in it as "state_dict" or "model".
//
// Tensors may share a storage, as a tied head does. Together they must not have more than twice the
// bytes of the file, which has size.
func torchRecords(value any, prefix string, files map[string]span, size int) ([]record, error) {
	d, ok := value.(*pickleDict)
	if !ok {
		return nil, fmt.Errorf("it holds no dictionary of tensors")
	}
	for _, key := range []string{"state_dict", "model"} {
		if inner, ok := d.values[key].(*pickleDict); ok {
			d = inner
			break
		}
	}
	var records []record
	total := 0
	for _, name := range d.keys {
		t, ok := d.values[name].(*pickleTensor)
		if !ok {
			continue
		}
		r, err := t.place(name, prefix, files)
		if err != nil {
			return nil, fmt.Errorf("tensor %.80q: %w", name, err)
		}
		if total += r.bytes; total > 2*size {
			return nil, fmt.Errorf("tensor %.80q: the tensors share their storages: they have "+
				"more than twice the bytes of the file", name)
		}
		records = append(records, r)
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("there are no tensors in it")
	}
	return records, nil
}

// place locates the tensor's bytes in the file and checks that the tensor stays inside its storage.
func (t *pickleTensor) place(name, prefix string, files map[string]span) (record, error) {
	r := record{name: name, dtype: t.storage.dtype, shape: t.shape}
	file, ok := files[prefix+"data/"+t.storage.key]
	width := safetensorsBits[r.dtype] / 8
	switch {
	case !ok:
		return r, fmt.Errorf("the archive has no file data/%.40s for it", t.storage.key)
	case !file.plain:
		return r, fmt.Errorf("its file data/%.40s is compressed, which torch.save does not do",
			t.storage.key)
	case file.bytes/width != t.storage.count || file.bytes%width != 0:
		return r, fmt.Errorf("its file data/%.40s has %d bytes, expected %d numbers of %s",
			t.storage.key, file.bytes, t.storage.count, r.dtype)
	}
	bits, ok := sizeInBits(t.shape, 8*width)
	if !ok || bits/8 > file.bytes {
		return r, fmt.Errorf("%s of shape %v does not fit in its storage of %d numbers", r.dtype,
			t.shape, t.storage.count)
	}
	r.bytes = bits / 8
	last, expected := t.offset, 1
	for i := len(t.shape) - 1; i >= 0 && r.bytes > 0; i-- {
		n, stride := t.shape[i], t.strides[i]
		if n == 1 {
			continue
		}
		if stride == 0 || stride > t.storage.count || (n-1) > (t.storage.count-1)/stride {
			last = t.storage.count // beyond the end in any case
			break
		}
		last += (n - 1) * stride
		if stride != expected {
			r.strides = t.strides
		}
		expected *= n
	}
	if t.offset > t.storage.count || r.bytes > 0 && last >= t.storage.count {
		return r, fmt.Errorf("shape %v with strides %v from number %d on leaves its storage of "+
			"%d numbers", t.shape, t.strides, t.offset, t.storage.count)
	}
	r.offset = file.offset + t.offset*width
	return r, nil
}

// copyStrided copies elements of width bytes from their strided places in src to dst, last
// dimension fastest.
func copyStrided(dst, src []byte, width int, shape, strides []int) []byte {
	if len(shape) == 0 {
		return dst[copy(dst, src[:width]):]
	}
	for i := range shape[0] {
		dst = copyStrided(dst, src[i*strides[0]*width:], width, shape[1:], strides[1:])
	}
	return dst
}
