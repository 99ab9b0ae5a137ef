package budget_test

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"conquer/internal/budget"
)

func TestBudget_EndsWhenItsBytesAreTaken(t *testing.T) {
	b := budget.New(10)
	if err := b.Take(10); err != nil {
		t.Error(err)
	}
	if b.Take(1) == nil || b.Take(-1) == nil {
		t.Error("more was taken than there was")
	}
	if b = budget.New(10); b.Take(1<<62) == nil || b.Take(1) == nil {
		t.Error("a budget goes on after it was exceeded")
	}
}

// What encoding/json makes of a text must take no more than the budget gives for it.
func TestBudget_JSONCoversWhatDecodingTakes(t *testing.T) {
	const n = 20_000
	for name, item := range map[string]string{
		"numbers": `0`, "strings": `""`, "long strings": `"` + strings.Repeat("x", 100) + `"`,
		"escapes": `"` + strings.Repeat(`\n`, 50) + `"`, "invalid UTF-8": "\"" +
			strings.Repeat("\xff", 50) + "\"",
		"lists": `[]`, "lists of one": `[0]`, "lists of lists": `[[[]]]`, "objects": `{}`,
		"objects of one": `{"":0}`, "objects of nine": `{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,` +
			`"g":0,"h":0,"i":0}`, "words": `true`, "nulls": `null`,
	} {
		text := []byte("[" + strings.Repeat(item+",", n-1) + item + "]")
		taken := taken(text)
		before := live()
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(name, err)
		}
		used := live() - before
		runtime.KeepAlive([]any{v, text})
		if used > taken {
			t.Errorf("%s: decoding takes %d bytes, the budget %d", name, used, taken)
		}
		t.Logf("%-16s %5.1f bytes an item, %5.1f of the budget", name, float64(used)/n,
			float64(taken)/n)
	}
}

// live is the size of the objects in use.
func live() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // ends the sweep of the first
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// taken is what a budget takes for a JSON text.
func taken(text []byte) int {
	low, high := 0, 1<<30 // a budget of low is too small, one of high is enough
	for high-low > 1 {
		if middle := (low + high) / 2; budget.New(middle).JSON(text) == nil {
			high = middle
		} else {
			low = middle
		}
	}
	return high
}
