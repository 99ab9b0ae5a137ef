package hub

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/text/dataset"
)

func TestFetchData_ResumesAnInterruptedDownload(t *testing.T) {
	h := newHub(t)
	big := make([]byte, 200_000)
	for i := range big {
		big[i] = byte(rand.Uint32())
	}
	h.files = map[string][]byte{
		"README.md": []byte("no"), "dataset_infos.json": []byte("{}"),
		"data/train-00000.parquet": big, "data/train-00001.parquet": []byte("b"),
		"data/test-00000.parquet": []byte("c"), "extra/more.jsonl": []byte("d"),
	}
	h.breaks["data/train-00000.parquet"] = 70_000
	for ref, want := range map[string][]string{
		"hf://datasets/org/name": {"data/train-00000.parquet",
			"data/train-00001.parquet"},
		"hf://datasets/org/name@" + h.commit + ":*.jsonl":  {"extra/more.jsonl"},
		"hf://datasets/org/name:data/t*st-*.parquet":       {"data/test-00000.parquet"},
		"hf://datasets/org/name@main:[a-z]*-00001.parquet": {"data/train-00001.parquet"},
	} {
		got, _, err := FetchData(context.Background(), ref, dataset.SplitFiles(false), nil)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		slices.Sort(got)
		for i, path := range got {
			if i >= len(want) || !strings.HasSuffix(path, filepath.FromSlash(want[i])) {
				t.Errorf("%s: fetched %v, want %v", ref, got, want)
				break
			}
			if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, h.files[want[i]]) {
				t.Errorf("%s: %s differs (%v)", ref, path, err)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: fetched %v, want %v", ref, got, want)
		}
	}
	if want := fmt.Sprintf("data/train-00000.parquet bytes=%d-",
		70_000); !slices.Contains(h.ranges, want) {
		t.Errorf("the download that broke off did not go on: %v", h.ranges)
	}
	for ref, want := range map[string]string{
		"hf://datasets/org/name:*.csv": "none of its 6 files is wanted",
		"hf://datasets/org/name:[":     "is not a data set",
		"hf://datasets/org":            "is not a data set",
		"hf://datasets/org/other":      "has no revision main",
	} {
		if _, _, err := FetchData(context.Background(), ref, dataset.SplitFiles(false),
			nil); err == nil || !strings.Contains(err.Error(),
			want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", ref, err, want)
		}
	}
}
