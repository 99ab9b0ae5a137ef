package report

import (
	"bytes"
	"image/png"
	"math"
	"strings"
	"testing"
)

func TestHeatMap_ShowsEveryCell(t *testing.T) {
	h := HeatMap{Title: "Recall", X: "tokens", Y: "depth", Columns: []string{"512", "1,024"},
		Rows:   []string{"0 %", "50 %", "100 %"},
		Values: [][]float64{{1, 0.25}, {0.75, 0}, {0.5, math.NaN()}}}
	svg, err := h.Draw("svg")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"Recall", "1,024", "25 %", "75 %", "0 %"} {
		if !strings.Contains(string(svg), text) {
			t.Errorf("the map lacks %q", text)
		}
	}
	data, err := h.Draw("png")
	if err != nil {
		t.Fatal(err)
	}
	image, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	dark, pale := 0, 0
	for x := range image.Bounds().Dx() {
		for y := range image.Bounds().Dy() {
			switch r, g, b, _ := image.At(x, y).RGBA(); [3]uint32{r >> 8, g >> 8, b >> 8} {
			case [3]uint32{8, 69, 148}:
				dark++
			case [3]uint32{240, 245, 250}:
				pale++
			}
		}
	}
	if dark < 1000 || pale < 1000 {
		t.Errorf("%d pixels of a full and %d of an empty cell", dark, pale)
	}
	if _, err := h.Draw("gif"); err == nil {
		t.Error("a gif is drawn")
	}
	if _, err := (HeatMap{}).Draw("svg"); err == nil {
		t.Error("an empty map is drawn")
	}
}
