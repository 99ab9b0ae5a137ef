package families_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// A config.json that makes a model must give shapes that can be counted. No weights are allocated.
func FuzzConfig(f *testing.F) {
	for _, a := range model.Architectures() {
		for _, config := range a.Variants {
			text, err := json.Marshal(config)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	configs, err := filepath.Glob(filepath.Join("..", "*", "testdata", "*", "config.json"))
	if err != nil || len(configs) == 0 {
		f.Fatalf("%d configs: %v", len(configs), err)
	}
	for _, path := range configs {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var config model.Config
		if json.Unmarshal(text, &config) != nil || config == nil {
			return
		}
		// Declare counts the layers of the weights before it makes a model.
		if n, _ := config["num_hidden_layers"].(float64); n > 8 {
			config["num_hidden_layers"] = 8.0
		}
		live := torch.LiveTensors()
		err := torch.Run(func() error {
			m, err := model.New(config)
			if err != nil {
				return err
			}
			total := 0.0
			nn.Walk(m, func(c nn.Component) {
				elements := 1.0
				for _, n := range c.Shape() {
					if n < 1 {
						t.Fatalf("%s: %s has shape %v", text, c.Name, c.Shape())
					}
					elements *= float64(n)
				}
				if c.Start < 0 || c.Start+c.Rows > c.Param.Shape[0] {
					t.Fatalf("%s: %s is rows %d to %d of %v", text, c.Name, c.Start,
						c.Start+c.Rows, c.Param.Shape)
				}
				total += elements
			})
			if total < 1 || math.IsInf(total, 0) {
				t.Fatalf("%s: %g weights", text, total)
			}
			model.Free(m)
			return nil
		})
		if err != nil && (strings.Contains(err.Error(), "\n") ||
			strings.Contains(err.Error(), "runtime error")) {
			t.Fatalf("%s: %v", text, err)
		}
		if n := torch.LiveTensors(); n > live {
			t.Fatalf("%s: %d tensors are left", text, n-live)
		}
	})
}
