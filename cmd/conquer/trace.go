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

// profileFlag is the flag --profile.
type profileFlag struct{ profile string }

func (f *profileFlag) declareProfile(flags *pflag.FlagSet) {
	flags.StringVar(&f.profile, "profile", "",
		"write a trace of rank 0's operations to this `file` (for ui.perfetto.dev) and print the "+
			"most expensive ones")
}

// checkProfile reports a missing folder before any work is done.
func (f *profileFlag) checkProfile() error {
	if info, err := os.Stat(filepath.Dir(f.profile)); f.profile != "" &&
		(err != nil || !info.IsDir()) {
		return usagef("--profile: no folder %s", filepath.Dir(f.profile))
	}
	return nil
}

// profiled calls run, under the profiler if --profile was given.
func (f *profileFlag) profiled(run func() error) error {
	if f.profile == "" {
		return run()
	}
	began := time.Now()
	rows, err := torch.Trace(f.profile, run)
	if rows != nil {
		printProfile(os.Stderr, rows, time.Since(began))
		note("wrote %s\n", f.profile)
	}
	return err
}

// printProfile lists the operations with the most self time, for the GPU and the host separately.
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
		fmt.Fprintf(w, "\n%-5s %8s %7s %10s  %.3f s of %.3f s\n", where, "share", "calls", "each",
			whole.Seconds(), elapsed.Seconds())
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
			fmt.Fprintf(w, "%5s %6.1f %% %7d %7.1f µs  %s\n", "",
				100*r.Own.Seconds()/whole.Seconds(), r.Calls,
				float64(r.Own.Microseconds())/float64(r.Calls), name)
		}
	}
}
