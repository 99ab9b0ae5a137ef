package statespace

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"conquer/torch"
)

// Strategy decides with which state each chunk begins. An implementation that [RegisterStrategy]
// knows can be chosen wherever default, independent and windowed:k can. It must not change between
// calls, and it may be called by several goroutines.
type Strategy interface {
	// Starts returns the states that the chunks begin with, [B,K,H,P,N]. It is called once for each
	// pass of each layer, under autograd in training, and must not change its inputs. All tensors
	// are float32, or float64 in a float64 pass.
	Starts(c Chunks) torch.Tensor
}

// Chunks is what a [Strategy] decides from: K chunks of a batch of B sequences, each with H heads
// of P dimensions and N state elements. Across all chunks, as the model was trained, the states
// follow
//
//	start_0 = Initial,  start_{k+1} = Decay_k·start_k + States_k
//
// A strategy need not care about samples that are packed into a row: where one begins in chunk k,
// Decay_k is 0, and where one begins with chunk k, the start of k is not used.
type Chunks struct {
	Initial torch.Tensor // [B,H,P,N]: the state before the first chunk; zeros if there is none
	States  torch.Tensor // [B,K,H,P,N]: what each chunk's own tokens leave in the state at its end
	Decay   torch.Tensor // [B,K,H]: how much of the state at its begin is left at a chunk's end
}

// Len is K, the number of chunks.
func (c Chunks) Len() int { return c.States.Size(1) }

// End returns the state [B,H,P,N] at the end of chunk k if it began with the state start.
func (c Chunks) End(k int, start torch.Tensor) torch.Tensor {
	return start.Mul(c.Decay.Select(1, k).Unsqueeze(2).Unsqueeze(3)).Add(c.States.Select(1, k))
}

// registered holds the strategies of RegisterStrategy by name.
var registered struct {
	sync.RWMutex
	parse map[string]func(argument string) (Strategy, error)
}

var (
	strategyName     = regexp.MustCompile(`^[a-z][a-z0-9]*$`)
	strategyArgument = regexp.MustCompile(`^[A-Za-z0-9.+=-]*$`)
)

// RegisterStrategy makes a strategy known under a name of lower-case letters and digits. parse gets
// what follows the name and a colon in name:argument, "" if there is no colon, and returns the
// strategy or what is wrong with the argument. The strategy then works in [ParseChunking], and so
// in every command that takes --chunking and in reports; with -optimized appended the chunks are
// scanned by kernels. Call RegisterStrategy from an init function. It panics if the name is taken
// or invalid.
func RegisterStrategy(name string, parse func(argument string) (Strategy, error)) {
	registered.Lock()
	defer registered.Unlock()
	_, taken := registered.parse[name]
	if taken || !strategyName.MatchString(name) ||
		slices.Contains([]string{Default, Independent, Windowed, "kernel"}, name) {
		panic(fmt.Sprintf("statespace: a strategy cannot be registered as %q: the name is taken "+
			"or not of lower-case letters and digits", name))
	}
	if registered.parse == nil {
		registered.parse = map[string]func(string) (Strategy, error){}
	}
	registered.parse[name] = parse
}

// Strategies lists the names that [ParseChunking] reads, without arguments.
func Strategies() []string {
	registered.RLock()
	defer registered.RUnlock()
	return append([]string{Default, Independent, Windowed},
		slices.Sorted(maps.Keys(registered.parse))...)
}

// strategyOf returns the registered strategy of a name and its argument. known reports whether
// there is one of that name.
func strategyOf(name, argument string) (s Strategy, known bool, err error) {
	registered.RLock()
	parse, known := registered.parse[name]
	registered.RUnlock()
	switch {
	case !known:
		return nil, false, nil
	case !strategyArgument.MatchString(argument):
		return nil, true, fmt.Errorf("%q may hold letters, digits and . + = - only", argument)
	}
	s, err = parse(argument)
	return s, true, err
}

// choices lists the names for messages.
func choices() string {
	names := append([]string{Default, Independent, Windowed + ":k"}, Strategies()[3:]...)
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// scanBy scans in by a registered strategy: each chunk for itself, which gives the states that a
// chunk leaves, then each chunk from the state that the strategy lets it begin with. size is the
// chunk size. It returns y [B,L,H,P] and the state after the last token.
func (c Chunking) scanBy(s Strategy, in torch.SSDInput, size int) (y, final torch.Tensor) {
	scan := func(in torch.SSDInput) (y, final torch.Tensor) {
		if c.Optimized {
			return torch.SSDScan(in, size, -1)
		}
		return SSD(in, size, -1)
	}
	parts := cut(in, size)
	var states, decay, continues []torch.Tensor
	for _, p := range parts {
		alone := p.in
		alone.D = torch.Tensor{}
		_, state := scan(alone)
		states = append(states, p.perChunk(state))
		decay = append(decay, p.decay(state.DType()))
		if p.same.Defined() {
			continues = append(continues, p.same.Select(2, 0))
		}
	}
	chunks := Chunks{Initial: in.InitialState, States: torch.Cat(1, states...),
		Decay: torch.Cat(1, decay...)}
	first := chunks.States.Select(1, 0)
	if chunks.Initial.Defined() {
		chunks.Initial = chunks.Initial.To(first.DType())
	} else {
		chunks.Initial = first.ZerosLike()
	}
	starts := s.Starts(chunks)
	if got, want := starts.Shape(), chunks.States.Shape(); !slices.Equal(got, want) {
		panic(&torch.Error{Message: fmt.Sprintf("strategy %s returned states of shape %v, "+
			"expected %v", c, got, want)})
	}
	if continues != nil {
		mask := torch.Cat(1, continues...).Unsqueeze(2).Unsqueeze(3).Unsqueeze(4)
		starts = torch.Where(mask, starts, starts.ZerosLike())
	}
	var outputs []torch.Tensor
	done := 0
	for _, p := range parts {
		began := p.in
		began.InitialState = starts.Narrow(1, done, p.chunks).Reshape(
			append([]int{p.batch * p.chunks}, starts.Shape()[2:]...)...)
		out, state := scan(began)
		outputs = append(outputs, out.Reshape(p.batch, p.chunks*p.size, out.Size(2), out.Size(3)))
		final = p.perChunk(state).Select(1, p.chunks-1)
		done += p.chunks
	}
	return torch.Cat(1, outputs...), final
}

// part is some chunks of equal size, which in holds as a batch of B·chunks sequences.
type part struct {
	in                  torch.SSDInput
	batch, chunks, size int
	// same [B,chunks,size], bool, marks the tokens of the same sample as the token before; no
	// tensor without packing.
	same torch.Tensor
}

// cut divides in into its whole chunks and, if tokens remain, a shorter last one.
func cut(in torch.SSDInput, size int) (parts []part) {
	batch, length := in.X.Size(0), in.X.Size(1)
	add := func(begin, chunks, size int) {
		if chunks*size == 0 {
			return
		}
		rows := func(t torch.Tensor) torch.Tensor {
			if !t.Defined() {
				return t
			}
			t = t.Narrow(1, begin, chunks*size)
			return t.Reshape(append([]int{batch * chunks, size}, t.Shape()[2:]...)...)
		}
		p := part{in: in, batch: batch, chunks: chunks, size: size}
		p.in.X, p.in.DT, p.in.B, p.in.C = rows(in.X), rows(in.DT), rows(in.B), rows(in.C)
		p.in.Z, p.in.Segments = rows(in.Z), rows(in.Segments)
		p.in.InitialState = torch.Tensor{}
		if in.Segments.Defined() {
			here, before := in.Segments.Narrow(1, begin, chunks*size), in.Segments
			if begin == 0 { // the initial state belongs to the first sample
				before = torch.Cat(1, before.Narrow(1, 0, 1), before)
			} else {
				before = before.Narrow(1, begin-1, length-begin+1)
			}
			p.same = before.Narrow(1, 0, chunks*size).Equal(here).View(batch, chunks, size)
		}
		parts = append(parts, p)
	}
	add(0, length/size, size)
	add(length/size*size, 1, length%size)
	return parts
}

// perChunk turns [B·chunks, ...] into [B, chunks, ...].
func (p part) perChunk(t torch.Tensor) torch.Tensor {
	return t.View(append([]int{p.batch, p.chunks}, t.Shape()[1:]...)...)
}

// decay is the factor [B,chunks,H] by which each chunk lets its first state decay.
func (p part) decay(wide torch.DType) torch.Tensor {
	all := timeSteps(p.in, wide).Mul(p.in.A.To(wide)).SumDim(1, false).Exp()
	all = p.perChunk(all)
	if !p.same.Defined() {
		return all
	}
	changes := p.same.To(wide).AddScalar(-1).SumDim(2, true) // [B,chunks,1], negative
	return torch.Where(changes.Equal(changes.ZerosLike()), all, all.ZerosLike())
}
