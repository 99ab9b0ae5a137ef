// Package quant packs and unpacks numbers in the blocks of GGUF files.
//
// A kind is a type of ggml, such as Q4_K. Its blocks hold 32 or 256 numbers of a row as levels of a
// few bits with shared scales, and minima in some kinds. [UnpackRows] decodes rows bit for bit as
// ggml and the gguf Python package do, and [Pack] encodes them. [Mix] chooses the kinds of a
// model's matrices. csrc/cpu/block_kinds.inl unpacks the same kinds for kernels that compute on
// blocks.
package quant

// Kind is one of ggml's types: blocks of Block numbers in Bytes bytes.
type Kind struct {
	Name   string
	Number int // in GGUF files
	Block  int
	Bytes  int
}

// Kinds lists ggml's types. It includes those that are not unpacked: their sizes are needed to
// check a file, and their names for error messages.
var Kinds = []Kind{
	{"F32", 0, 1, 4},
	{"F16", 1, 1, 2},
	{"Q4_0", 2, 32, 18},
	{"Q4_1", 3, 32, 20},
	{"Q5_0", 6, 32, 22},
	{"Q5_1", 7, 32, 24},
	{"Q8_0", 8, 32, 34},
	{"Q8_1", 9, 32, 40},
	{"Q2_K", 10, 256, 84},
	{"Q3_K", 11, 256, 110},
	{"Q4_K", 12, 256, 144},
	{"Q5_K", 13, 256, 176},
	{"Q6_K", 14, 256, 210},
	{"Q8_K", 15, 256, 292},
	{"IQ2_XXS", 16, 256, 66},
	{"IQ2_XS", 17, 256, 74},
	{"IQ3_XXS", 18, 256, 98},
	{"IQ1_S", 19, 256, 50},
	{"IQ4_NL", 20, 32, 18},
	{"IQ3_S", 21, 256, 110},
	{"IQ2_S", 22, 256, 82},
	{"IQ4_XS", 23, 256, 136},
	{"I8", 24, 1, 1},
	{"I16", 25, 1, 2},
	{"I32", 26, 1, 4},
	{"I64", 27, 1, 8},
	{"F64", 28, 1, 8},
	{"IQ1_M", 29, 256, 56},
	{"BF16", 30, 1, 2},
	{"TQ1_0", 34, 256, 54},
	{"TQ2_0", 35, 256, 66},
	{"MXFP4", 39, 32, 17},
	{"NVFP4", 40, 64, 36},
	{"Q1_0", 41, 128, 18},
}

// Unpacked names the kinds that [Unpacks], for error messages.
const Unpacked = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, " +
	"IQ4_NL, IQ4_XS or MXFP4"

var byName, byNumber = func() (map[string]Kind, map[int]Kind) {
	names, numbers := map[string]Kind{}, map[int]Kind{}
	for _, k := range Kinds {
		names[k.Name], numbers[k.Number] = k, k
	}
	for _, k := range codeKinds { // which no file has
		names[k.Name] = k
	}
	return names, numbers
}()

// ByName finds a kind by its name, such as "Q4_K"; also one of [CodeKinds].
func ByName(name string) (Kind, bool) { k, ok := byName[name]; return k, ok }

// ByNumber finds a kind by its number in GGUF files.
func ByNumber(number int) (Kind, bool) { k, ok := byNumber[number]; return k, ok }

// Plain reports whether the kind's blocks are single numbers.
func (k Kind) Plain() bool { return k.Block == 1 }
