package bench

import (
	"bytes"
	"testing"
)

// Results that are read can be written as a table.
func FuzzResults(f *testing.F) {
	for _, kind := range []string{SSD, Chunks, Accuracy, GPTScore, Consistency,
		Speed} {
		f.Add([]byte(`{"kind":"` + kind + `","rows":[{"length":1,"median_ms":2.5,"id":3,` +
			`"strategy":"default","nll":1e300},{}],"machine":{"cpu":"x"},"command":"c"}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseResults("r.json", data)
		if err != nil {
			return
		}
		var table bytes.Buffer
		if err := r.writeCSV(&table); err != nil || table.Len() == 0 {
			t.Fatalf("%q: %d bytes, %v", data, table.Len(), err)
		}
	})
}
