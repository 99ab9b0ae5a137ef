package report

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"conquer/internal/atomicfile"
	"conquer/internal/mlflow"
	"conquer/internal/wrongfile"
)

// MLflowFile is the name of the file that says as which run of which server a run is logged, so
// that a resumed run continues it.
const MLflowFile = "mlflow.json"

// maxMLflow is the largest MLflowFile, in bytes.
const maxMLflow = 64 << 10

// MLflow logs a run to an MLflow server. It is a train.Listener. No step waits for the server.
type MLflow struct {
	run    *mlflow.Run
	notice func(string)
}

// mlflowRun is the content of MLflowFile.
type mlflowRun struct {
	Server string `json:"server"`
	Run    string `json:"run_id"`
}

// OpenMLflow begins to log a run whose own logs are in the folder dir. resumed says that the run
// continues, as the one of the server that it was, unless o names another. notice is called with
// what there is to say about the server, while the run calls the listener.
func OpenMLflow(dir string, o mlflow.Options, resumed bool, notice func(string)) (*MLflow, error) {
	path := filepath.Join(dir, MLflowFile)
	var server string
	o.Started = func(id string) error {
		text, err := json.Marshal(mlflowRun{Server: server, Run: id})
		if err != nil {
			return err
		}
		return atomicfile.WriteBytes(path, append(text, '\n'))
	}
	address, err := mlflow.Address(o.URI)
	if err != nil {
		return nil, err
	}
	server = address
	if resumed && o.RunID == "" {
		text, err := wrongfile.Read(path, maxMLflow)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		var was mlflowRun
		if json.Unmarshal(text, &was) == nil && was.Server == server {
			o.RunID = was.Run
		}
	}
	run, err := mlflow.Start(o)
	if err != nil {
		return nil, err
	}
	return &MLflow{run, notice}, nil
}

// Step logs a step.
func (l *MLflow) Step(s Step) error {
	values := []Measure{
		{"loss", s.Loss}, {"learning_rate", s.Rate}, {"gradient_norm", s.Norm}, {"epoch", s.Epoch},
		{"tokens_per_second", float64(s.Tokens) / s.Seconds}, {"memory_bytes", float64(s.Memory)},
	}
	l.log(s.Step, "", append(values, s.Measures...))
	return nil
}

// Validation logs a validation.
func (l *MLflow) Validation(v Validation) error {
	l.log(v.Step, "validation_", append([]Measure{{"loss", v.Loss}}, v.Measures...))
	return nil
}

// Notice does nothing: notices are not logged.
func (l *MLflow) Notice(string) {}

func (l *MLflow) log(step int, prefix string, values []Measure) {
	now := time.Now()
	metrics := make([]mlflow.Metric, len(values))
	for i, v := range values {
		metrics[i] = mlflow.Metric{Key: prefix + v.Name, Value: v.Value, Step: step, Time: now}
	}
	l.run.Log(metrics...)
	l.say()
}

func (l *MLflow) say() {
	for _, message := range l.run.Messages() {
		l.notice(message)
	}
}

// Close ends the run with a status of package mlflow. It waits at most ten seconds for the server.
func (l *MLflow) Close(status string) {
	l.run.Close(status)
	l.say()
}
