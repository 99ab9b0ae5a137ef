package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"conquer/internal/budget"
)

func TestSafetensors_HostileFilesAreRefusedByTensor(t *testing.T) {
	tensor := func(rest string) string { return `{"w":{` + rest + `}}` }
	f32 := func(shape, offsets string) string {
		return tensor(`"dtype":"F32","shape":` + shape + `,"data_offsets":` + offsets)
	}
	two := func(a, b string) string {
		return `{"v":{"dtype":"U8","shape":[4],"data_offsets":` + a +
			`},"w":{"dtype":"U8","shape":[4],"data_offsets":` + b + `}}`
	}
	for name, test := range map[string]struct {
		file string
		want []string
	}{
		"empty file":  {"", []string{"it is empty"}},
		"seven bytes": {"1234567", []string{"7 bytes"}},
		"absurd length": {strings.Repeat("\xff", 8) + "{}",
			[]string{"claims 18446744073709551615", "at most"}},
		"longer than the file": {"\x10\x00\x00\x00\x00\x00\x00\x00{}",
			[]string{"claims 16", "only 2"}},
		"no header":   {safetensorsFile("", ""), []string{"'{'"}},
		"not JSON":    {safetensorsFile("hello", ""), []string{"'{'"}},
		"cut JSON":    {safetensorsFile(`{"w":{`, ""), []string{"middle"}},
		"text behind": {safetensorsFile(`{} x`, ""), []string{"nothing after"}},
		"no UTF-8":    {safetensorsFile("{\"\xff\":1}", ""), []string{"UTF-8"}},
		"deep nesting": {safetensorsFile(`{"w":`+strings.Repeat("[", 1e6), ""),
			[]string{`"w"`, `"{"`}},
		"nested shape": {safetensorsFile(f32(`[[1]]`, `[0,4]`), "1234"),
			[]string{`"w"`, "shape"}},
		"duplicate tensor": {safetensorsFile(`{`+
			`"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},`+
			`"\u0077":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, ""),
			[]string{`"w"`, "twice"}},
		"duplicate key": {safetensorsFile(tensor(`"dtype":"U8","dtype":"F32"`), ""),
			[]string{`"w"`, `"dtype"`, "twice"}},
		"unknown key": {safetensorsFile(tensor(`"dtype":"U8","strides":[1]`), ""),
			[]string{`"w"`, `"strides"`}},
		"missing shape": {safetensorsFile(tensor(`"dtype":"U8","data_offsets":[0,0]`), ""),
			[]string{`"w"`, "expected dtype, shape"}},
		"unknown dtype": {
			safetensorsFile(tensor(`"dtype":"F31","shape":[1],"data_offsets":[0,4]`), "1234"),
			[]string{`"w"`, `"F31"`}},
		"dtype is a number": {safetensorsFile(tensor(`"dtype":3,"shape":[1],"data_offsets":[0,4]`),
			"1234"), []string{`"w"`, "dtype", "string"}},
		"negative dimension": {safetensorsFile(f32(`[-1]`, `[0,4]`), "1234"),
			[]string{`"w"`, "shape", "-1"}},
		"fractional dimension": {safetensorsFile(f32(`[1.0]`, `[0,4]`), "1234"),
			[]string{`"w"`, "shape", "1.0"}},
		"dimension over int64": {safetensorsFile(f32(`[9223372036854775808]`, `[0,4]`), "1234"),
			[]string{`"w"`, "9223372036854775808"}},
		"overflowing product": {safetensorsFile(f32(`[4294967296,4294967296,4]`, `[0,4]`),
			"1234"), []string{`"w"`, "2^63"}},
		"rank of 65": {safetensorsFile(f32(`[1`+strings.Repeat(",1", 64)+`]`, `[0,4]`),
			"1234"), []string{`"w"`, "at most 64"}},
		"three offsets": {safetensorsFile(f32(`[1]`, `[0,4,8]`), "1234"),
			[]string{`"w"`, "data_offsets"}},
		"backward offsets": {safetensorsFile(f32(`[1]`, `[4,0]`), "1234"),
			[]string{`"w"`, "[4, 0]"}},
		"shape against bytes": {safetensorsFile(f32(`[2]`, `[0,4]`), "1234"),
			[]string{`"w"`, "hold 4 bytes", "takes 8"}},
		"out of range": {safetensorsFile(f32(`[2]`, `[0,8]`), "1234"),
			[]string{`"w"`, "truncated"}},
		"far out of range": {safetensorsFile(f32(`[1]`,
			`[4611686018427387900,4611686018427387904]`), "1234"), []string{`"w"`}},
		"half a byte": {safetensorsFile(tensor(`"dtype":"F4","shape":[3],"data_offsets":[0,2]`),
			"12"), []string{`"w"`, "whole number of bytes"}},
		"overlap": {safetensorsFile(two("[0,4]", "[2,6]"), "123456"),
			[]string{`"w"`, "overlaps"}},
		"the same bytes twice": {safetensorsFile(two("[0,4]", "[0,4]"), "1234"),
			[]string{"overlaps"}},
		"hole": {safetensorsFile(two("[0,4]", "[6,10]"), "1234567890"),
			[]string{`"w"`, "hole"}},
		"hole in front": {safetensorsFile(f32(`[1]`, `[4,8]`), "12345678"),
			[]string{`"w"`, "hole"}},
		"bytes behind": {safetensorsFile(f32(`[1]`, `[0,4]`), "12345"),
			[]string{"1 bytes behind"}},
		"metadata not text": {safetensorsFile(`{"__metadata__":{"a":1}}`, ""),
			[]string{"__metadata__", "string"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, "bad.safetensors", test.file)
			_, err := Open(path)
			wantError(t, err, append(test.want, path)...)
		})
	}
}

func TestSafetensors_TruncatedFilesAreRefused(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(fixtures, "dtypes.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if _, _, err := parseSafetensors(data[:n], budget.New(budget.Model)); err == nil {
			t.Fatalf("%d of %d bytes were accepted", n, len(data))
		}
	}
}

func TestSafetensors_HeaderIsReadAsWritten(t *testing.T) {
	records := []record{
		{name: "a \"quoted\" <name> é", dtype: "F32", shape: []int{2, 3}, bytes: 24},
		{name: "scalar", dtype: "BF16", shape: []int{}, bytes: 2},
		{name: "z empty", dtype: "U8", shape: []int{0, 7}, bytes: 0},
	}
	header, err := safetensorsHeader(records)
	if err != nil || len(header)%8 != 0 {
		t.Fatalf("%v, %d bytes", err, len(header))
	}
	got, metadata, err := parseSafetensors(append(header, make([]byte, 26)...),
		budget.New(budget.Model))
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		records[i].offset += len(header)
	}
	if !reflect.DeepEqual(got, records) || metadata["format"] != "pt" {
		t.Errorf("%+v\nexpected %+v", got, records)
	}
}

// A model of 1 GB (16 tensors of 64 MB; the file is sparse, so that the disk does not matter) opens
// without its data being read.
func BenchmarkOpenOneGigabyte(b *testing.B) {
	path := filepath.Join(b.TempDir(), "model.safetensors")
	var records []record
	for i := range 16 {
		records = append(records, record{name: fmt.Sprintf("model.layers.%d.mlp.up_proj.weight",
			i), dtype: "BF16", shape: []int{4096, 8192}, bytes: 64 << 20})
	}
	header, err := safetensorsHeader(records)
	if err == nil {
		err = os.WriteFile(path, header, 0o644)
	}
	if err == nil {
		err = os.Truncate(path, int64(len(header)+len(records)*64<<20))
	}
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	for b.Loop() {
		c, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	b.ReportMetric(float64(time.Since(start).Microseconds())/1000/float64(b.N), "ms/open")
}
