package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/pflag"

	"conquer/internal/mlflow"
	"conquer/train"
	"conquer/train/report"
)

// mlflowFlags say where a run is logged on an MLflow server.
type mlflowFlags struct {
	uri, experiment, run string
	server               string            // from uri or the environment; "" logs to none
	params               map[string]string // of the run
}

func (f *mlflowFlags) declare(flags *pflag.FlagSet) {
	flags.StringVar(&f.uri, "mlflow", "",
		"log to the MLflow server at this `address`, such as http://localhost:5000 (default: "+
			"MLFLOW_TRACKING_URI)")
	flags.StringVar(&f.experiment, "mlflow_experiment", "",
		"`name` of the experiment (default: MLFLOW_EXPERIMENT_NAME, or else conquer)")
	flags.StringVar(&f.run, "mlflow_run", "",
		"`name` of the run (default: MLFLOW_RUN_NAME, or else that of the output folder)")
}

// notParams are flags that do not belong to what a run is.
var notParams = []string{"mlflow", "mlflow_experiment", "mlflow_run", "config", "print_config",
	"resume", "overwrite", "help"}

// check finds the server, and reads the values of all flags.
func (f *mlflowFlags) check(flags *pflag.FlagSet) error {
	f.server = f.uri
	if f.uri == "" {
		f.server = os.Getenv("MLFLOW_TRACKING_URI")
	}
	if f.server == "" {
		if flags.Changed("mlflow_experiment") && f.experiment != "" ||
			flags.Changed("mlflow_run") && f.run != "" {
			return usagef("--mlflow_experiment and --mlflow_run need --mlflow")
		}
		return nil
	}
	if _, err := mlflow.Address(f.server); err != nil {
		if f.uri != "" {
			return usagef("--mlflow: %w", err)
		}
		return usagef("MLFLOW_TRACKING_URI: %w; or unset it", err)
	}
	f.params = map[string]string{}
	flags.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains(notParams, flag.Name) && (flag.Changed || !isEmpty(flag)) {
			f.params[flag.Name] = flag.Value.String()
		}
	})
	return nil
}

// openMLflow begins to log the run t, or returns nil if there is no server to log to.
func (f *trainFlags) openMLflow(t *train.Trainer) (*report.MLflow, error) {
	if f.server == "" {
		return nil, nil
	}
	o := mlflow.Options{
		URI: f.server, RunID: os.Getenv("MLFLOW_RUN_ID"),
		User:       os.Getenv("MLFLOW_TRACKING_USERNAME"),
		Password:   os.Getenv("MLFLOW_TRACKING_PASSWORD"),
		Token:      os.Getenv("MLFLOW_TRACKING_TOKEN"),
		Experiment: cmp.Or(f.experiment, os.Getenv("MLFLOW_EXPERIMENT_NAME"), "conquer"),
		Run: cmp.Or(f.mlflowFlags.run, os.Getenv("MLFLOW_RUN_NAME"),
			filepath.Base(f.output)),
		Params: f.params,
		Tags:   map[string]string{"mlflow.source.name": "conquer " + version},
	}
	l, err := report.OpenMLflow(f.output, o, t.Done() > 0, f.console.Notice)
	if err != nil {
		return nil, err
	}
	address, _ := mlflow.Address(f.server)
	note("conquer train: logging to MLflow at %s, experiment %s\n", address, o.Experiment)
	t.Listen(l)
	return l, nil
}

// closeMLflow ends the log of a run that ended with err.
func closeMLflow(l *report.MLflow, err error) {
	switch {
	case l == nil:
	case err == nil:
		l.Close(mlflow.Finished)
	case errors.Is(err, context.Canceled):
		l.Close(mlflow.Killed)
	default:
		l.Close(mlflow.Failed)
	}
}
