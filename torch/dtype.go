package torch

import (
	"fmt"
	"strings"
)

// DType is the type of a tensor's elements, numbered as libtorch's ScalarType.
type DType int

const (
	Uint8    DType = 0
	Int32    DType = 3
	Int64    DType = 4
	Float16  DType = 5
	Float32  DType = 6
	Float64  DType = 7
	Bool     DType = 11
	BFloat16 DType = 15
)

var dtypes = map[DType]struct {
	name string
	size int
}{
	Uint8: {
		"uint8",
		1,
	},
	Int32:    {"int32", 4},
	Int64:    {"int64", 8},
	Float16:  {"float16", 2},
	Float32:  {"float32", 4},
	Float64:  {"float64", 8},
	Bool:     {"bool", 1},
	BFloat16: {"bfloat16", 2},
}

// Size returns the bytes of one element.
func (d DType) Size() int { return dtypes[d].size }

// String returns PyTorch's name of d.
func (d DType) String() string {
	if info, ok := dtypes[d]; ok {
		return info.name
	}
	return fmt.Sprintf("dtype(%d)", int(d))
}

// Floating reports whether d is a floating-point type.
func (d DType) Floating() bool {
	return d == Float16 || d == Float32 || d == Float64 || d == BFloat16
}

// ParseDType parses a floating-point dtype: its PyTorch name or short form (fp32, bf16, fp16).
func ParseDType(name string) (DType, error) {
	switch strings.TrimPrefix(name, "torch.") {
	case "float32", "fp32", "float":
		return Float32, nil
	case "bfloat16", "bf16":
		return BFloat16, nil
	case "float16", "fp16", "half":
		return Float16, nil
	case "float64", "fp64", "double":
		return Float64, nil
	}
	return 0, fmt.Errorf("unknown dtype %q: use float32, bfloat16 or float16", name)
}
