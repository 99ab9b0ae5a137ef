package checkpoint

import (
	"encoding/json"
	"os"
	"testing"

	"conquer/torch"
)

// TestParity_WithThePythonPackages saves what tools/parity/checkpoint_files.py asks for in the JSON
// file that CHECKPOINT_PARITY names, for the script to compare. By itself it is skipped.
func TestParity_WithThePythonPackages(t *testing.T) {
	path := os.Getenv("CHECKPOINT_PARITY")
	if path == "" {
		t.Skip("run tools/parity/checkpoint_files.py, which sets CHECKPOINT_PARITY")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var jobs []struct {
		From, To, DType string
		Shard           int
	}
	if err := json.Unmarshal(text, &jobs); err != nil {
		t.Fatal(err)
	}
	for _, job := range jobs {
		c := mustOpen(t, job.From)
		options := Options{ShardBytes: job.Shard, Config: c.ConfigJSON(),
			GenerationConfig: c.GenerationConfigJSON()}
		if c.Format == SafeTensors {
			options.TokenizerFrom = job.From
		}
		if job.DType != "" {
			dtype, err := torch.ParseDType(job.DType)
			if err != nil {
				t.Fatal(err)
			}
			options.DType = &dtype
		}
		if err := Save(job.To, c, options); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
