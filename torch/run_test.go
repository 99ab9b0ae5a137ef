package torch_test

import (
	"sync"
	"testing"
	"time"

	"conquer/torch"
)

// A scope outside Run keeps its goroutine on the thread that the scope belongs to.
func TestScoped_StaysOnItsThread(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				torch.Scoped(func() {
					x := torch.Ones([]int{3}, torch.Float32, torch.CPU)
					for range 10 {
						time.Sleep(time.Microsecond) // another goroutine takes the thread
						x = x.Add(x)
					}
					if got := torch.Values[float32](x); got[0] != 1024 {
						t.Errorf("1 doubled ten times is %v", got[0])
					}
				})
			}
		})
	}
	wg.Wait()
}
