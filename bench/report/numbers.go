package report

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	"gonum.org/v1/plot/plotter"

	"conquer/bench"
)

func meanAndDeviation(list []float64) (mean, deviation float64) {
	for _, x := range list {
		mean += x / float64(len(list))
	}
	for _, x := range list {
		deviation += (x - mean) * (x - mean)
	}
	return mean, math.Sqrt(deviation / math.Max(1, float64(len(list)-1)))
}

// quartiles returns the quartiles that a box plot of list shows.
func quartiles(list []float64) (low, median, high float64) {
	b, err := plotter.NewBoxPlot(1, 0, plotter.Values(list))
	if err != nil {
		return math.NaN(), math.NaN(), math.NaN()
	}
	return b.Quartile1, b.Median, b.Quartile3
}

// asFast says how many times as fast the faster side is, with the limits that the quartiles leave.
func asFast(r bench.Ratio) string {
	text := short(r.Value) + " times as fast"
	switch {
	case r.Single():
		return text + " (a single run, without quartiles)"
	case r.Overlap():
		return fmt.Sprintf("%s (%s to %s between the quartiles, which overlap: the difference may "+
			"be noise)", text, short(r.Low), short(r.High))
	}
	return fmt.Sprintf("%s (%s to %s between the quartiles of %d runs)", text, short(r.Low),
		short(r.High), r.Runs)
}

// brief shortens a name for an axis.
func brief(name string) string {
	if runes := []rune(name); len(runes) > 34 {
		name = string(runes[:33]) + "…"
	}
	return name
}

// printable replaces the characters that a document must not hold. Names from a file may have
// such characters.
func printable(document []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsGraphic(r) {
			return r
		}
		return '\uFFFD'
	}, document)
}

var nan = math.NaN()

// finite reports whether a chart can show x. No measured value has more than 15 digits.
func finite(x float64) bool { return math.Abs(x) < 1e15 }

// short formats a number with three significant digits: 0.0123, 4.5, 123, 12,345.
func short(x float64) string {
	switch a := math.Abs(x); {
	case !finite(x):
		return "–"
	case a >= 999.5:
		return count(x)
	case a == 0:
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(x))))
	s := strconv.FormatFloat(x, 'f', max(0, digits), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// count formats a whole number with commas.
func count(x float64) string {
	s := strconv.FormatFloat(math.Abs(x), 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if x < 0 {
		s = "-" + s
	}
	return s
}

// share formats a fraction in percent.
func share(part float64) string {
	if part <= 0 || !finite(part) {
		return "–"
	}
	return fmt.Sprintf("%.0f %%", 100*part)
}
