package torch_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"conquer/torch"
)

// Blocks of all sizes are allocated and freed in random order on several threads. No two may
// overlap: each tensor keeps its own number until it is freed.
func TestMemory_BlocksNeverOverlap(t *testing.T) {
	var workers sync.WaitGroup
	for worker := range 3 {
		workers.Add(1)
		go func() {
			defer workers.Done()
			draw := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(worker)))
			err := torch.Run(func() error {
				type block struct {
					torch.Tensor
					value float64
				}
				var live []block
				release := func(i int) {
					b := live[i]
					torch.Scoped(func() {
						if least, most := -torch.Item[float64](b.Neg().Max()), torch.Item[float64](
							b.Max()); least != b.value ||
							most != b.value {
							t.Errorf("a block that held %v holds %v to %v", b.value, least, most)
						}
					})
					b.Free()
					live[i] = live[len(live)-1]
					live = live[:len(live)-1]
				}
				for range 300 {
					for len(live) > 0 && draw.IntN(2) == 0 {
						release(draw.IntN(len(live)))
					}
					torch.Scoped(func() {
						value := draw.Float64()
						n := 1 << draw.IntN(19) // up to 8 MB
						live = append(
							live,
							block{
								torch.Full([]int{n + draw.IntN(n)},
									value, torch.Float64, torch.CPU).
									Own(),
								value,
							},
						)
					})
				}
				for len(live) > 0 {
					release(0)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}()
	}
	workers.Wait()
}

func TestMemory_CountsTensors(t *testing.T) {
	run(t, func() {
		before, _ := torch.CPU.Memory()
		torch.CPU.ResetPeak()
		torch.Scoped(func() {
			torch.Zeros([]int{1 << 20}, torch.Float32, torch.CPU)
			torch.Zeros([]int{100}, torch.Float32, torch.CPU)
		})
		after, peak := torch.CPU.Memory()
		if after != before {
			t.Errorf("%d bytes are still held", after-before)
		}
		if held := peak - before; held < 4<<20+400 || held > 4<<20+8192 {
			t.Errorf("the peak was %d bytes, want some more than 4 MiB and 400", held)
		}
	})
}
