package train

import (
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// BucketBytes is how many bytes of gradients ddp sums at once: enough that starting a transfer
// pays, few enough that the transfer overlaps with the rest of the backward pass.
const BucketBytes = 25 << 20

// ddp holds all parameters on each process and sums the gradients. As soon as the gradients of some
// blocks are complete, the transfer of a bucket of them starts while the blocks below run backward.
type ddp struct {
	local
	group *dist.Group
	wide  bool // sum in float32

	filling []*nn.Param // with complete gradients that no transfer has yet
	bytes   int
	buckets []bucket
}

// bucket holds gradients in transfer, one after the other.
type bucket struct {
	params []*nn.Param
	sum    torch.Tensor
	work   *dist.Work
}

func (d *ddp) Reduce(u int, last bool) {
	if !last {
		return // the micro-batches of a step are summed locally first
	}
	for _, p := range d.units[u] {
		if p.RequiresGrad() {
			d.filling = append(d.filling, p)
			d.bytes += p.Numel() * 4
		}
	}
	if d.bytes >= BucketBytes {
		d.send()
	}
}

// send starts one transfer per dtype of the filling bucket.
func (d *ddp) send() {
	byType := map[torch.DType][]*nn.Param{}
	var order []torch.DType
	for _, p := range d.filling {
		dtype := reducedAs(p, d.wide)
		if byType[dtype] == nil {
			order = append(order, dtype)
		}
		byType[dtype] = append(byType[dtype], p)
	}
	d.filling, d.bytes = nil, 0
	for _, dtype := range order {
		b := bucket{params: byType[dtype]}
		total := 0
		for _, p := range b.params {
			total += p.Numel()
		}
		torch.NoGrad(func() {
			torch.Scoped(func() {
				b.sum = torch.Empty([]int{total}, dtype, b.params[0].Device()).Own()
				at := 0
				for _, p := range b.params {
					b.sum.Narrow(0, at, p.Numel()).Copy(gradientOf(p).Reshape(-1))
					p.ClearGrad() // the bucket holds it now
					at += p.Numel()
				}
			})
		})
		b.work = d.group.AllReduce(b.sum, dist.Sum)
		d.buckets = append(d.buckets, b)
	}
}

func (d *ddp) finishReduce() {
	d.send()
	for i := range d.buckets {
		b := &d.buckets[i]
		b.work.Wait()
		torch.Scoped(func() {
			at := 0
			for _, p := range b.params {
				n := p.Numel()
				p.SetGrad(b.sum.Narrow(0, at, n).View(p.Tensor.Shape()...))
				at += n
			}
		})
		b.sum.Free()
	}
	d.buckets = nil
}

func (d *ddp) combine(sums []float64, norm float64) ([]float64, float64) {
	return d.group.Sums(sums...), norm
}

func (d *ddp) replicas() (int, int) { return d.group.Size, d.group.Rank }
func (d *ddp) single() bool         { return false }

func (d *ddp) free() {
	for i := range d.buckets { // of a step that failed
		d.buckets[i].work.Forget()
		d.buckets[i].sum.Free()
	}
}
