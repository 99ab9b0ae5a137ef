package bench

import (
	"math"
	"testing"
)

func TestRatio_LimitsComeFromTheQuartiles(t *testing.T) {
	for _, c := range []struct {
		a, b    Times
		text    string
		overlap bool
	}{
		{Times{10, 8, 12, 5}, Times{2, 1.6, 2.5, 7}, "5.00 (3.20–7.50)", false},
		{Times{10, 9, 12, 5}, Times{9, 8, 10, 5}, "1.11 (0.90–1.50, overlap)", true},
		{Times{10, 9, 12, 5}, Times{8, 7, 9, 5}, "1.25 (1.00–1.71, overlap)", true}, // touch
		{Times{8, 7, 8.9, 5}, Times{10, 9, 12, 5}, "0.80 (0.58–0.99)", false},
		{Times{10, 10, 10, 1}, Times{2, 1.6, 2.5, 7}, "5.00 (one run)", false},
		{Times{10, 9, 11, 3}, Times{2, 0, 2.5, 3}, "5.00 (one run)", false}, // an older file
	} {
		r := c.a.Over(c.b)
		if r.String() != c.text || r.Overlap() != c.overlap {
			t.Errorf("%+v over %+v: %s, %v", c.a, c.b, r, r.Overlap())
		}
		// The quartiles of both sides overlap if and only if the limits enclose 1.
		touch := math.Max(c.a.Low, c.b.Low) <= math.Min(c.a.High, c.b.High)
		if !r.Single() && c.overlap != touch {
			t.Errorf("%+v and %+v", c.a, c.b)
		}
	}
}
