package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"conquer/torch"
)

// profileFlag is --profile of the commands that run a model.
type profileFlag struct{ profile string }

func (f *profileFlag) declareProfile(flags *pflag.FlagSet) {
	flags.StringVar(&f.profile, "profile", "", "`file` for a trace of every operation, which chrome://tracing and ui.perfetto.dev open, of rank 0 where there are several; the most expensive ones are printed")
}

// checkProfile finds a folder that is not there before all else is done.
func (f *profileFlag) checkProfile() error {
	if info, err := os.Stat(filepath.Dir(f.profile)); f.profile != "" && (err != nil || !info.IsDir()) {
		return usagef("--profile: there is no folder %s", filepath.Dir(f.profile))
	}
	return nil
}

// profiled runs f, under the profiler where --profile asks for it.
func (f *profileFlag) profiled(run func() error) error {
	if f.profile == "" {
		return run()
	}
	began := time.Now()
	rows, err := torch.Trace(f.profile, run)
	if rows != nil {
		printProfile(os.Stderr, rows, time.Since(began))
		fmt.Fprintf(os.Stderr, "wrote %s\n", f.profile)
	}
	return err
}

// printProfile lists the operations that took the most time of their own, a GPU's apart from the host's.
func printProfile(w io.Writer, rows []torch.Traced, elapsed time.Duration) {
	const most = 20
	for _, gpu := range []bool{true, false} {
		var whole time.Duration
		for _, r := range rows {
			if r.GPU == gpu {
				whole += r.Own
			}
		}
		if whole == 0 {
			continue
		}
		where := map[bool]string{true: "GPU", false: "host"}[gpu]
		fmt.Fprintf(w, "\n%-5s %8s %7s %10s  %.3f s of %.3f s\n", where, "share", "calls", "each", whole.Seconds(), elapsed.Seconds())
		shown := 0
		for _, r := range rows {
			if r.GPU != gpu || shown == most {
				continue
			}
			shown++
			name := r.Name
			if len(name) > 90 {
				name = name[:87] + "..."
			}
			fmt.Fprintf(w, "%5s %6.1f %% %7d %7.1f µs  %s\n", "", 100*r.Own.Seconds()/whole.Seconds(), r.Calls,
				float64(r.Own.Microseconds())/float64(r.Calls), name)
		}
	}
}
