package main

import (
	"fmt"
	"os"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/train"
	"conquer/train/plan"
)

// checkMemory compares the host memory that the run needs, as [plan.Predict] predicts it, with what
// this machine or its container permits. m needs no weights yet.
func (f *trainFlags) checkMemory(m model.Model, dtype torch.DType, device torch.Device) error {
	host, place := plan.ReadHostMemory(), dist.Alone
	if f.World != nil {
		place = f.World.Place
		host.Available = host.Total // other processes may have begun to load the model
	}
	p, ok := f.predict(m, dtype, device, place)
	if !ok {
		return nil
	}
	state, peak := p.Host, p.Host
	if !device.IsCUDA() {
		state += p.Gradients + p.Optimizer
		peak += p.Peak
		frozen := f.LoRA != nil || f.HeadOnly
		if !frozen || f.path == "" { // else weights are pages of a file, which can be dropped
			state += p.Weights
		}
	}
	warning, err := host.Check(place.LocalSize, state, peak)
	if warning != "" && place.Rank == 0 {
		fmt.Fprintf(os.Stderr, "conquer train: %s\n", warning)
	}
	return err
}

// predict plans the run of the flags. ok is false for a run that cannot be planned: train.New then
// says why.
func (f *trainFlags) predict(m model.Model, dtype torch.DType, device torch.Device,
	place dist.Place) (plan.Plan, bool) {
	strategy := train.StrategyName(f.Distributed)
	switch { // a plan has one name for strategies that are the same on a machine
	case strategy == "" || place.Size == 1 && !f.OffloadOptimizer:
		strategy = train.None
	case strategy == train.HSDP && place.Size == place.LocalSize, place.Size == 1:
		strategy = train.FSDP
	}
	// Times are not used, and neither is a GPU's memory.
	machine := plan.Machine{GPUs: place.Size, PerHost: place.LocalSize, Memory: 1, Rate: 1,
		Transfer: 1, Link: 1, Network: 1, Host: 1}
	plans, err := plan.Predict(m, plan.Options{
		BatchSize: f.BatchSize, SequenceLength: min(f.SequenceLength, m.MaxLength()),
		Accumulate: f.Accumulate, DType: dtype, Recompute: f.Recompute, LoRA: f.LoRA,
		HeadOnly: f.HeadOnly, TensorSize: f.TensorSize, Optimizer: f.Optimizer,
		Moments: f.Moments, Stochastic: f.Stochastic, OffloadOptimizer: f.OffloadOptimizer,
		CPU: !device.IsCUDA(),
	}, machine)
	if err != nil {
		return plan.Plan{}, false
	}
	for _, p := range plans {
		if p.Strategy == strategy && p.Refused == "" {
			return p, true
		}
	}
	return plan.Plan{}, false
}
