package report

import (
	"image/png"
	"os"
	"path/filepath"
	"testing"
)

func TestPlotLengths_DrawsABarForEachBin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lengths.png")
	bluePixels := func(bins ...Bin) (n int) {
		if err := PlotLengths(bins, path); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		picture, err := png.Decode(f)
		if err != nil {
			t.Fatal(err)
		}
		for y := range picture.Bounds().Dy() {
			for x := range picture.Bounds().Dx() {
				if r, _, b, _ := picture.At(x, y).RGBA(); r>>8 < 80 && b>>8 > 130 {
					n++
				}
			}
		}
		return n
	}
	one := bluePixels(Bin{1, 10, 4}, Bin{11, 20, 0})
	two := bluePixels(Bin{1, 10, 4}, Bin{11, 20, 4})
	if one < 1000 || two < one*19/10 || two > one*21/10 {
		t.Errorf("one bar has %d pixels, two have %d", one, two)
	}
}
