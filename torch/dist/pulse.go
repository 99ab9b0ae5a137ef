package dist

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// pulse tells the other processes, through the store, where this one is, and finds out where they are when an operation
// fails.
type pulse struct {
	world *World
	store *Store // a connection of its own: the world's may be waiting

	mutex sync.Mutex
	now   beat
	where string // format of now.Where, filled in when it is sent
	args  []any

	every time.Duration
	quit  chan struct{}
	done  chan struct{}
}

// beat is what a process tells of itself.
type beat struct {
	Count int             `json:"count"` // goes up as long as the process lives
	Where string          `json:"where,omitempty"`
	Ops   map[string]step `json:"ops"` // by group
	// GaveUp says that an operation failed here, which ends the process, whatever the reason was.
	GaveUp bool `json:"gave_up,omitempty"`
}

// step is the last operation that a process began in a group.
type step struct {
	Seq  int    `json:"seq"`
	Name string `json:"name"`
}

func startPulse(w *World) (*pulse, error) {
	p := &pulse{world: w, now: beat{Ops: map[string]step{}}, quit: make(chan struct{}), done: make(chan struct{})}
	p.every = min(time.Second, max(w.timeout/8, 50*time.Millisecond))
	var err error
	if p.store, err = OpenStore(w.Address, w.Port, false, w.timeout); err != nil {
		return nil, err
	}
	p.store.prefix = w.store.prefix
	go func() {
		defer close(p.done)
		tick := time.NewTicker(p.every)
		defer tick.Stop()
		for {
			if p.send() != nil {
				return // the store is gone: the next operation says so
			}
			select {
			case <-p.quit:
				return
			case <-tick.C:
			}
		}
	}()
	return p, nil
}

func (p *pulse) stop() {
	if p != nil {
		close(p.quit)
		<-p.done
		p.store.Close()
	}
}

func (p *pulse) at(format string, args []any) {
	p.mutex.Lock()
	p.where, p.args = format, args
	p.mutex.Unlock()
}

func (p *pulse) reached(g *Group, seq int, name string) {
	p.mutex.Lock()
	p.now.Ops[g.Name] = step{seq, name}
	p.mutex.Unlock()
}

func beatKey(rank int) string { return fmt.Sprintf("beat/%d", rank) }

// send writes where this process is.
func (p *pulse) send() error {
	p.mutex.Lock()
	p.now.Count++
	if p.where != "" {
		p.now.Where = fmt.Sprintf(p.where, p.args...)
	}
	text, err := json.Marshal(p.now)
	p.mutex.Unlock()
	if err != nil {
		return err
	}
	return p.store.Set(beatKey(p.world.Rank), text)
}

// read is where a rank says it is; false if it never said.
func (p *pulse) read(rank int) (b beat, ok bool, err error) {
	has, err := p.store.Has(beatKey(rank))
	if err != nil || !has {
		return b, false, err
	}
	text, err := p.store.Get(beatKey(rank), p.every)
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	return b, err == nil, err
}

// explain describes, in one line, why operation seq of a group (-1: the meeting itself) failed with a reason of c10d's: which
// ranks came, and where the others are.
func (p *pulse) explain(name string, g *Group, seq int, reason string) string {
	p.mutex.Lock()
	where := ""
	if p.where != "" {
		where = " (" + fmt.Sprintf(p.where, p.args...) + ")"
	}
	p.now.GaveUp = true
	p.mutex.Unlock()
	p.send()
	what := fmt.Sprintf("%s %d of group %s%s failed", name, seq, g.Name, where)
	if seq < 0 {
		what = fmt.Sprintf("meeting as group %s failed", g.Name)
	}
	reason = oneLine(reason)
	before := map[int]beat{}
	for _, rank := range g.Ranks {
		b, ok, err := p.read(rank)
		if err != nil {
			return fmt.Sprintf("%s: the store is gone, so the process that held it has ended (%s)", what, reason)
		}
		if ok {
			before[rank] = b
		}
	}
	time.Sleep(3 * p.every)
	var arrived, gone []int
	var behind []string
	for _, rank := range g.Ranks {
		if rank == p.world.Rank {
			arrived = append(arrived, rank)
			continue
		}
		b, ok, err := p.read(rank)
		switch last := b.Ops[g.Name]; {
		case err != nil:
			return fmt.Sprintf("%s: the store is gone, so the process that held it has ended (%s)", what, reason)
		case ok && b.GaveUp:
			arrived = append(arrived, rank)
		case !ok || b.Count == before[rank].Count:
			gone = append(gone, rank)
		case last.Seq >= seq && seq >= 0:
			arrived = append(arrived, rank)
		case last.Seq == 0:
			behind = append(behind, fmt.Sprintf("rank %d has not begun any operation of it (%s)", rank, b.Where))
		default:
			behind = append(behind, fmt.Sprintf("rank %d is behind, after %s %d (%s)", rank, last.Name, last.Seq, b.Where))
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
	return "ranks " + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(list)), ", "), "[]") + " are"
}

// oneLine is a message of c10d's without where in C++ it was raised.
func oneLine(message string) string {
	message, _, _ = strings.Cut(message, "\nException raised from")
	message, _, _ = strings.Cut(message, "\n#0 ")
	return strings.Join(strings.Fields(message), " ")
}
