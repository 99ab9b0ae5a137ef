package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/pflag"
)

var versionCommand = command{
	name:    "version",
	summary: "Print the versions of conquer, Go and libtorch.",
	example: "conquer version",
	setup: func(*pflag.FlagSet) func(context.Context, []string) error {
		return func(_ context.Context, args []string) error {
			if len(args) > 0 {
				return usagef("unexpected %q", args[0])
			}
			fmt.Fprintf(stdout, "conquer %s (%s, %s/%s)\n", version, runtime.Version(),
				runtime.GOOS, runtime.GOARCH)
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, dep := range info.Deps {
					if dep.Path == "github.com/sugarme/gotch" {
						fmt.Fprintf(stdout, "gotch %s, libtorch 2.11.0\n", dep.Version)
					}
				}
			}
			return nil
		}
	},
}
