package grammar

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// farthest bounds the numbers of a schema with limits: beyond, float64 has no fractions.
const farthest = 1 << 53

// numeric compiles an integer or a number, with or without limits. Numbers with limits are written
// without exponents.
func numeric(whole bool, s *fields) (expr, error) {
	low, high, limited, err := s.limits()
	switch {
	case err != nil:
		return nil, err
	case !limited && whole:
		return integer, nil
	case !limited:
		return number, nil
	}
	least, most := int64(math.Ceil(low.value)), int64(math.Floor(high.value))
	if low.excluded && float64(least) == low.value {
		least++
	}
	if high.excluded && float64(most) == high.value {
		most--
	}
	all := alt{class{}}
	if least <= most {
		all = append(all, integers(least, most))
	}
	if whole {
		return all, nil
	}
	// n.fraction lies strictly above n and below n+1, -n.fraction below -n and above -(n+1). A
	// fraction of zeros would be n itself, so one digit is not 0.
	part := cat{literal("."), repeat{digit, 0, 3}, class{'1', '9'}, repeat{digit, 0, 3}}
	const most7 = 100_000_000 // below, 7 digits of a fraction are exact enough not to reach n+1
	first, last := int64(math.Ceil(low.value)), min(int64(math.Floor(high.value))-1, most7)
	if last >= max(first, 0) {
		all = append(all, cat{integers(max(first, 0), last), part})
	}
	n, m := max(-int64(math.Floor(high.value)), 0), min(-int64(math.Ceil(low.value))-1, most7)
	if n <= m {
		all = append(all, cat{literal("-"), integers(n, m), part})
	}
	return all, nil
}

// limit is a bound of numbers.
type limit struct {
	value    float64
	excluded bool
}

// limits takes the keywords that bound a number.
func (s *fields) limits() (low, high limit, limited bool, err error) {
	low, high = limit{value: -farthest}, limit{value: farthest}
	for _, k := range []struct {
		name     string
		to       *limit
		excluded bool
		sign     float64
	}{{"minimum", &low, false, 1}, {"exclusiveMinimum", &low, true, 1},
		{"maximum", &high, false, -1}, {"exclusiveMaximum", &high, true, -1}} {
		value, ok := s.take(k.name)
		if !ok {
			continue
		}
		var n float64
		if json.Unmarshal(value, &n) != nil || math.Abs(n) > farthest {
			return low, high, false, fmt.Errorf("%s is %.40s, expected a number of at most 2^53",
				k.name, value)
		}
		limited = true
		if d := (n - k.to.value) * k.sign; d > 0 || d == 0 && k.excluded {
			*k.to = limit{n, k.excluded}
		}
	}
	return low, high, limited, nil
}

// integers is the set of the decimal numbers from low to high.
func integers(low, high int64) expr {
	var all alt
	if low < 0 {
		all = append(all, cat{literal("-"), naturals(max(1, -high), -low)})
		low = 0
	}
	if low <= high {
		all = append(all, naturals(low, high))
	}
	return all
}

// naturals is integers without signs: for each number of digits, those from a to b.
func naturals(low, high int64) expr {
	var all alt
	for digits := 1; digits <= 19; digits++ {
		a, b := int64(0), int64(9)
		if digits > 1 {
			a = int64(math.Pow10(digits - 1))
			b = a*10 - 1
		}
		if a, b = max(a, low), min(b, high); a <= b {
			all = append(all, sameDigits(strconv.FormatInt(a, 10), strconv.FormatInt(b, 10)))
		}
		if b >= high {
			break
		}
	}
	return all
}

// sameDigits is the set of the numbers from a to b, which have as many digits.
func sameDigits(a, b string) expr {
	switch {
	case a == "":
		return literal("")
	case a[0] == b[0]:
		return cat{literal(a[:1]), sameDigits(a[1:], b[1:])}
	}
	n := len(a) - 1
	zeros, nines := strings.Repeat("0", n), strings.Repeat("9", n)
	var all alt
	first, last := rune(a[0]), rune(b[0])
	if a[1:] != zeros {
		all = append(all, cat{literal(a[:1]), sameDigits(a[1:], nines)})
		first++
	}
	if b[1:] != nines {
		all = append(all, cat{literal(b[:1]), sameDigits(zeros, b[1:])})
		last--
	}
	if first <= last {
		all = append(all, cat{class{first, last}, repeat{digit, n, n}})
	}
	return all
}
