package dataset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	parquetfile "github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/schema"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
)

// The Parquet library reserves memory for the values that a page claims, and unpacks pages of some
// codecs whatever size they reach. The limits here are far above what writers make.
const (
	maxDictionary = 1 << 22 // values of a dictionary
	maxDelta      = 1 << 22 // values of a page of differences
	maxDeltaBlock = 1 << 16 // values of a block of differences
	maxLeaves     = 1 << 10 // columns of numbers or text below the columns that are read
	pageCost      = 256     // bytes that a page counts beside its own
	dictionaryRef = 24      // bytes that a value of a dictionary takes beside its own
)

// maxValues is the bytes of the values that are read at a time.
var maxValues = 32 << 20 // tests lower it

// pageBudget bounds what reading the pages of a file costs. Several chunks may claim the same
// bytes, and a few bytes may stand for many values.
type pageBudget struct {
	chunks int64 // bytes of column chunks that may still be opened: they do not overlap
	pages  int64 // unpacked bytes and values that their pages may still have

	file   int   // bytes of the file
	leaves int   // columns of a row group that may still be opened
	memory int64 // bytes that a page and a dictionary of each of these columns may still take
}

func newPageBudget(file int) *pageBudget {
	return &pageBudget{chunks: int64(file), pages: unpackLimit(file), file: file}
}

// openGroup begins a row group, of which a page of each column is in memory.
func (b *pageBudget) openGroup() {
	const few, ratio = 32 << 20, 16
	b.leaves, b.memory = maxLeaves, max(few, int64(b.file)*ratio)
}

// openChunk counts a column chunk of the given size.
func (b *pageBudget) openChunk(size int64) error {
	if b.leaves--; b.leaves < 0 {
		return fmt.Errorf("the columns to read consist of more than %d columns", maxLeaves)
	}
	if size < 0 || size > b.chunks {
		return errors.New("the file is damaged: its column chunks overlap")
	}
	b.chunks -= size
	return nil
}

// check reads all pages of a column chunk once. It refuses those that would take the library much
// memory or time, and returns how long a value of few bytes may be: one of a dictionary, or one
// that is stored as the difference from the value before.
func (b *pageBudget) check(pages parquetfile.PageReader, column *schema.Column) (
	longest int, err error,
) {
	defer pages.Close()
	page, dictionary := 0, 0 // bytes of the largest ones
	for pages.Next() {
		size := 0
		switch p := pages.Page().(type) {
		case *parquetfile.DictionaryPage:
			values := int(p.NumValues())
			size = len(p.Data()) + values*dictionaryRef
			if values > maxDictionary || values > len(p.Data()) {
				return 0, fmt.Errorf("a dictionary of %d values in %d bytes, expected at most "+
					"%d values", values, len(p.Data()), maxDictionary)
			}
			dictionary = max(dictionary, size)
			if column.PhysicalType() == parquet.Types.ByteArray {
				longest = max(longest, longestText(p.Data()))
			}
		case parquetfile.DataPage:
			size = len(p.Data()) + int(p.NumValues())
			if err := checkDifferences(p, column); err != nil {
				return 0, err
			}
			page = max(page, len(p.Data()))
			if parquet.Encoding(p.Encoding()) == parquet.Encodings.DeltaByteArray {
				longest = max(longest, len(p.Data()))
			}
		}
		if b.pages -= int64(size + pageCost); b.pages < 0 {
			return 0, errUnpacks
		}
	}
	if err := pages.Err(); err != nil {
		return 0, err
	}
	if b.memory -= int64(page + dictionary); b.memory < 0 {
		return 0, fmt.Errorf("pages of %d bytes and dictionaries of %d are too large for a file "+
			"of %d bytes", page, dictionary, b.file)
	}
	return longest, nil
}

// longestText returns the length of the longest text in a dictionary.
func longestText(data []byte) (longest int) {
	for len(data) >= 4 {
		n := int(binary.LittleEndian.Uint32(data))
		if data = data[4:]; n > len(data) {
			break
		}
		longest, data = max(longest, n), data[n:]
	}
	return longest
}

// checkDifferences refuses a page whose values are stored as differences if it claims more of them
// than its bytes can hold in blocks of a usual size.
func checkDifferences(p parquetfile.DataPage, column *schema.Column) error {
	encoding := parquet.Encoding(p.Encoding())
	lists := 1 // of numbers, which begin the values
	switch encoding {
	case parquet.Encodings.DeltaByteArray:
		lists = 2
	case parquet.Encodings.DeltaBinaryPacked, parquet.Encodings.DeltaLengthByteArray:
	default:
		return nil
	}
	if p.NumValues() > maxDelta {
		return fmt.Errorf("a page has %d values as differences, expected at most %d",
			p.NumValues(), maxDelta)
	}
	data, err := valuesOf(p, column)
	for range lists {
		if err != nil {
			break
		}
		data, err = skipDifferences(data)
	}
	if err != nil {
		return fmt.Errorf("a page of the encoding %v: %w", encoding, err)
	}
	return nil
}

var errPageCut = errors.New("it is damaged or cut short")

// valuesOf returns the values of a page, which follow the levels.
func valuesOf(p parquetfile.DataPage, column *schema.Column) ([]byte, error) {
	data := p.Data()
	switch p := p.(type) {
	case *parquetfile.DataPageV2:
		levels := int(p.RepetitionLevelByteLen()) + int(p.DefinitionLevelByteLen())
		if levels > len(data) {
			return nil, errPageCut
		}
		return data[levels:], nil
	case *parquetfile.DataPageV1:
		for _, level := range []struct {
			most     int16
			encoding parquet.Encoding
		}{
			{column.MaxRepetitionLevel(), p.RepetitionLevelEncoding()},
			{column.MaxDefinitionLevel(), p.DefinitionLevelEncoding()},
		} {
			size := 0
			switch {
			case level.most == 0:
				continue
			case level.encoding == parquet.Encodings.BitPacked:
				size = (int(p.NumValues())*bits.Len16(uint16(level.most)) + 7) / 8
			case len(data) < 4:
				return nil, errPageCut
			default:
				size = 4 + int(binary.LittleEndian.Uint32(data))
			}
			if size > len(data) {
				return nil, errPageCut
			}
			data = data[size:]
		}
	}
	return data, nil
}

// skipDifferences returns what follows a list of numbers in the encoding DELTA_BINARY_PACKED.
func skipDifferences(data []byte) ([]byte, error) {
	var header [4]uint64 // values of a block, parts of a block, values of the list, the first one
	for i := range header {
		n := 0
		if header[i], n = binary.Uvarint(data); n <= 0 {
			return nil, errPageCut
		}
		data = data[n:]
	}
	block, parts, total := header[0], header[1], header[2]
	if block == 0 || block > maxDeltaBlock || parts == 0 || parts > block || total > maxDelta {
		return nil, fmt.Errorf("%d values in blocks of %d in %d parts, expected at most %d values "+
			"in blocks of at most %d", total, block, parts, maxDelta, maxDeltaBlock)
	}
	part := int(block / parts)
	for left := int(total) - 1; left > 0; {
		_, n := binary.Uvarint(data) // the least difference
		if n <= 0 || len(data)-n < int(parts) {
			return nil, errPageCut
		}
		widths := data[n : n+int(parts)]
		data = data[n+int(parts):]
		for _, width := range widths {
			if left <= 0 {
				break
			}
			size := (int(width)*part + 7) / 8
			if size > len(data) {
				return nil, errPageCut
			}
			data, left = data[size:], left-part
		}
	}
	return data, nil
}

// The library's codecs of zstd and Snappy make as much as a page asks for, whatever size its header
// says. These make no more than the size in the header.
func init() {
	unpack, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // the options are not valid
	}
	fit(compress.Codecs.Zstd, func(dst, src []byte) ([]byte, error) {
		return unpack.DecodeAll(src, dst[:0:len(dst)])
	})
	fit(compress.Codecs.Snappy, func(dst, src []byte) ([]byte, error) {
		if n, err := snappy.DecodedLen(src); err != nil || n > len(dst) {
			return nil, fmt.Errorf("a page of %d bytes does not fit the %d bytes in its header",
				n, len(dst))
		}
		return snappy.Decode(dst, src)
	})
}

// fit replaces the decoder of a codec.
func fit(of compress.Compression, decode func(dst, src []byte) ([]byte, error)) {
	codec, err := compress.GetCodec(of)
	if err != nil {
		panic(err) // the library has it
	}
	compress.RegisterCodec(of, fitted{codec, decode})
}

type fitted struct {
	compress.Codec
	decode func(dst, src []byte) ([]byte, error)
}

// DecodeWithError implements [compress.ErrorCodec].
func (f fitted) DecodeWithError(dst, src []byte) ([]byte, error) { return f.decode(dst, src) }
