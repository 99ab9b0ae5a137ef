package plan

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestReadMeminfo_TakesWhatIsThere(t *testing.T) {
	for text, want := range map[string]HostMemory{
		"": {-1, -1, -1, -1},
		"MemTotal: 100 kB\nMemAvailable:   64 kB\nSwapFree:  2 kB\n": {-1, 102400, 65536, 2048},
		"MemAvailable: lots\nSwapFree: -5 kB\n":                      {-1, -1, -1, -1},
	} {
		root := fstest.MapFS{"meminfo": {Data: []byte(text)}}
		if got := readMeminfo(root); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	if got := readMeminfo(fstest.MapFS{}); got.Available >= 0 {
		t.Errorf("without meminfo: %+v", got)
	}
}

func TestHostMemory_RefusesAStateAndWarnsOfAPeak(t *testing.T) {
	const gb = 1e9
	for _, c := range []struct {
		name          string
		host          HostMemory
		processes     int
		state, peak   float64
		warned, error []string // words
	}{
		{"enough", HostMemory{8 * gb, 99 * gb, 9 * gb, -1}, 1, 4 * gb, 7 * gb, nil, nil},
		{"the container's limit", HostMemory{8 * gb, 99 * gb, 90 * gb, -1}, 2, 5 * gb, 7 * gb, nil,
			[]string{"10.00 GB", "2 processes", "8.00 GB", "control group", "--lora_rank"}},
		{"the machine's memory", HostMemory{-1, 99 * gb, 3 * gb, 1 * gb}, 1, 5 * gb, 7 * gb, nil,
			[]string{"5.00 GB", "4.00 GB", "meminfo"}},
		{"the peak", HostMemory{8 * gb, 99 * gb, 90 * gb, -1}, 1, 5 * gb, 9 * gb,
			[]string{"9.00 GB", "8.00 GB", "--batch_size"}, nil},
		{"swap", HostMemory{8 * gb, 99 * gb, 90 * gb, 3 * gb}, 1, 5 * gb, 9 * gb, nil, nil},
		{"nothing known", HostMemory{-1, -1, -1, -1}, 1, 5e15, 5e15, nil, nil},
	} {
		warning, err := c.host.Check(c.processes, c.state, c.peak)
		if (warning != "") != (c.warned != nil) || (err != nil) != (c.error != nil) {
			t.Errorf("%s: %q, %v", c.name, warning, err)
			continue
		}
		for _, word := range c.warned {
			if !strings.Contains(warning, word) {
				t.Errorf("%s: %q has no %q", c.name, warning, word)
			}
		}
		for _, word := range c.error {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q has no %q", c.name, err, word)
			}
		}
	}
}
