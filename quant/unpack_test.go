package quant

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"conquer/torch"
)

func TestDequantize_RoundsAsLibtorch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	values := []float32{0, float32(math.Copysign(0, -1)), 65504, 65519.996, 65520, 65536, 1e-45,
		0x1p-24, 0x1p-25, 0x1.000002p-25,
		0x1p-14, 0x1.ffcp-15, 0x1.ffep-15, math.MaxFloat32, float32(math.Inf(1)),
		float32(math.Inf(-1))}
	for range 200_000 {
		f := math.Float32frombits(random.Uint32())
		// near float16's range
		bits := random.Uint32()&0x8fffffff | 0x33000000 + random.Uint32N(0x15)<<23
		half := math.Float32frombits(bits)
		// between two bfloat16
		tie := math.Float32frombits(random.Uint32()&0xffff0000 | 0x8000)
		tie16 := math.Float32frombits(math.Float32bits(half)&^0x1fff | 0x1000)
		for _, v := range []float32{f, half, tie, tie16} {
			if v == v {
				values = append(values, v)
			}
		}
	}
	got := make([]byte, 2*len(values))
	err := torch.Run(func() error {
		source := torch.From(values, len(values))
		for dtype, round := range map[torch.DType]func([]byte,
			[]float32){torch.BFloat16: roundBF16, torch.Float16: roundF16} {
			round(got, values)
			want := source.To(dtype).Data()
			for i, v := range values {
				if got[2*i] != want[2*i] || got[2*i+1] != want[2*i+1] {
					t.Fatalf("%v (%x) as %v is %x, expected %x", v, math.Float32bits(v), dtype,
						got[2*i:2*i+2], want[2*i:2*i+2])
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, round := range []func([]byte, []float32){roundBF16, roundF16} {
		pair := make([]byte, 2)
		round(pair, []float32{math.Float32frombits(0x7f800001)})
		if exponent := pair[1] & 0x7c; exponent != 0x7c || pair[1] == 0x7f && pair[0] == 0x80 {
			t.Errorf("a NaN became %x", pair)
		}
	}
}

func TestDequantize_SharesLongAndShortRowsEvenly(t *testing.T) {
	for _, shape := range [][2]int{{1, 3*decodeChunk + 512}, {5000, 32}, {3, decodeChunk + 256},
		{1, 0}, {0, 32}} {
		rows, columns := shape[0], shape[1]
		src := make([]byte, rows*columns/32*20)
		for i := range src {
			src[i] = byte(i*i>>3) & 0x3f // scales stay finite
		}
		want := make([]float32, rows*columns)
		decodeQ4_1(want, src)
		dst := make([]byte, 4*rows*columns)
		reversed := func(row int) int { return rows - 1 - row }
		if err := UnpackRows(dst, "F32", src, "Q4_1", rows, columns, reversed); err != nil {
			t.Fatal(err)
		}
		for i, got := range float32s(dst) {
			from := reversed(i/columns)*columns + i%columns
			if got != want[from] {
				t.Fatalf("%v: number %d is %v, expected %v", shape, i, got, want[from])
			}
		}
	}
	if err := UnpackRows(make([]byte, 128), "F32", make([]byte, 19), "Q4_1", 1, 32,
		nil); err == nil {
		t.Error("a block of 19 bytes was decoded as Q4_1")
	}
}

func TestUnpack_GivesTheNumbersOfThePythonPackage(t *testing.T) {
	var expected map[string]struct {
		Bytes  []byte
		SHA256 string
	}
	text, err := os.ReadFile("testdata/kinds.json")
	if err == nil {
		err = json.Unmarshal(text, &expected)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range Kinds {
		want, ok := expected[kind.Name]
		if kind.Plain() || !Unpacks(kind.Name) {
			continue
		}
		if !ok {
			t.Errorf("the fixture has no %s", kind.Name)
			continue
		}
		values := make([]float32, len(want.Bytes)/kind.Bytes*kind.Block)
		Unpack(values, kind.Name, want.Bytes)
		sum := sha256.Sum256(unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), 4*len(values)))
		if hex.EncodeToString(sum[:]) != want.SHA256 {
			t.Errorf("%s differs: begins %v", kind.Name, values[:4])
		}
	}
}
