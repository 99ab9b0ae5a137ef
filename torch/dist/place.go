package dist

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Place identifies a process within a run.
type Place struct {
	Rank, Size           int    // among all processes, counted from 0
	LocalRank, LocalSize int    // among the processes on this machine
	Address              string // of the machine that runs the store
	Port                 int
	// OneMachine is set if the launcher says that all processes run on this machine.
	OneMachine bool
	// StoreElsewhere is set if the launcher runs the store, not rank 0.
	StoreElsewhere bool
	// Attempt distinguishes runs that use one store one after another.
	Attempt string
}

// Alone is the place of a process that is a run by itself.
var Alone = Place{Size: 1, LocalSize: 1}

// Local reports whether all processes run on this machine. Their sockets then listen on the
// loopback interface alone.
func (p Place) Local() bool { return p.OneMachine || loopback(p.Address) }

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// FromEnvironment reads this process's place from the variables that launchers set: RANK,
// WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT (torchrun, Kubernetes'
// PyTorchJob and this project's --nproc), or Slurm's variables of a job step. Without any of them
// the process is Alone.
func FromEnvironment() (Place, error) { return placeFrom(os.Getenv) }

func placeFrom(getenv func(string) string) (Place, error) {
	e := &environment{getenv: getenv}
	var p Place
	switch {
	case getenv("WORLD_SIZE") != "":
		p = Place{Size: e.number("WORLD_SIZE", 1, -1), Rank: e.number("RANK", 0, -1), Attempt: "0"}
		p.LocalRank = e.number("LOCAL_RANK", 0, 0)
		p.LocalSize = e.number("LOCAL_WORLD_SIZE", 1, 0)
		if p.LocalSize == 0 { // PyTorchJob: one process a pod
			p.LocalSize = max(1, p.LocalRank+1)
		} else {
			p.OneMachine = p.LocalSize == p.Size
		}
		p.Address, p.Port = e.text("MASTER_ADDR"), e.number("MASTER_PORT", 1, -1)
		if getenv("TORCHELASTIC_USE_AGENT_STORE") == "True" {
			p.StoreElsewhere, p.Attempt = true, strconv.Itoa(
				e.number("TORCHELASTIC_RESTART_COUNT", 0, 0))
		}
	case getenv("SLURM_STEP_ID") != "" && getenv("SLURM_STEP_NUM_TASKS") != "":
		p = Place{
			Size:      e.number("SLURM_STEP_NUM_TASKS", 1, -1),
			Rank:      e.number("SLURM_PROCID", 0, -1),
			LocalRank: e.number("SLURM_LOCALID", 0, -1),
			Attempt:   getenv("SLURM_STEP_ID"),
		}
		p.LocalSize = localTasks(getenv("SLURM_STEP_TASKS_PER_NODE"),
			e.number("SLURM_NODEID", 0, 0))
		p.OneMachine = p.LocalSize == p.Size
		if p.LocalSize <= p.LocalRank {
			p.LocalSize = p.LocalRank + 1
		}
		if p.Address = getenv("MASTER_ADDR"); p.Address == "" {
			p.Address = firstHost(e.text("SLURM_STEP_NODELIST"))
		}
		if p.Port = e.number("MASTER_PORT", 1, 0); p.Port == 0 {
			p.Port = 20000 + e.number("SLURM_JOB_ID", 0, 0)%10000
		}
	default:
		return Alone, nil
	}
	if e.err != nil {
		return Place{}, e.err
	}
	if p.Rank >= p.Size || p.LocalRank >= p.LocalSize || p.Port > 65535 {
		return Place{}, fmt.Errorf(
			"the environment says rank %d of %d (%d of %d on this machine) and "+
				"port %d: ranks count from 0, ports end at 65535",
			p.Rank,
			p.Size,
			p.LocalRank,
			p.LocalSize,
			p.Port,
		)
	}
	if p.Size == 1 {
		return Alone, nil
	}
	if p.OneMachine && !p.StoreElsewhere {
		p.Address = "127.0.0.1" // rank 0 runs the store, so it is here
	}
	return p, nil
}

// environment reads variables and keeps the first error.
type environment struct {
	getenv func(string) string
	err    error
}

// number reads an integer that is at least `least`. otherwise is the value of an unset variable; a
// negative one makes the variable required.
func (e *environment) number(name string, least, otherwise int) int {
	text := e.getenv(name)
	if text == "" && otherwise >= 0 {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if (err != nil || n < least) && e.err == nil {
		e.err = fmt.Errorf(
			"the environment variable %s is %q, expected a whole number of at least %d", name, text,
			least)
	}
	return n
}

func (e *environment) text(name string) string {
	text := e.getenv(name)
	if text == "" && e.err == nil {
		e.err = fmt.Errorf(
			"the environment variable %s is not set, expected the address of the machine "+
				"that runs rank 0",
			name,
		)
	}
	return text
}

var bracketed = regexp.MustCompile(`^([^,\[]*)\[([0-9]+)`)

// firstHost returns the first name of a Slurm host list: a,b or node[03-07,9].
func firstHost(list string) string {
	if m := bracketed.FindStringSubmatch(list); m != nil {
		return m[1] + m[2]
	}
	first, _, _ := strings.Cut(list, ",")
	return first
}

var repeated = regexp.MustCompile(`^(\d+)(?:\(x(\d+)\))?$`)

// localTasks returns the number of tasks on the node of the given index in a Slurm task list:
// 4(x2),3.
func localTasks(list string, node int) int {
	for part := range strings.SplitSeq(list, ",") {
		m := repeated.FindStringSubmatch(part)
		if m == nil {
			return 0
		}
		tasks, _ := strconv.Atoi(m[1])
		times := 1
		if m[2] != "" {
			times, _ = strconv.Atoi(m[2])
		}
		if node < times {
			return tasks
		}
		node -= times
	}
	return 0
}
