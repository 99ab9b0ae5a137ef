package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"conquer/model/statespace"
	"conquer/torch"
)

// Passes lists what [RunSSD] can measure: the scan forward and backward, its step over a single
// token, the causal convolution before it and the gated norm after it.
var Passes = []string{"forward", "backward", "step", "conv", "norm"}

// SSDOptions say what [RunSSD] measures: every combination of the lists. Strategies and chunk
// sizes apply to the passes forward and backward, lengths to all passes except step.
type SSDOptions struct {
	Passes     []string
	Strategies []statespace.Chunking // their ChunkSize is ignored
	ChunkSizes []int                 // powers of two from 16 to 256, or statespace.Auto
	Lengths    []int
	Batches    []int
	Shape      ScanShape
	DType      torch.DType
	Device     torch.Device
	Repeats    int // timed runs of each row, after a warm-up
	Ceilings   Ceilings
	Seed       int64 // of the inputs
}

// ScanShape is the shape of a state-space layer: H heads of P dimensions, state N, G groups.
type ScanShape struct{ Heads, HeadDim, State, Groups int }

// Check returns an error if the options are invalid.
func (o SSDOptions) Check() error {
	s := o.Shape
	for _, pass := range o.Passes {
		if !slices.Contains(Passes, pass) {
			return fmt.Errorf("pass %q is not known: choose among %s",
				pass, strings.Join(Passes, ", "))
		}
	}
	for _, c := range o.Strategies {
		for _, size := range o.ChunkSizes {
			c.ChunkSize = size
			if err := c.Check(); err != nil {
				return err
			}
		}
	}
	switch {
	case s.State < 16 || s.State > 256:
		return fmt.Errorf("state is %d, expected 16 to 256", s.State)
	case s.HeadDim < 16 || s.HeadDim > 128:
		return fmt.Errorf("head_dim is %d, expected 16 to 128", s.HeadDim)
	case s.Groups < 1 || s.Heads < 1 || s.Heads%s.Groups != 0:
		return fmt.Errorf("%d groups do not divide %d heads", s.Groups, s.Heads)
	case o.Repeats < 1:
		return fmt.Errorf("repeats is %d, expected at least 1", o.Repeats)
	}
	return errors.Join(checkPositive("length", o.Lengths...), checkPositive("batch_size",
		o.Batches...))
}

// row returns a row without figures.
func (o SSDOptions) row(pass, strategy string, batch, length, chunk int) SSDRow {
	return SSDRow{
		Strategy: strategy, Pass: pass, Device: o.Device.String(), DType: o.DType.String(),
		Batch: batch, Length: length,
		Heads: o.Shape.Heads, HeadDim: o.Shape.HeadDim, State: o.Shape.State,
		Groups: o.Shape.Groups, ChunkSize: chunk,
		Repeats: o.Repeats,
	}
}

// plan lists the rows to measure, each with its strategy.
func (o SSDOptions) plan() (rows []SSDRow, strategies []statespace.Chunking) {
	add := func(r SSDRow, c statespace.Chunking) {
		rows, strategies = append(rows, r),
			append(strategies, c)
	}
	for _, pass := range o.Passes {
		for _, batch := range o.Batches {
			if pass == "step" {
				add(o.row(pass, "kernel", batch, 1, 0), statespace.Chunking{})
				continue
			}
			for _, length := range o.Lengths {
				if pass == "conv" || pass == "norm" {
					add(o.row(pass, "kernel", batch, length, 0), statespace.Chunking{})
					continue
				}
				for _, size := range o.ChunkSizes {
					for _, c := range o.Strategies {
						c.ChunkSize = size
						add(o.row(pass, c.String(), batch, length,
							c.Size(o.Shape.HeadDim, o.Shape.State)), c)
					}
				}
			}
		}
	}
	return rows, strategies
}

// RunSSD measures the scan and the operations around it in a state-space layer, on random
// inputs, and compares the results with a float64 recurrence. It calls each with every row
// when it is finished and with the total number of rows. If a row fails, for example for lack
// of memory, it holds the reason, and the run continues.
func RunSSD(ctx context.Context, o SSDOptions, each func(row SSDRow, total int)) error {
	if err := o.Check(); err != nil {
		return err
	}
	rows, strategies := o.plan()
	random := rand.New(rand.NewPCG(uint64(o.Seed), 0))
	for i, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := torch.Run(func() (err error) {
			torch.ManualSeed(random.Int64())
			torch.NoGrad(func() {
				switch row.Pass {
				case "forward":
					err = o.forward(ctx, &row, strategies[i], random)
				case "backward":
					err = o.backward(ctx, &row, strategies[i], random)
				case "step":
					err = o.step(ctx, &row)
				case "conv":
					err = o.conv(ctx, &row)
				case "norm":
					err = o.norm(ctx, &row)
				}
			})
			return err
		})
		if err != nil {
			reason, isRow := oneLine(err)
			if !isRow {
				return err
			}
			row = o.row(row.Pass, row.Strategy, row.Batch, row.Length, row.ChunkSize)
			row.Failed = reason
		} else {
			o.rates(&row)
		}
		each(row, len(rows))
	}
	return nil
}

// rates computes the rates of a row from its counts and times.
func (o SSDOptions) rates(r *SSDRow) {
	independent := strings.TrimSuffix(r.Strategy, "-optimized") == statespace.Independent
	r.Bytes, r.Flops = scanCost(r.Pass, o.Shape, r.Batch, r.Length, r.ChunkSize, o.DType.Size(),
		independent)
	if math.IsInf(r.Error, 0) || math.IsNaN(r.Error) {
		r.Error, r.Failed = 0, "the result holds a NaN or an infinity"
	}
	r.GBPerS = fraction(float64(r.Bytes)/1e6, r.MedianMS)
	r.GFlopPerS = fraction(float64(r.Flops)/1e6, r.MedianMS)
	r.OfBandwidth = fraction(r.GBPerS, o.Ceilings.ReadGBPerS)
	r.OfRate = fraction(r.GFlopPerS, o.Ceilings.rate(o.DType))
}

func (r *SSDRow) set(t timing, err error) error {
	r.MedianMS, r.LowMS, r.HighMS = t.median, t.low, t.high
	return err
}

const (
	taps = 4 // of the convolution
	sets = 3 // sets of inputs that the calls use in turn
	// checked is the number of tokens that are compared with float64. Later tokens do not
	// influence them.
	checked = 4096
)
