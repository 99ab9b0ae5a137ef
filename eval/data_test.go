package eval

import (
	"reflect"
	"strings"
	"testing"
)

// The files of data sets on the hub, and which of them are a split's.
func TestData_FindsTheFilesOfASplit(t *testing.T) {
	for _, c := range []struct{ name, split, files, want string }{
		{"ARC-Easy", "test", "ARC-Challenge/test-00000-of-00001.parquet README.md " +
			"ARC-Easy/test-00000-of-00001.parquet ARC-Easy/train-00000-of-00001.parquet",
			"ARC-Easy/test-00000-of-00001.parquet"},
		{"anatomy", "dev", "anatomy/dev-00000-of-00001.parquet anatomy/validation-0.parquet " +
			"auxiliary_train/train-0.parquet", "anatomy/dev-00000-of-00001.parquet"},
		{"", "train", "data/train-00001-of-00002.parquet data/train-00000-of-00002.parquet " +
			"data/validation-00000-of-00001.parquet",
			"data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet"},
		{"default", "test", "data/lambada_test_en.jsonl data/lambada_test_de.parquet",
			"data/lambada_test_de.parquet"},
		{"", "validation", "dev.jsonl test.jsonl", "dev.jsonl"},
		{"", "validation", "val/part-1.json train/part-1.json", "val/part-1.json"},
	} {
		got, err := dataConfig{name: c.name}.choose(strings.Fields(c.files), c.split)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s of %s: %v, %v, want %s", c.split, c.files, got, err, c.want)
		}
	}
	_, err := dataConfig{}.choose([]string{"train.jsonl"}, "test")
	if err == nil || !strings.Contains(err.Error(), "test.jsonl") {
		t.Errorf("the error is %v", err)
	}
}

func TestData_ReadsTheCard(t *testing.T) {
	card := []byte("---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n" +
		"  - split: train\n    path: main/train-*\n  - split: test\n    path: [main/a, main/b]\n" +
		"- config_name: other\n  data_files:\n  - {split: test, path: other/*}\n---\n# Title\n")
	for _, c := range []struct {
		config, split string
		want          []string
	}{{"main", "train", []string{"main/train-*"}}, {"main", "test", []string{"main/a", "main/b"}},
		{"other", "test", []string{"other/*"}}, {"none", "test", nil}, {"", "test", nil}} {
		if got := cardFiles(card, c.config, c.split); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s of %s: %v, want %v", c.split, c.config, got, c.want)
		}
	}
	for _, bad := range []string{"", "---\n", "---\n: [\n---\n", "# no header"} {
		if got := cardFiles([]byte(bad), "main", "test"); got != nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}
