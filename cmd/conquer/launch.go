package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"conquer/torch"
	"conquer/torch/dist"
	"conquer/train"
)

// maxProcesses is the most that --nproc may be.
const maxProcesses = 1024

// processFlags are the flags of commands that can run in several processes.
type processFlags struct {
	processes int
	timeout   time.Duration
}

func (f *processFlags) declareProcesses(flags *pflag.FlagSet) {
	flags.IntVar(&f.processes, "nproc", 1,
		"number of processes on this machine: one per GPU, or sharing the CPU's cores")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute,
		"how long a process waits for the others before it fails and names them")
}

func (f *processFlags) checkProcesses() error {
	if f.processes < 1 || f.processes > maxProcesses || f.timeout <= 0 {
		return usagef("--nproc %d, --timeout %v: expected 1 to %d processes and a positive time",
			f.processes, f.timeout, maxProcesses)
	}
	if f.processes == 1 || launcher() != nil {
		return nil
	}
	place, err := dist.FromEnvironment()
	if err == nil && place.Size > 1 {
		err = usagef("--nproc %d starts processes, and the environment says that this already is "+
			"one of %d, which torchrun, srun or another launcher has started: leave --nproc out, "+
			"or unset WORLD_SIZE and Slurm's SLURM_STEP_ID", f.processes, place.Size)
	}
	return err
}

// worldFlags are the flags of a run of several processes.
type worldFlags struct {
	processFlags
	restarts int
}

func (f *worldFlags) declare(flags *pflag.FlagSet, o *train.Options) {
	f.declareProcesses(flags)
	flags.StringVar(&o.Distributed, "distributed", "",
		"parallel strategy: none, ddp, fsdp, hsdp, tp or pp (default: none for one process, ddp "+
			"for several)")
	flags.IntVar(&o.ShardSize, "hsdp_size", 0,
		"hsdp: number of processes that share one copy of the weights (default: the processes "+
			"of one machine)")
	flags.IntVar(&o.TensorSize, "tp_size", 0,
		"tp, ddp and fsdp: number of processes that divide each layer (default: with tp the "+
			"processes of one machine, else 1)")
	flags.IntVar(&o.ContextSize, "cp_size", 0,
		"ddp and fsdp: number of processes that each row is cut over, for long sequences "+
			"(default 1)")
	flags.BoolVar(&o.KeepGathered, "keep_gathered", false,
		"fsdp and hsdp: keep gathered weights from the forward to the backward pass; faster, more "+
			"memory")
	flags.BoolVar(&o.OffloadOptimizer, "offload_optimizer", false,
		"fsdp and hsdp: keep the optimizer's state in host memory and take its steps there; saves "+
			"16 bytes per weight, slower steps")
	flags.StringVar(&o.ReduceDType, "reduce_dtype", "float32",
		"`dtype` in which gradients are summed: float32, or same for the weights' dtype")
	flags.IntVar(&f.restarts, "max_restarts", 0,
		"with --nproc: how often to restart from the last checkpoint when a process fails; a run "+
			"that has diverged is not restarted")
}

// join makes this process a rank of the run that its environment describes. It returns nil for a
// single process without a parallel strategy.
func (f *trainFlags) join() (*dist.World, error) {
	place, err := dist.FromEnvironment()
	if err != nil {
		return nil, err
	}
	if place.Size == 1 && (f.Distributed == "" || f.Distributed == train.None) {
		return nil, nil
	}
	f.divided = f.TensorSize > 0 || f.Distributed != train.DDP
	f.sharded = f.TensorSize == 0 && (f.Distributed == train.FSDP || f.Distributed == train.HSDP)
	f.onHost = f.TensorSize > 0 || f.Distributed == train.TP ||
		f.Distributed == train.PP // random weights are sharded before they go to the device
	f.World, err = f.processFlags.join(place, &f.modelFlags)
	return f.World, err
}

// join makes this process the rank at place, with its own device or its share of the cores.
func (f *processFlags) join(place dist.Place, m *modelFlags) (*dist.World, error) {
	if m.threads == 0 {
		m.threads = max(1, runtime.NumCPU()/place.LocalSize)
	}
	if m.device == "cuda" || m.device == "" && torch.LoadCUDA() == nil {
		m.device = fmt.Sprintf("cuda:%d", place.LocalRank)
	} else if m.device == "" && place.Rank > 0 {
		m.device = "cpu" // rank 0 prints the reason
	}
	device, err := parseDevice(m.device)
	if err != nil {
		return nil, err
	}
	if place.Rank > 0 { // only rank 0 prints
		if os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return nil, err
		}
	}
	return dist.Join(place, device, f.timeout)
}

// launch runs this command in several processes of this machine. If one fails, it restarts them
// from the last checkpoint, at most restarts times.
func (f *processFlags) launch(ctx context.Context, restarts int) error {
	store, err := dist.OpenStore("127.0.0.1", 0, true, time.Minute)
	if err != nil {
		return err
	}
	defer store.Close()
	for attempt := 0; ; attempt++ {
		again, err := runOnce(ctx, f.processes, store.Port(), attempt)
		if err == nil || ctx.Err() != nil || !again || attempt >= restarts {
			return err
		}
		note("conquer train: %v\nrestarting from the last checkpoint (restart "+
			"%d of %d)\n", err, attempt+1, restarts)
	}
}

// reportVariable names the environment variable that holds the file descriptor on which a process
// reports its error to its launcher, so that the error is printed once.
const reportVariable = "CONQUER_REPORT"

// reportSize is the maximum size of a report: a pipe holds this much without a reader.
const reportSize = 4096

// begunMark precedes a report if the process has taken steps. Only such a run is restarted: an
// earlier failure would repeat. divergedMark follows it if the run has diverged, which would repeat
// too.
const (
	begunMark    = "begun\n"
	divergedMark = "diverged\n"
)

// launcher is the pipe to this process's launcher, or nil.
var launcher = sync.OnceValue(func() *os.File {
	descriptor, err := strconv.Atoi(os.Getenv(reportVariable))
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(descriptor), reportVariable)
})

// reportToLauncher sends text to this process's launcher. It returns false without a launcher.
func reportToLauncher(text string) bool {
	if launcher() == nil {
		return false
	}
	_, err := launcher().WriteString(text[:min(len(text), reportSize-len(begunMark))])
	return err == nil
}

// failure returns the error of a failed process: its report or, if it was killed, its last line on
// stderr. The stderr of rank 0 has been printed already.
func failure(rank int, state *os.ProcessState, said, complaint string) error {
	const ended = "rank %d failed, so the others were stopped: %s"
	if said != "" {
		return reportedError(fmt.Sprintf(ended, rank, said), state)
	}
	lines := strings.Split(strings.TrimSpace(complaint), "\n")
	last := lines[len(lines)-1]
	for _, line := range lines { // libtorch aborted: keep its message only
		if _, what, ok := strings.Cut(line, "what():"); ok {
			last = strings.TrimSpace(what)
		}
	}
	if last == "" {
		last = "it ended with " + state.String()
		if rank == 0 && state.ExitCode() > 0 {
			last += "; its error is above"
		}
	}
	return fmt.Errorf(ended, rank, last)
}

// reportedError returns a process's report as an error, a usage error if the exit code is 2.
func reportedError(said string, state *os.ProcessState) error {
	if state.ExitCode() == 2 {
		return usageError{errors.New(said)}
	}
	return errors.New(said)
}
