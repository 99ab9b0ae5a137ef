package bench

import (
	"context"
	"slices"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// The ways to run a text that [RunConsistency] compares.
const (
	Whole  = "whole"  // in one pass, without a cache
	Cached = "cache"  // in one pass, with a cache
	Pieces = "pieces" // in pieces, with a cache
	Decode = "decode" // token by token, with a cache
	Padded = "padded" // padded on the left, in a batch with a longer text
	Packed = "packed" // between two other samples of one row
)

// consistencyWay is one way with its settings.
type consistencyWay struct {
	name     string
	piece    int
	batch    int // rows, each with the text
	chunking statespace.Chunking
	chunked  bool
}

// ways lists the ways to run the model.
func (o ConsistencyOptions) ways() (list []consistencyWay) {
	base := consistencyWay{batch: 1}
	chunked, ok := o.Model.(statespace.Chunked)
	if base.chunked = ok; ok {
		base.chunking = chunked.Chunking()
		base.chunking.StateDType = torch.Float32
	}
	add := func(name string, change func(*consistencyWay)) {
		w := base
		w.name = name
		if change != nil {
			change(&w)
		}
		if !slices.Contains(list, w) {
			list = append(list, w)
		}
	}
	add(Whole, nil)
	add(Cached, nil)
	for _, piece := range o.Pieces {
		add(Pieces, func(w *consistencyWay) { w.piece = piece })
	}
	decode := func(state torch.DType) {
		for _, batch := range o.Batches {
			add(Decode, func(w *consistencyWay) {
				w.batch, w.chunking.StateDType = batch, state
			})
		}
	}
	decode(base.chunking.StateDType)
	add(Padded, nil)
	add(Packed, nil)
	if !ok {
		return list
	}
	for _, dtype := range o.States {
		if dtype == torch.Float32 {
			continue
		}
		for _, piece := range o.Pieces {
			add(Pieces, func(w *consistencyWay) {
				w.chunking.StateDType, w.piece = dtype, piece
			})
		}
		decode(dtype)
	}
	for _, size := range o.Chunks {
		for _, optimized := range []bool{false, true} {
			add(Whole, func(w *consistencyWay) {
				w.chunking.ChunkSize, w.chunking.Optimized = size, optimized
			})
		}
	}
	for _, c := range o.Strategies {
		c.ChunkSize, c.StateDType = base.chunking.ChunkSize, torch.Float32
		add(Whole, func(w *consistencyWay) { w.chunking = c })
	}
	return list
}

// row is the row of a way, without figures.
func (o ConsistencyOptions) row(w consistencyWay) ConsistencyRow {
	r := ConsistencyRow{Program: "conquer", Way: w.name, Piece: w.piece,
		Device: model.Device(o.Model).String(), DType: model.DType(o.Model).String(),
		Length: len(o.IDs), FirstDiffering: -1}
	if w.chunked {
		r.Strategy, r.ChunkSize = w.chunking.String(), w.chunking.ChunkSize
		if w.name == Pieces || w.name == Decode {
			r.State = w.chunking.StateDType.String()
		}
	}
	if w.name == Decode {
		r.Batch = w.batch
	}
	return r
}

// run returns the hidden states [L,D] of the text.
func (o ConsistencyOptions) run(ctx context.Context, w consistencyWay) (torch.Tensor, error) {
	m := o.Model
	if w.chunked {
		if err := m.(statespace.Chunked).SetChunking(w.chunking); err != nil {
			return torch.Tensor{}, err
		}
	}
	all := torch.From(o.IDs, 1, len(o.IDs)).To(torch.Int64).ToDevice(model.Device(m))
	switch w.name {
	case Whole:
		return model.Hidden(m, model.Sequence{IDs: all}).Squeeze(0), nil
	case Padded:
		return o.padded(), nil
	case Packed:
		return o.packed(), nil
	}
	length := len(o.IDs)
	var sizes []int
	switch w.name {
	case Cached:
		sizes = []int{length}
	case Pieces:
		for rest := length; rest > 0; rest -= w.piece {
			sizes = append(sizes, min(w.piece, rest))
		}
	case Decode:
		single := o.Decoded
		if single == 0 {
			single = length - 1
		}
		sizes = append([]int{length - single}, slices.Repeat([]int{1}, single)...)
	}
	cache := m.NewCache(w.batch, length, model.DType(m), model.Device(m))
	defer cache.Free()
	var parts []torch.Tensor
	start := 0
	for _, size := range sizes {
		if err := ctx.Err(); err != nil {
			return torch.Tensor{}, err
		}
		parts = append(parts, torch.Scoped1(func() torch.Tensor {
			ids := all.Narrow(1, start, size).Expand(w.batch, size).Contiguous()
			hidden := model.Hidden(m, model.Sequence{IDs: ids, Cache: cache})
			return hidden.Select(0, w.batch-1)
		}))
		start += size
	}
	return torch.Cat(0, parts...), nil
}

// other returns n tokens of another text: the text's own, backwards.
func (o ConsistencyOptions) other(n int) []int32 {
	list := make([]int32, n)
	for i := range list {
		list[i] = o.IDs[len(o.IDs)-1-i%len(o.IDs)]
	}
	return list
}

// padded runs the text in a batch with one that is longer by o.Before tokens.
func (o ConsistencyOptions) padded() torch.Tensor {
	m, width := o.Model, o.Before+len(o.IDs)
	ids := append(make([]int32, o.Before), o.IDs...)
	ids = append(ids, o.other(width)...)
	cache := m.NewCache(2, width, model.DType(m), model.Device(m))
	defer cache.Free()
	cache.Starts = []int{o.Before, 0}
	input := torch.From(ids, 2, width).To(torch.Int64).ToDevice(model.Device(m))
	hidden := model.Hidden(m, model.Sequence{IDs: input, Cache: cache})
	return hidden.Select(0, 0).Narrow(0, o.Before, len(o.IDs))
}

// packed runs the text as the second of three samples of a row.
func (o ConsistencyOptions) packed() torch.Tensor {
	m, after := o.Model, 5
	ids := slices.Concat(o.other(o.Before), o.IDs, o.other(after))
	positions, segments := make([]int64, 0, len(ids)), make([]int64, 0, len(ids))
	for i, length := range []int{o.Before, len(o.IDs), after} {
		for p := range length {
			positions, segments = append(positions, int64(p)), append(segments, int64(i+1))
		}
	}
	device := model.Device(m)
	row := func(t torch.Tensor) torch.Tensor {
		return t.To(torch.Int64).ToDevice(device).View(1, len(ids))
	}
	hidden := model.Hidden(m, model.Sequence{IDs: row(torch.From(ids, len(ids))),
		Positions: row(torch.From(positions, len(ids))),
		Segments:  row(torch.From(segments, len(ids))),
		Limit:     max(len(o.IDs), o.Before, after)})
	return hidden.Squeeze(0).Narrow(0, o.Before, len(o.IDs))
}
