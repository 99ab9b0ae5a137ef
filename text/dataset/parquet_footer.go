package dataset

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/apache/thrift/lib/go/thrift"
)

// Fields of parquet.thrift.
const (
	footerSchema    = 2 // of FileMetaData: the schema's elements
	elementChildren = 5 // of SchemaElement
)

// checkGroups refuses a Parquet file whose schema is nested too deep, or has a group of more
// children than the schema has elements. The Parquet library reserves memory for the children that
// a group claims, and calls itself for them. Whatever else is wrong with a footer is left to it.
func checkGroups(data []byte) error {
	const end = 8 // the footer's length and the magic number
	if len(data) < end {
		return nil
	}
	size := int64(binary.LittleEndian.Uint32(data[len(data)-end:]))
	if size > int64(len(data)-end) {
		return nil
	}
	buffer := thrift.NewTMemoryBufferLen(0)
	buffer.Write(data[len(data)-end-int(size) : len(data)-end])
	ctx, p := context.Background(), thrift.NewTCompactProtocolConf(buffer, nil)
	var wrong error
	fieldsOf(ctx, p, func(id int16, kind thrift.TType) error {
		if id != footerSchema || kind != thrift.LIST {
			return p.Skip(ctx, kind)
		}
		of, elements, err := p.ReadListBegin(ctx)
		var open []int32 // children that still follow in the groups around the element
		for range elements {
			if err != nil || of != thrift.STRUCT || wrong != nil {
				break
			}
			var children int32
			err = fieldsOf(ctx, p, func(id int16, kind thrift.TType) (err error) {
				if id != elementChildren || kind != thrift.I32 {
					return p.Skip(ctx, kind)
				}
				children, err = p.ReadI32(ctx)
				if int(children) > elements {
					wrong = fmt.Errorf("a group of its schema has %d children, and the schema has "+
						"%d elements: the file is damaged", children, elements)
				}
				return err
			})
			for len(open) > 0 && open[len(open)-1] == 0 {
				open = open[:len(open)-1]
			}
			if len(open) > 0 {
				open[len(open)-1]--
			}
			if children > 0 {
				open = append(open, children)
			}
			if len(open) > maxNesting && wrong == nil {
				wrong = errNesting
			}
		}
		if wrong != nil {
			return wrong
		}
		return err
	})
	return wrong
}

// fieldsOf calls f for each field of the struct that p is at.
func fieldsOf(ctx context.Context, p thrift.TProtocol,
	f func(id int16, kind thrift.TType) error) error {
	if _, err := p.ReadStructBegin(ctx); err != nil {
		return err
	}
	for {
		_, kind, id, err := p.ReadFieldBegin(ctx)
		if err != nil || kind == thrift.STOP {
			return err
		}
		if err := f(id, kind); err != nil {
			return err
		}
		if err := p.ReadFieldEnd(ctx); err != nil {
			return err
		}
	}
}
