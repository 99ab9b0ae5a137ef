package dataset

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// A file of the cache holds the samples of one call of Load:
//
//	mark, key, samples, description, size of the description (8 bytes), CRC-32C of all before (4)
//
// The description is JSON. A sample is six numbers of 32 bits (see storedSample.parse), the ranges
// of its tokens that have loss, two numbers each, and its tokens in 16 or 32 bits, filled up to a
// multiple of four bytes. All numbers are little-endian.

const storedMark = "conquer1"

// storedContinues stands in place of the rating of a sample that continues a text.
const storedContinues = 2

// Sizes in bytes.
const (
	storedHead = len(storedMark) + sha256.Size
	storedTail = 8 + 4
	sampleHead = 6 * 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// description is what a file of the cache says about its samples.
type description struct {
	Samples, Width int // the width of a token is 2 or 4 bytes
	Report         Report
	Files          []FileReport
	Chosen         Chosen
	Bad            []string
	Hash           [sha256.Size]byte
	Largest        int32
	LargestIn      string   // file and line of the largest token
	MappedColumns  []string // see Columns
	ColumnsOfAFile []string
}

// storedWriter writes samples to a file of the cache.
type storedWriter struct {
	to      io.Writer
	crc     uint32
	written int64
	limit   int64 // of the bytes of the file
	width   int
	samples int
	buffer  []byte
	err     error
}

// errCacheFull says that the samples do not fit into the cache.
var errCacheFull = errors.New("the samples do not fit into it")

func newStoredWriter(to io.Writer, key [sha256.Size]byte, vocabulary int,
	limit int64) *storedWriter {
	w := &storedWriter{to: to, width: 4, limit: limit}
	if vocabulary <= 1<<16 {
		w.width = 2
	}
	w.write(append([]byte(storedMark), key[:]...))
	return w
}

// write writes data. After an error it does nothing.
func (w *storedWriter) write(data []byte) {
	if w.err != nil {
		return
	}
	if w.written += int64(len(data)); w.written > w.limit {
		w.err = errCacheFull
		return
	}
	w.crc = crc32.Update(w.crc, castagnoli, data)
	_, w.err = w.to.Write(data)
}

// add writes a sample of a record.
func (w *storedWriter) add(record uint32, s Sample) {
	if w.err != nil {
		return
	}
	var ranges []uint32
	for i := 0; i < len(s.Labels); i++ {
		if s.Labels[i] == IgnoreLabel {
			continue
		}
		from := i
		for i < len(s.Labels) && s.Labels[i] == s.IDs[i] {
			i++
		}
		if i == from {
			w.err = fmt.Errorf("label %d is %d, the token %d", i, s.Labels[i], s.IDs[i])
			return
		}
		ranges = append(ranges, uint32(from), uint32(i))
		i--
	}
	rating := uint32(int32(s.Rating))
	if s.Continues {
		rating = storedContinues
	}
	b := w.buffer[:0]
	for _, v := range []uint32{record, uint32(len(s.IDs)), uint32(s.Second), uint32(s.targets()),
		uint32(len(ranges) / 2), rating} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	for _, v := range ranges {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	for _, id := range s.IDs {
		if w.width == 2 {
			b = binary.LittleEndian.AppendUint16(b, uint16(id))
		} else {
			b = binary.LittleEndian.AppendUint32(b, uint32(id))
		}
	}
	for len(b)%4 > 0 {
		b = append(b, 0)
	}
	w.buffer = b
	w.samples++
	w.write(b)
}

// finish writes the description.
func (w *storedWriter) finish(d description) error {
	d.Samples, d.Width = w.samples, w.width
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	w.write(text)
	w.write(binary.LittleEndian.AppendUint64(nil, uint64(len(text))))
	w.write(binary.LittleEndian.AppendUint32(nil, w.crc))
	return w.err
}

// stored is the samples of a file of the cache, read in place. A position is a byte offset.
type stored struct {
	name string
	data []byte // up to the description
	description
	maps *mappings
}

var errStored = errors.New("it is damaged")

// openStored reads a file of the cache. refs locate its samples.
func openStored(name string, data []byte, key [sha256.Size]byte) (s *stored, refs []ref,
	err error) {
	if len(data) < storedHead+storedTail || string(data[:len(storedMark)]) != storedMark ||
		[sha256.Size]byte(data[len(storedMark):]) != key {
		return nil, nil, errStored
	}
	body, sum := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, nil, errStored
	}
	body, size := body[:len(body)-8], binary.LittleEndian.Uint64(body[len(body)-8:])
	if size > uint64(len(body)-storedHead) {
		return nil, nil, errStored
	}
	end := len(body) - int(size)
	s = &stored{name: name, data: body[:end]}
	if err := json.Unmarshal(body[end:], &s.description); err != nil {
		return nil, nil, errStored
	}
	if s.Samples < 0 || s.Samples > end/sampleHead || s.Width != 2 && s.Width != 4 {
		return nil, nil, errStored
	}
	refs = make([]ref, 0, s.Samples)
	at := storedHead
	for range s.Samples {
		one, ok := s.parse(at)
		if !ok {
			return nil, nil, errStored
		}
		refs = append(refs, newRef(int64(at), 0, one.record, int(one.length), int32(one.targets),
			one.continues))
		at += one.size
	}
	if at != end {
		return nil, nil, errStored
	}
	return s, refs, nil
}

// storedSample is a sample in a file of the cache.
type storedSample struct {
	record, length, second, targets, ranges uint32
	rating                                  Rating
	continues                               bool

	size           int // bytes of the sample
	rangesAt, idAt int // offsets of the ranges and of the tokens
}

// parse reads the numbers of the sample at an offset. ok is false if they do not fit into the file.
func (s *stored) parse(at int) (one storedSample, ok bool) {
	if at < 0 || len(s.data)-at < sampleHead {
		return one, false
	}
	number := func(i int) uint32 { return binary.LittleEndian.Uint32(s.data[at+4*i:]) }
	one = storedSample{record: number(0), length: number(1), second: number(2), targets: number(3),
		ranges: number(4)}
	value := number(5)
	if one.continues = value == storedContinues; one.continues {
		value = uint32(Unrated)
	}
	one.rating = Rating(value)
	one.rangesAt = at + sampleHead
	one.idAt = one.rangesAt + 8*int(one.ranges)
	one.size = (one.idAt - at + s.Width*int(one.length) + 3) &^ 3
	return one, one.length > 0 && one.length <= 1<<30 && one.second < one.length &&
		one.targets > 0 && one.targets <= one.length && one.ranges <= one.length &&
		uint32(int32(one.rating)) == value && one.rating >= -1 && one.rating <= 1 &&
		one.size <= len(s.data)-at
}

// sample implements source.
func (s *stored) sample(r ref) (sample Sample, err error) {
	err = s.maps.whileOpen(func() error {
		return guarded(func() (err error) { sample, err = s.read(int(r.at)); return err })
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", s.name, err)
	}
	return sample, err
}

func (s *stored) read(at int) (sample Sample, err error) {
	one, ok := s.parse(at)
	if !ok {
		return sample, errStored
	}
	sample = Sample{IDs: make([]int32, one.length), Labels: ignored(int(one.length)),
		Second: int(one.second), Rating: one.rating, Continues: one.continues}
	for i := range sample.IDs {
		if s.Width == 2 {
			sample.IDs[i] = int32(binary.LittleEndian.Uint16(s.data[one.idAt+2*i:]))
		} else {
			sample.IDs[i] = int32(binary.LittleEndian.Uint32(s.data[one.idAt+4*i:]))
		}
		if sample.IDs[i] < 0 || sample.IDs[i] > s.Largest {
			return sample, errStored
		}
	}
	for i := range int(one.ranges) {
		from := binary.LittleEndian.Uint32(s.data[one.rangesAt+8*i:])
		to := binary.LittleEndian.Uint32(s.data[one.rangesAt+8*i+4:])
		if from >= to || to > one.length {
			return sample, errStored
		}
		copy(sample.Labels[from:to], sample.IDs[from:to])
	}
	return sample, nil
}

// where implements source.
func (s *stored) where(int64) string { return s.LargestIn }

// recordOf implements source.
func (s *stored) recordOf(r ref) int64 { return int64(r.index) }

// dataset returns the samples as a Dataset.
func (s *stored) dataset(refs []ref, maps *mappings) *Dataset {
	s.maps = maps
	d := &Dataset{Report: s.Report, Files: s.Files, Chosen: s.Chosen, Bad: s.Bad, Cached: true,
		refs: refs, sources: []source{s}, maps: []*mappings{maps}, hash: s.Hash,
		largest: s.Largest}
	if len(refs) > 0 {
		d.largestIn = refs[0]
	}
	return d
}

// describe returns what a file of the cache says about d.
func (d *Dataset) describe(columns *Columns) description {
	about := description{Report: d.Report, Files: slices.Clone(d.Files), Chosen: d.Chosen,
		Bad: d.Bad, Hash: d.hash, Largest: d.largest}
	about.MappedColumns, about.ColumnsOfAFile = columns.found()
	about.LargestIn = d.sources[d.largestIn.source].where(d.largestIn.at)
	return about
}
