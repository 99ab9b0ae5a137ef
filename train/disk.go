package train

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"conquer/lora"
	"conquer/torch"
	"conquer/torch/nn"
)

// CheckDisk compares what the run will write, its checkpoints and its result in the folder result,
// with the free space. merged says that adapters are merged into the result. The error is about
// what is certain to be written, and warning about a checkpoint of a run that is stopped. Only rank
// 0 looks.
func (t *Trainer) CheckDisk(result string, merged bool) (warning string, err error) {
	if t.options.rank() > 0 {
		return "", nil
	}
	need, err := t.diskNeed(merged)
	if err != nil {
		return "", err
	}
	places, err := t.places(result)
	if err != nil {
		return "", err
	}
	if err := need.check(places, false); err != nil {
		return "", err
	}
	if t.options.CheckpointPath != "" {
		if err := need.check(places, true); err != nil {
			return fmt.Sprintf("if the run is stopped, its checkpoint will not fit: %v", err), nil
		}
	}
	return "", nil
}

// place is a file system that a run writes to.
type place struct {
	path string // that the run writes to
	free int64
	same bool // checkpoints and result are on this one
}

// places returns where the checkpoints and the result are written. A file system that does not tell
// its free space has a negative one.
func (t *Trainer) places(result string) (places [2]place, err error) {
	var devices [2]uint64
	for i, path := range []string{t.options.CheckpointPath, result} {
		places[i] = place{path: path, free: -1}
		if path == "" {
			continue
		}
		if places[i].free, devices[i], err = freeSpace(path); err != nil {
			return places, err
		}
	}
	places[0].same = places[0].path != "" && places[1].path != "" && devices[0] == devices[1]
	places[1].same = places[0].same
	return places, nil
}

// freeSpace returns the bytes that can be written to a folder, which need not exist yet, or -1 if
// its file system does not tell, and the number of the file system.
func freeSpace(path string) (free int64, device uint64, err error) {
	for {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) && path != filepath.Dir(path) {
			path = filepath.Dir(path)
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			device = s.Dev
		}
		break
	}
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil || s.Blocks == 0 {
		return -1, device, nil
	}
	return int64(s.Bavail) * s.Bsize, device, nil
}

// diskNeed is what a run will write, in bytes.
type diskNeed struct {
	checkpoint, result int64
	have               int // checkpoints that are there
	saves              int // that are certain
	keep               int // checkpoints that stay
}

func (t *Trainer) diskNeed(merged bool) (n diskNeed, err error) {
	o := t.options
	n.checkpoint, n.result = t.checkpointBytes(), t.resultBytes(merged)
	n.keep = o.Keep
	if o.CheckpointPath == "" {
		return n, nil
	}
	left := o.Steps - t.step
	if o.CheckpointSteps > 0 && left > 0 {
		n.saves = (o.Steps-1)/o.CheckpointSteps - t.step/o.CheckpointSteps
	}
	if o.SaveAtEnd && left > 0 {
		n.saves++
	}
	if o.KeepBest {
		n.keep++
		if left > 0 {
			n.saves++
		}
	}
	n.have, err = t.folder().Count()
	return n, err
}

// check returns an error if a place is too small. stopped counts one more checkpoint.
func (n diskNeed) check(places [2]place, stopped bool) error {
	if stopped {
		n.saves++
	}
	// A checkpoint is complete before an old one is removed, and a result replaces an old one when
	// it is complete.
	most := max(0, min(n.have+n.saves, n.keep+1)-n.have)
	end := max(0, min(n.have+n.saves, n.keep)-n.have)
	checkpoints := fmt.Sprintf("%d of %s for checkpoints", most, gigabytes(n.checkpoint))
	result := gigabytes(n.result) + " for the result"
	saved, both := int64(most)*n.checkpoint, int64(end)*n.checkpoint+n.result
	if places[0].same {
		if stopped || both < saved { // a run that is stopped writes no result
			return places[0].check(saved, checkpoints)
		}
		if end == 0 {
			return places[1].check(both, result)
		}
		return places[1].check(both, fmt.Sprintf("%d of %s for checkpoints, and %s", end,
			gigabytes(n.checkpoint), result))
	}
	if err := places[0].check(saved, checkpoints); err != nil || stopped {
		return err
	}
	return places[1].check(n.result, result)
}

func (p place) check(need int64, what string) error {
	if p.path == "" || p.free < 0 || need <= p.free {
		return nil
	}
	return fmt.Errorf("%s has %s of free space, and the run needs %s there (%s): free space, "+
		"choose another folder, or keep fewer checkpoints", p.path, gigabytes(p.free),
		gigabytes(need), what)
}

func gigabytes(bytes int64) string { return fmt.Sprintf("%.3f GB", float64(bytes)/1e9) }

// bytes sums what each returns for an element of a parameter or adapter, over all elements.
func (t *Trainer) bytes(each func(p *nn.Param) int) (n int64) {
	for param, components := range componentsOf(t.net.Model) {
		for _, c := range components {
			n += int64(each(param)) * int64(c.count)
		}
	}
	return n
}

// resultBytes is the size of the tensors of the result: with LoRA what is trained or, merged, all
// weights.
func (t *Trainer) resultBytes(merged bool) int64 {
	adapters := map[*nn.Param]bool{}
	for _, a := range lora.Adapters(t.net.Model) {
		for _, part := range lora.Tensors(a) {
			adapters[part.Param] = true
		}
	}
	return t.bytes(func(p *nn.Param) int {
		if merged && adapters[p] || !merged && len(adapters) > 0 && !p.RequiresGrad() {
			return 0
		}
		return p.DType().Size()
	})
}

// checkpointBytes is the size of the tensors of a checkpoint, of all processes together.
func (t *Trainer) checkpointBytes() int64 {
	native := t.options.SaveFormat == FormatNative
	n := t.resultBytes(false) + t.bytes(func(p *nn.Param) int {
		if !native || !p.RequiresGrad() {
			return 0
		}
		names, dtype := t.optimizer.MomentNames(p.DType(), t.matrices[p])
		more := len(names) * dtype.Size()
		if p.DType().Size() == 2 && !t.options.Stochastic { // float32 master weights replace them
			more += torch.Float32.Size() - p.DType().Size()
		}
		return more
	})
	if !native {
		for _, p := range t.optimizer.State() {
			n += int64(p.Tensor.Bytes())
		}
	}
	return n
}
