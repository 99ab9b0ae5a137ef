package torch_test

import (
	"strings"
	"testing"

	"conquer/torch"
)

func TestProfile_NamesOperations(t *testing.T) {
	run(t, func() {
		a := torch.Randn([]int{300, 300}, torch.Float32, torch.CPU)
		calls := map[string]int{}
		list := torch.Profile(torch.CPU, func() {
			for range 3 {
				torch.RMSNorm(a.Matmul(a), a.Select(0, 0), 1e-5)
			}
		})
		for i, o := range list {
			calls[strings.TrimPrefix(o.Name, "aten::")] = o.Calls
			if o.Time < 0 || i > 0 && o.Time > list[i-1].Time {
				t.Errorf("%v", list)
			}
		}
		if calls["mm"] != 3 || calls["conquer::rms_norm"] != 3 {
			t.Errorf("%v", list)
		}
		if again := torch.Profile(torch.CPU, func() {}); len(again) != 0 {
			t.Errorf("nothing ran, but %v", again)
		}
	})
}
