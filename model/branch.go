package model

import "conquer/torch"

// Branch returns a new cache for as many sequences as there are rows, each of which continues the
// sequence of c in that row. A row may occur several times. The new cache has room for capacity
// columns, and the caller frees it; c stays as it is.
func (c *Cache) Branch(m Model, rows []int, capacity int) *Cache {
	device, dtype := Device(m), DType(m)
	for i := range c.Layers {
		if keys := c.Layers[i].Keys; keys.Defined() && keys.DType() != torch.Uint8 {
			dtype = keys.DType()
		}
	}
	to := m.NewCache(len(rows), capacity, dtype, device)
	to.Length = c.Length
	if c.Starts != nil {
		for _, row := range rows {
			to.Starts = append(to.Starts, c.Starts[row])
		}
	}
	torch.Scoped(func() {
		list := make([]int64, len(rows))
		for i, row := range rows {
			list[i] = int64(row)
		}
		index := torch.From(list, len(list)).ToDevice(device)
		for i := range c.Layers {
			into := to.Layers[i].tensors()
			for j, t := range c.Layers[i].tensors() {
				switch {
				case !t.Defined() || !into[j].Defined():
				case j < 2:
					into[j].Narrow(2, 0, c.Length).Copy(
						t.Narrow(2, 0, c.Length).IndexSelect(0, index))
				default:
					into[j].Copy(t.IndexSelect(0, index))
				}
			}
		}
	})
	return to
}
