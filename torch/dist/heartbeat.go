package dist

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// heartbeat writes this process's position to the store, and reads the positions of others if an
// operation fails.
type heartbeat struct {
	world *World
	store *Store // its own connection, since the world's may be waiting

	mutex sync.Mutex
	now   beat
	where string // format of now.Where, applied when it is sent
	args  []any

	every time.Duration
	quit  chan struct{}
	done  chan struct{}
}

// beat is the state that a process writes to the store.
type beat struct {
	Count int             `json:"count"` // increases while the process lives
	Where string          `json:"where,omitempty"`
	Ops   map[string]step `json:"ops"` // by group
	// GaveUp is set if an operation failed here, which ends the process.
	GaveUp bool `json:"gave_up,omitempty"`
}

// step is the last operation that a process began in a group.
type step struct {
	Seq  int    `json:"seq"`
	Name string `json:"name"`
}

func startHeartbeat(w *World) (*heartbeat, error) {
	h := &heartbeat{
		world: w,
		now:   beat{Ops: map[string]step{}},
		quit:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	h.every = min(time.Second, max(w.timeout/8, 50*time.Millisecond))
	var err error
	if h.store, err = OpenStore(w.Address, w.Port, false, w.timeout); err != nil {
		return nil, err
	}
	h.store.prefix = w.store.prefix
	go func() {
		defer close(h.done)
		tick := time.NewTicker(h.every)
		defer tick.Stop()
		for {
			if h.send() != nil {
				return // the store is gone; the next operation reports it
			}
			select {
			case <-h.quit:
				return
			case <-tick.C:
			}
		}
	}()
	return h, nil
}

func (h *heartbeat) stop() {
	if h != nil {
		close(h.quit)
		<-h.done
		h.store.Close()
	}
}

func (h *heartbeat) at(format string, args []any) {
	h.mutex.Lock()
	h.where, h.args = format, args
	h.mutex.Unlock()
}

func (h *heartbeat) reached(g *Group, seq int, name string) {
	h.mutex.Lock()
	h.now.Ops[g.Name] = step{seq, name}
	h.mutex.Unlock()
}

func beatKey(rank int) string { return fmt.Sprintf("beat/%d", rank) }

// send writes this process's position.
func (h *heartbeat) send() error {
	h.mutex.Lock()
	h.now.Count++
	if h.where != "" {
		h.now.Where = fmt.Sprintf(h.where, h.args...)
	}
	text, err := json.Marshal(h.now)
	h.mutex.Unlock()
	if err != nil {
		return err
	}
	return h.store.Set(beatKey(h.world.Rank), text)
}

// read returns the last beat of a rank; ok is false if it has written none.
func (h *heartbeat) read(rank int) (b beat, ok bool, err error) {
	has, err := h.store.Has(beatKey(rank))
	if err != nil || !has {
		return b, false, err
	}
	text, err := h.store.Get(beatKey(rank), h.every)
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	return b, err == nil, err
}

// explain describes in one line why operation seq of a group (-1: the rendezvous) failed with a
// reason of c10d: which ranks joined it, and where the others are.
func (h *heartbeat) explain(name string, g *Group, seq int, reason string) string {
	h.mutex.Lock()
	where := ""
	if h.where != "" {
		where = " (" + fmt.Sprintf(h.where, h.args...) + ")"
	}
	h.now.GaveUp = true
	h.mutex.Unlock()
	h.send()
	what := fmt.Sprintf("%s %d of group %s%s failed", name, seq, g.Name, where)
	if seq < 0 {
		what = fmt.Sprintf("meeting as group %s failed", g.Name)
	}
	reason = oneLine(reason)
	before := map[int]beat{}
	for _, rank := range g.Ranks {
		b, ok, err := h.read(rank)
		if err != nil {
			return fmt.Sprintf("%s: the store is gone, so the process that held it has ended (%s)",
				what, reason)
		}
		if ok {
			before[rank] = b
		}
	}
	time.Sleep(3 * h.every)
	var arrived, gone []int
	var behind []string
	for _, rank := range g.Ranks {
		if rank == h.world.Rank {
			arrived = append(arrived, rank)
			continue
		}
		b, ok, err := h.read(rank)
		switch last := b.Ops[g.Name]; {
		case err != nil:
			return fmt.Sprintf("%s: the store is gone, so the process that held it has ended (%s)",
				what, reason)
		case ok && b.GaveUp:
			arrived = append(arrived, rank)
		case !ok || b.Count == before[rank].Count:
			gone = append(gone, rank)
		case last.Seq >= seq && seq >= 0:
			arrived = append(arrived, rank)
		case last.Seq == 0:
			behind = append(behind,
				fmt.Sprintf("rank %d has not begun any operation of it (%s)", rank, b.Where))
		default:
			behind = append(behind, fmt.Sprintf("rank %d is behind, after %s %d (%s)", rank,
				last.Name, last.Seq, b.Where))
		}
	}
	parts := slices.Clone(behind)
	if len(gone) > 0 {
		parts = append([]string{ranks(gone) + " gone"}, parts...)
	}
	if seq >= 0 {
		parts = append(parts, ranks(arrived)+" there")
	}
	return fmt.Sprintf("%s: %s (%s)", what, strings.Join(parts, "; "), reason)
}

func ranks(list []int) string {
	if len(list) == 1 {
		return fmt.Sprintf("rank %d is", list[0])
	}
	return "ranks " + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(list)), ", "),
		"[]") + " are"
}

// oneLine returns a message of c10d in one line, without the place in C++ that raised it.
func oneLine(message string) string {
	message, _, _ = strings.Cut(message, "\nException raised from")
	message, _, _ = strings.Cut(message, "\n#0 ")
	return strings.Join(strings.Fields(message), " ")
}
