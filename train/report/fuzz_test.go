package report

import (
	"bytes"
	"testing"
)

func FuzzMetrics(f *testing.F) {
	f.Add([]byte("{\"step\":1,\"loss\":2.5,\"seconds\":1}\n{\"step\":2,\"loss\":null}\n"), 1)
	f.Add([]byte("{\"step\":1,\"validation_loss\":3}\n\x00\x00{\"st"), 5)
	f.Fuzz(func(t *testing.T, text []byte, done int) {
		readLosses(bytes.NewReader(text))
		kept := keptLines(text, done)
		if again := keptLines(kept, done); !bytes.Equal(again, kept) {
			t.Errorf("%q is cut to %q, and that to %q", text, kept, again)
		}
		steps, validation, err := readLosses(bytes.NewReader(kept))
		if err != nil {
			t.Fatalf("%q is cut to %q: %v", text, kept, err)
		}
		for _, p := range append(steps, validation...) {
			if p.Step < 0 || p.Step > done {
				t.Errorf("%q is cut after step %d and has a loss of step %d", text, done, p.Step)
			}
		}
	})
}
