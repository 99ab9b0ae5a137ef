package families_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// tools/parity/config_keys.py writes the folders that CONFIG_PARITY names, with what transformers
// makes of them: case.json and, if it loads the folder, expected.safetensors.
func TestConfig_AgreesWithTransformers(t *testing.T) {
	root := os.Getenv("CONFIG_PARITY")
	if root == "" {
		t.Skip("tools/parity/config_keys.py sets CONFIG_PARITY")
	}
	files, err := filepath.Glob(filepath.Join(root, "*", "case.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d cases: %v", len(files), err)
	}
	count := map[string]int{}
	for _, file := range files {
		dir := filepath.Dir(file)
		var c struct {
			Keys         []string
			Outcome, Why string
		}
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &c)
		}
		if err != nil {
			t.Fatal(err)
		}
		m, err := model.Open(dir, torch.Float32, torch.CPU)
		named := func(key string) bool { return strings.Contains(err.Error(), key) }
		switch {
		case c.Outcome == "fails" && err != nil:
			count["refused by both"]++
		case c.Outcome == "fails":
			count["refused by transformers alone"]++
			t.Logf("%s %v: transformers fails, not this program: %s", filepath.Base(dir), c.Keys,
				c.Why)
		case c.Outcome == "makes weights up" && err == nil:
			t.Errorf("%s %v: transformers makes up %s, this program opens it", filepath.Base(dir),
				c.Keys, c.Why)
		case c.Outcome == "loads" && err != nil && !slices.ContainsFunc(c.Keys, named):
			t.Errorf("%s %v: %v", filepath.Base(dir), c.Keys, err)
		case err != nil:
			count["refused by this program"]++
			t.Logf("%s: %v", filepath.Base(dir), err)
		default:
			count["agree"]++
			agree(t, m, dir, c.Keys)
		}
		if err == nil {
			model.Free(m)
		}
	}
	t.Logf("%v", count)
}

// agree compares m's logits with those beside it.
func agree(t *testing.T, m model.Model, dir string, keys []string) {
	inTorch(t, func() {
		c, err := checkpoint.Open(filepath.Join(dir, "expected.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ids, err := c.Tensor("ids")
		if err != nil {
			t.Fatal(err)
		}
		want, err := c.Tensor("logits")
		if err != nil {
			t.Fatal(err)
		}
		got := logitsOf(m, torch.Values[int32](ids))
		worst, err := distance(got, torch.Values[float32](want))
		if err != nil || !(worst <= 1e-4) {
			t.Errorf("%s %v: logits are off by %.3g of the largest (%v)", filepath.Base(dir), keys,
				worst, err)
		}
	})
}
