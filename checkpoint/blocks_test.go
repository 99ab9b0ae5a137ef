package checkpoint

import (
	"bytes"
	"path/filepath"
	"testing"

	"conquer/torch"
)

func TestBlocks_HoldTheNumbersOfTensor(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "types.gguf"))
	inTorch(t, func() {
		found := map[string]bool{}
		for _, name := range c.Names() {
			parts, err := c.Blocks(name)
			info, _ := c.Info(name)
			ok := len(parts) > 0
			if err != nil || ok == (len(info.Shape) < 2 || len(info.Stored) < 4 ||
				info.Stored == "BF16") {
				t.Errorf("%s (%s): in blocks is %v, %v", name, info.Stored, ok, err)
			}
			if !ok {
				continue
			}
			found[info.Stored] = true
			want, err := c.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			got := torch.Blocks(info.Shape[1], parts...).UnpackRows(0, info.Shape[0], torch.Float32)
			if !bytes.Equal(got.Data(), want.Data()) {
				t.Errorf("%s (%s) differs", name, info.Stored)
			}
		}
		if len(found) != 8 {
			t.Errorf("the kinds are %v", found)
		}
		if _, err := c.Blocks("none"); err == nil {
			t.Error("a missing tensor has blocks")
		}
	})
	if kind := c.Quantized(); kind != "Q8_0" && kind != "Q6_K" {
		t.Errorf("most bytes are %q", kind)
	}
	if kind := mustOpen(t, filepath.Join(fixtures, "sharded")).Quantized(); kind != "" {
		t.Errorf("a folder of safetensors is %q", kind)
	}
}
