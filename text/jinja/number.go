package jinja

import (
	"math"
	"math/big"
	"strconv"
	"strings"
)

// maxBits bounds the size of an integer. Python's limit on printing one is 4,300 digits.
const maxBits = 1 << 16

// bigOf converts an int, bool or *big.Int.
func bigOf(v value) *big.Int {
	switch v := v.(type) {
	case int:
		return big.NewInt(int64(v))
	case bool:
		if v {
			return big.NewInt(1)
		}
		return new(big.Int)
	case *big.Int:
		return v
	}
	return new(big.Int)
}

// normalize returns n as an int if it fits.
func normalize(n *big.Int) value {
	if n.IsInt64() {
		return int(n.Int64())
	}
	if n.BitLen() > maxBits {
		failLimit("bytes", maxBits/8)
	}
	return n
}

// floatOf converts a number to float64.
func floatOf(v value) float64 {
	switch v := v.(type) {
	case float64:
		return v
	case int:
		return float64(v)
	}
	f, _ := new(big.Float).SetInt(bigOf(v)).Float64()
	if math.IsInf(f, 0) {
		fail("int too large to convert to float")
	}
	return f
}

var opNames = map[byte]string{'+': "+", '-': "-", '*': "*", '/': "/", '%': "%", opFloorDivide: "//",
	opPower: "** or pow()"}

// arithmetic is a op b.
func (r *renderer) arithmetic(op byte, a, b value) value {
	r.step()
	if x, ok := a.(string); ok && op == '+' {
		if y, ok := b.(string); ok {
			r.grow(len(x) + len(y))
			if r.trace == nil {
				return x + y
			}
			return r.joined(x, y)
		}
	}
	if x, ok := a.(int); ok {
		if y, ok := b.(int); ok {
			if v, ok := small(op, x, y); ok {
				return v
			}
		}
	}
	for _, v := range []value{a, b} {
		if u, ok := v.(*undefined); ok {
			u.fail()
		}
	}
	x, okX := number(a)
	y, okY := number(b)
	if okX && okY {
		return r.arithmeticNumbers(op, x, y)
	}
	if v := r.sequenceArithmetic(op, a, b); v != nil {
		return r.derived(v, a, b)
	}
	fail("unsupported operand type(s) for %s: '%s' and '%s'", opNames[op], typeName(a), typeName(b))
	return nil
}

// small computes a op b for integers that cannot overflow.
func small(op byte, a, b int) (value, bool) {
	const limit = 1 << 31
	if a >= limit || a <= -limit || b >= limit || b <= -limit {
		return nil, false
	}
	switch op {
	case '+':
		return a + b, true
	case '-':
		return a - b, true
	case '*':
		return a * b, true
	case '%', opFloorDivide:
		if b == 0 {
			return nil, false
		}
		quotient, rest := a/b, a%b
		if rest != 0 && (rest < 0) != (b < 0) {
			rest += b
			quotient--
		}
		if op == '%' {
			return rest, true
		}
		return quotient, true
	}
	return nil, false
}

// bigBits returns the bits of an integer that is large, else 0.
func bigBits(v value) int {
	if n, ok := v.(*big.Int); ok {
		return n.BitLen()
	}
	return 0
}

func (r *renderer) arithmeticNumbers(op byte, a, b value) value {
	// Multiplying and dividing take time with the product of the words.
	r.work((bigBits(a) >> 6) * (bigBits(b) >> 6) >> 6)
	_, floatA := a.(float64)
	_, floatB := b.(float64)
	if floatA || floatB || op == '/' {
		return arithmeticFloats(op, a, b)
	}
	x, y := bigOf(a), bigOf(b)
	z := new(big.Int)
	switch op {
	case '+':
		z.Add(x, y)
	case '-':
		z.Sub(x, y)
	case '*':
		z.Mul(x, y)
	case '%', opFloorDivide:
		if y.Sign() == 0 {
			fail("integer division or modulo by zero")
		}
		rest := new(big.Int)
		z.QuoRem(x, y, rest)
		if rest.Sign() != 0 && (rest.Sign() < 0) != (y.Sign() < 0) {
			rest.Add(rest, y)
			z.Sub(z, big.NewInt(1))
		}
		if op == '%' {
			z = rest
		}
	case opPower:
		if y.Sign() < 0 {
			return arithmeticFloats(op, a, b)
		}
		if x.BitLen() > 1 && (!y.IsInt64() || y.Int64()*int64(x.BitLen()) > maxBits ||
			y.BitLen() > 32) {
			failLimit("bytes", maxBits/8)
		}
		if x.BitLen() <= 1 && y.BitLen() > 1 { // of 0, 1 and -1 only the parity counts
			y = new(big.Int).Add(big.NewInt(2), new(big.Int).And(y, big.NewInt(1)))
		}
		z.Exp(x, y, nil)
		r.work((z.BitLen() >> 6) * (z.BitLen() >> 6) >> 6)
	}
	return normalize(z)
}

func arithmeticFloats(op byte, a, b value) value {
	if op == '/' {
		_, floatA := a.(float64)
		_, floatB := b.(float64)
		if !floatA && !floatB {
			y := bigOf(b)
			if y.Sign() == 0 {
				fail("division by zero")
			}
			q, _ := new(big.Rat).SetFrac(bigOf(a), y).Float64()
			if math.IsInf(q, 0) {
				fail("integer division result too large for a float")
			}
			return q
		}
	}
	x, y := floatOf(a), floatOf(b)
	switch op {
	case '+':
		return x + y
	case '-':
		return x - y
	case '*':
		return x * y
	case '/':
		if y == 0 {
			fail("float division by zero")
		}
		return x / y
	case '%', opFloorDivide:
		if y == 0 {
			fail("float modulo")
		}
		rest := math.Mod(x, y)
		quotient := (x - rest) / y
		if rest != 0 {
			if (y < 0) != (rest < 0) {
				rest += y
				quotient--
			}
		} else {
			rest = math.Copysign(0, y)
		}
		if op == '%' {
			return rest
		}
		if quotient == 0 {
			return math.Copysign(0, x/y)
		}
		floor := math.Floor(quotient)
		if quotient-floor > 0.5 {
			floor++
		}
		return floor
	}
	if x == 0 && y < 0 {
		fail("0.0 cannot be raised to a negative power")
	}
	if x < 0 && y != math.Trunc(y) && !math.IsInf(y, 0) {
		fail("complex numbers are not supported")
	}
	z := math.Pow(x, y)
	if math.IsInf(z, 0) && !math.IsInf(x, 0) && !math.IsInf(y, 0) {
		fail("(34, 'Numerical result out of range')")
	}
	return z
}

// sequenceArithmetic is + and * of strings, lists and tuples, and % of strings; nil if it does not
// apply.
func (r *renderer) sequenceArithmetic(op byte, a, b value) value {
	switch op {
	case '+':
		return r.concatenate(a, b)
	case '*':
		if n, ok := count(b); ok {
			return r.repeat(a, n)
		}
		if n, ok := count(a); ok {
			return r.repeat(b, n)
		}
		for _, pair := range [][2]value{{a, b}, {b, a}} {
			switch pair[0].(type) {
			case string, markup, *list, tuple:
				fail("can't multiply sequence by non-int of type '%s'", typeName(pair[1]))
			}
		}
	case '%':
		switch x := a.(type) {
		case string:
			return r.percent(x, b)
		case markup:
			return markup(r.percent(string(x), escapeValue(r, b)))
		}
	}
	return nil
}

func count(v value) (int, bool) {
	n, ok := number(v)
	if !ok {
		return 0, false
	}
	switch n := n.(type) {
	case int:
		return n, true
	case *big.Int:
		return math.MaxInt32, true
	}
	return 0, false
}

func (r *renderer) concatenate(a, b value) value {
	x, textA := text(a)
	y, textB := text(b)
	_, markA := a.(markup)
	_, markB := b.(markup)
	switch {
	case textA && textB && (markA || markB):
		if !markA {
			x = r.escaped(x)
		}
		if !markB {
			y = r.escaped(y)
		}
		r.grow(len(x) + len(y))
		return markup(r.joined(x, y))
	case textA && textB:
		r.grow(len(x) + len(y))
		return r.joined(x, y)
	case textA:
		fail("can only concatenate str (not \"%s\") to str", typeName(b))
	}
	switch x := a.(type) {
	case *list:
		y, ok := b.(*list)
		if !ok {
			fail("can only concatenate list (not \"%s\") to list", typeName(b))
		}
		r.elements(len(x.items) + len(y.items))
		return &list{append(append(make([]value, 0, len(x.items)+len(y.items)), x.items...),
			y.items...)}
	case tuple:
		y, ok := b.(tuple)
		if !ok {
			fail("can only concatenate tuple (not \"%s\") to tuple", typeName(b))
		}
		r.elements(len(x) + len(y))
		return append(append(make(tuple, 0, len(x)+len(y)), x...), y...)
	}
	return nil
}

func (r *renderer) repeat(v value, n int) value {
	n = max(n, 0)
	size := func(length, unit int) {
		if length > 0 && n > r.limits.Bytes/(length*unit) {
			failLimit("bytes", r.limits.Bytes)
		}
		r.grow(length * unit * n)
	}
	switch v := v.(type) {
	case string:
		size(len(v), 1)
		return strings.Repeat(v, n)
	case markup:
		size(len(v), 1)
		return markup(strings.Repeat(string(v), n))
	case *list:
		size(len(v.items), 16)
		items := make([]value, 0, len(v.items)*n)
		for range n {
			if len(v.items) == 0 {
				break
			}
			items = append(items, v.items...)
		}
		return &list{items}
	case tuple:
		size(len(v), 16)
		items := make(tuple, 0, len(v)*n)
		for range n {
			if len(v) == 0 {
				break
			}
			items = append(items, v...)
		}
		return items
	}
	return nil
}

// formatFloat is Python's repr of a float.
func formatFloat(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	}
	short := strconv.FormatFloat(f, 'e', -1, 64)
	mantissa, exponentText, _ := strings.Cut(short, "e")
	exponent, _ := strconv.Atoi(exponentText)
	if exponent < -4 || exponent >= 16 {
		sign := "+"
		if exponent < 0 {
			sign, exponent = "-", -exponent
		}
		digits := strconv.Itoa(exponent)
		if len(digits) < 2 {
			digits = "0" + digits
		}
		return mantissa + "e" + sign + digits
	}
	plain := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(plain, ".") {
		plain += ".0"
	}
	return plain
}

// roundHalfEven is Python's round(f, digits).
func roundHalfEven(f float64, digits int) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) || digits > 323 {
		return f
	}
	if digits < -308 {
		return math.Copysign(0, f)
	}
	if digits >= 0 {
		rounded, err := strconv.ParseFloat(strconv.FormatFloat(f, 'f', digits, 64), 64)
		if err != nil {
			return f
		}
		return rounded
	}
	unit := math.Pow(10, float64(-digits))
	return math.RoundToEven(f/unit) * unit
}
