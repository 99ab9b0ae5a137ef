package dataset

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/thrift/lib/go/thrift"
)

// footer is a Parquet file of a footer alone, whose schema has elements with the given numbers of
// children.
func footer(children ...int32) []byte {
	ctx, buffer := context.Background(), thrift.NewTMemoryBuffer()
	p := thrift.NewTCompactProtocolConf(buffer, nil)
	p.WriteStructBegin(ctx, "FileMetaData")
	p.WriteFieldBegin(ctx, "version", thrift.I32, 1)
	p.WriteI32(ctx, 1)
	p.WriteFieldBegin(ctx, "schema", thrift.LIST, 2)
	p.WriteListBegin(ctx, thrift.STRUCT, len(children))
	for _, n := range children {
		p.WriteStructBegin(ctx, "SchemaElement")
		p.WriteFieldBegin(ctx, "name", thrift.STRING, 4)
		p.WriteString(ctx, "text")
		p.WriteFieldBegin(ctx, "num_children", thrift.I32, 5)
		p.WriteI32(ctx, n)
		p.WriteFieldStop(ctx)
		p.WriteStructEnd(ctx)
	}
	p.WriteFieldStop(ctx)
	p.WriteStructEnd(ctx)
	body := append([]byte("PAR1"), buffer.Bytes()...)
	body = binary.LittleEndian.AppendUint32(body, uint32(buffer.Len()))
	return append(body, "PAR1"...)
}

func TestParquet_GroupsHaveNoMoreChildrenThanTheSchemaElements(t *testing.T) {
	for children, want := range map[int32]string{1: "", 2: "",
		3: "has 3 children, and the schema has 2"} {
		err := checkGroups(footer(children, 0))
		if want == "" && err != nil || want != "" && (err == nil ||
			!strings.Contains(err.Error(), want)) {
			t.Errorf("%d children: %v", children, err)
		}
	}
	var out bytes.Buffer
	if err := parquetToLines(footer(1<<30, 0), Options{}, &out); err == nil ||
		!strings.Contains(err.Error(), "children") {
		t.Errorf("%v", err)
	}
	good := parquetBytes(t, schemaOf(column("text", arrow.BinaryTypes.String)), `[{"text":"abc"}]`)
	if err := checkGroups(good); err != nil {
		t.Error(err)
	}
	for n := range good { // a damaged footer is left to the library
		checkGroups(good[:n])
	}
}

func TestParquet_SchemasAreNotNestedDeep(t *testing.T) {
	chain := func(n int) []int32 { return append(slices.Repeat([]int32{1}, n), 0) }
	if err := checkGroups(footer(chain(maxNesting)...)); err != nil {
		t.Error(err)
	}
	if err := checkGroups(footer(chain(maxNesting + 1)...)); !errors.Is(err, errNesting) {
		t.Errorf("got %v", err)
	}
	var wide []int32 // groups beside each other
	for range 3 * maxNesting {
		wide = append(wide, 1, 0)
	}
	wide = append([]int32{int32(len(wide) / 2)}, wide...)
	if err := checkGroups(footer(wide...)); err != nil {
		t.Error(err)
	}
}
