package bench

import (
	"time"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// recording is generation without a cache from recorded passes, one for each length of text.
type recording struct {
	device torch.Device
	ids    torch.Tensor // int64 [1, prompt + new tokens]
	passes []*torch.Capture
}

// record records the passes after a prompt. Pass i reads the prompt and i tokens, and appends
// the next token.
func record(m statespace.Chunked, prompt []int32, count int) (*recording, error) {
	g := &recording{device: model.Device(m)}
	err := torch.Run(func() error {
		torch.NoGrad(func() {
			room := make([]int32, len(prompt)+count)
			copy(room, prompt)
			g.ids = torch.From(room, 1, len(room)).To(torch.Int64).ToDevice(g.device).Own()
			for i := range count {
				length := len(prompt) + i
				pass := torch.NewCapture(g.device, func() {
					logits := model.LastLogits(m, model.Sequence{IDs: g.ids.Narrow(1, 0, length)})
					g.ids.Narrow(1, length, 1).Copy(logits.Argmax(-1).Unsqueeze(1))
				})
				g.passes = append(g.passes, pass)
				for !pass.Recorded() {
					pass.Run()
				}
			}
		})
		return nil
	})
	if err != nil {
		g.free()
		return nil, err
	}
	return g, nil
}

// run replays all passes and waits for each token.
func (g *recording) run() (t run, err error) {
	err = torch.Run(func() error {
		began := time.Now()
		first := 0.0
		for i, pass := range g.passes {
			pass.Run()
			g.device.Synchronize()
			if i == 0 {
				first = milliseconds(time.Since(began))
			}
		}
		t = newRun(milliseconds(time.Since(began)), first, len(g.passes))
		return nil
	})
	return t, err
}

func (g *recording) free() {
	for _, pass := range g.passes {
		pass.Free()
	}
	g.ids.Free()
}
