package jinja

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// percent is Python's format % values.
func (r *renderer) percent(format string, values value) string {
	b := &output{r: r}
	positional, isTuple := values.(tuple)
	if !isTuple {
		positional = tuple{values}
	}
	mapping, _ := values.(*Dict)
	used, named := 0, false
	next := func() value {
		if used >= len(positional) {
			fail("not enough arguments for format string")
		}
		used++
		return positional[used-1]
	}
	for i := 0; i < len(format); i++ {
		r.step()
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		i++
		var argument value
		if i < len(format) && format[i] == '(' {
			depth, start := 1, i+1
			for i++; i < len(format); i++ {
				if format[i] == '(' {
					depth++
				} else if format[i] == ')' {
					if depth--; depth == 0 {
						break
					}
				}
			}
			if mapping == nil {
				fail("format requires a mapping")
			}
			if i >= len(format) {
				fail("incomplete format key")
			}
			v, found := mapping.find(format[start:i])
			if !found {
				fail("'%s'", format[start:i])
			}
			argument, named = v, true
			i++
		}
		s := spec{precision: -1, fill: " "}
		left, zero := false, false
		for ; i < len(format) && strings.IndexByte("-+ #0", format[i]) >= 0; i++ {
			switch format[i] {
			case '-':
				left = true
			case '+':
				s.sign = '+'
			case ' ':
				if s.sign == 0 {
					s.sign = ' '
				}
			case '#':
				s.alternate = true
			case '0':
				zero = true
			}
		}
		read := func() int {
			if i < len(format) && format[i] == '*' {
				i++
				n, ok := next().(int)
				if !ok {
					fail("* wants int")
				}
				return n
			}
			start := i
			for i < len(format) && decimal(format[i]) {
				i++
			}
			n, err := strconv.Atoi("0" + format[start:i])
			if err != nil || n > r.limits.Bytes {
				failLimit("bytes", r.limits.Bytes)
			}
			return n
		}
		s.width = read()
		if s.width < 0 {
			left, s.width = true, -s.width
		}
		if i < len(format) && format[i] == '.' {
			i++
			s.precision = max(0, read())
		}
		for i < len(format) && strings.IndexByte("hlL", format[i]) >= 0 {
			i++
		}
		if i >= len(format) {
			fail("incomplete format")
		}
		c := format[i]
		if c == '%' {
			b.WriteByte('%')
			continue
		}
		if argument == nil {
			argument = next()
		}
		if u, ok := argument.(*undefined); ok && c != 's' && c != 'r' && c != 'a' {
			u.fail()
		}
		s.align = '>'
		if left {
			s.align = '<'
		}
		var text string
		switch c {
		case 's', 'r', 'a':
			text = r.str(argument)
			if c != 's' {
				text = r.repr(argument)
			}
			if s.precision >= 0 {
				text = cutRunes(text, s.precision)
			}
			zero = false
		case 'c':
			if n, ok := argument.(int); ok {
				text = string(rune(n))
			} else if t, ok := argument.(string); ok && utf8.RuneCountInString(t) == 1 {
				text = t
			} else {
				fail("%%c requires int or char")
			}
			zero = false
		case 'd', 'i', 'u', 'x', 'X', 'o':
			n, ok := number(argument)
			if !ok {
				fail("%%%c format: a real number is required, not %s", c, typeName(argument))
			}
			if f, isFloat := n.(float64); isFloat {
				if c == 'x' || c == 'X' || c == 'o' {
					fail("%%%c format: an integer is required, not float", c)
				}
				n = truncate(f)
			}
			if c == 'i' || c == 'u' {
				c = 'd'
			}
			s.kind = c
			text = s.integer(bigOf(n))
		case 'e', 'E', 'f', 'F', 'g', 'G':
			n, ok := number(argument)
			if !ok {
				fail("must be real number, not %s", typeName(argument))
			}
			s.kind = c
			if s.precision < 0 {
				s.precision = 6
			}
			text = s.float(r, floatOf(n))
		default:
			fail("unsupported format character '%c' (%#x) at index %d", c, c, i)
		}
		if zero && !left {
			s.fill, s.align = "0", '='
		}
		b.write(s.padded(r, text))
	}
	if !named && mapping == nil && used < len(positional) {
		if isTuple {
			fail("not all arguments converted during string formatting")
		}
		switch values.(type) {
		case *list, *Dict:
		default:
			fail("not all arguments converted during string formatting")
		}
	}
	return b.String()
}

func truncate(f float64) value {
	if math.IsInf(f, 0) {
		fail("cannot convert float infinity to integer")
	}
	if math.IsNaN(f) {
		fail("cannot convert float NaN to integer")
	}
	if math.Abs(f) < 1<<62 {
		return int(f)
	}
	n, _ := big.NewFloat(f).Int(nil)
	return normalize(n)
}

func cutRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// spec is a format specification of Python's mini-language.
type spec struct {
	fill      string
	align     byte // '<', '>', '^', '=', or 0 for the type's own
	sign      byte // '+', ' ', or 0
	alternate bool
	width     int
	grouping  byte // ',' or '_', or 0
	precision int  // -1: none
	kind      byte // type character, or 0
}

// parseSpec reads [[fill]align][sign][#][0][width][grouping][.precision][type].
func parseSpec(r *renderer, text string) (s spec) {
	s = spec{fill: " ", precision: -1}
	rest := text
	if first, size := utf8.DecodeRuneInString(rest); size > 0 && len(rest) > size &&
		strings.IndexByte("<>=^", rest[size]) >= 0 {
		s.fill, s.align = string(first), rest[size]
		rest = rest[size+1:]
	} else if rest != "" && strings.IndexByte("<>=^", rest[0]) >= 0 {
		s.align = rest[0]
		rest = rest[1:]
	}
	take := func(set string) byte {
		if rest != "" && strings.IndexByte(set, rest[0]) >= 0 {
			c := rest[0]
			rest = rest[1:]
			return c
		}
		return 0
	}
	if c := take("+- "); c != '-' {
		s.sign = c
	}
	s.alternate = take("#") != 0
	if take("0") != 0 && s.align == 0 {
		s.fill, s.align = "0", '='
	}
	digits := func() int {
		end := 0
		for end < len(rest) && decimal(rest[end]) {
			end++
		}
		n, err := strconv.Atoi("0" + rest[:end])
		if err != nil || n > r.limits.Bytes {
			failLimit("bytes", r.limits.Bytes)
		}
		rest = rest[end:]
		return n
	}
	s.width = digits()
	s.grouping = take(",_")
	if take(".") != 0 {
		if rest == "" || !decimal(rest[0]) {
			fail("Format specifier missing precision")
		}
		s.precision = digits()
	}
	s.kind = take("bcdeEfFgGnosxX%")
	if rest != "" {
		fail("Invalid format specifier '%s'", text)
	}
	return s
}

func (s spec) padded(r *renderer, text string) string {
	missing := s.width - r.length(text)
	if missing <= 0 {
		return text
	}
	r.grow(missing*len(s.fill) + len(text))
	switch s.align {
	case '<':
		return text + strings.Repeat(s.fill, missing)
	case '^':
		return strings.Repeat(s.fill, missing/2) + text + strings.Repeat(s.fill, missing-missing/2)
	case '=':
		prefix := 0
		if text != "" && strings.IndexByte("+- ", text[0]) >= 0 {
			prefix = 1
		}
		if s.alternate && len(text) > prefix+1 && text[prefix] == '0' &&
			strings.IndexByte("xXob", text[prefix+1]) >= 0 {
			prefix += 2
		}
		return text[:prefix] + strings.Repeat(s.fill, missing) + text[prefix:]
	}
	return strings.Repeat(s.fill, missing) + text
}

func (s spec) signed(negative bool, digits string) string {
	switch {
	case negative:
		return "-" + digits
	case s.sign != 0:
		return string(s.sign) + digits
	}
	return digits
}

func (s spec) integer(n *big.Int) string {
	base, prefix := 10, ""
	switch s.kind {
	case 'x', 'X':
		base, prefix = 16, "0x"
	case 'o':
		base, prefix = 8, "0o"
	case 'b':
		base, prefix = 2, "0b"
	}
	digits := new(big.Int).Abs(n).Text(base)
	if s.precision > len(digits) {
		digits = strings.Repeat("0", s.precision-len(digits)) + digits
	}
	digits = s.group(digits)
	if s.alternate {
		digits = prefix + digits
	}
	if s.kind == 'X' {
		digits = strings.ToUpper(digits)
	}
	return s.signed(n.Sign() < 0, digits)
}

// group puts separators between the digits of an integer part.
func (s spec) group(digits string) string {
	if s.grouping == 0 {
		return digits
	}
	size := 3
	if s.grouping == '_' && strings.IndexByte("xXob", s.kind) >= 0 && s.kind != 0 {
		size = 4
	}
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%size == 0 {
			b.WriteByte(s.grouping)
		}
		b.WriteRune(c)
	}
	return b.String()
}

func (s spec) float(r *renderer, f float64) string {
	negative := math.Signbit(f) && !math.IsNaN(f)
	f = math.Abs(f)
	kind := s.kind
	percent := kind == '%'
	if percent {
		f, kind = f*100, 'f'
	}
	r.grow(s.precision)
	var digits string
	switch {
	case math.IsInf(f, 0):
		digits = "inf"
	case math.IsNaN(f):
		digits = "nan"
	case kind == 'e' || kind == 'E':
		digits = strconv.FormatFloat(f, 'e', s.precision, 64)
	case kind == 'f' || kind == 'F':
		digits = strconv.FormatFloat(f, 'f', s.precision, 64)
	default:
		digits = general(f, max(1, s.precision), s.alternate, kind == 0)
	}
	if kind == 'E' || kind == 'F' || kind == 'G' {
		digits = strings.ToUpper(digits)
	}
	whole, fraction := digits, ""
	if at := strings.IndexAny(digits, ".e"); at >= 0 {
		whole, fraction = digits[:at], digits[at:]
	}
	digits = s.group(whole) + fraction
	if percent {
		digits += "%"
	}
	return s.signed(negative, digits)
}

// general is the format g. With repr, the type's own, it keeps ".0".
func general(f float64, precision int, alternate, repr bool) string {
	exponent := 0
	if f != 0 {
		text := strconv.FormatFloat(f, 'e', precision-1, 64)
		exponent, _ = strconv.Atoi(text[strings.IndexByte(text, 'e')+1:])
	}
	var digits, tail string
	limit := precision
	if exponent < -4 || exponent >= limit {
		digits = strconv.FormatFloat(f, 'e', precision-1, 64)
		at := strings.IndexByte(digits, 'e')
		digits, tail = digits[:at], digits[at:]
	} else {
		digits = strconv.FormatFloat(f, 'f', max(0, precision-1-exponent), 64)
	}
	if !alternate && strings.Contains(digits, ".") {
		digits = strings.TrimRight(strings.TrimRight(digits, "0"), ".")
	}
	if repr && tail == "" && !strings.Contains(digits, ".") {
		digits += ".0"
	}
	return digits + tail
}

// format is Python's format(v, spec).
func (r *renderer) format(v value, text string) string {
	if u, ok := v.(*undefined); ok {
		if text != "" {
			u.fail()
		}
		return ""
	}
	if text == "" {
		return r.str(v)
	}
	s := parseSpec(r, text)
	if str, ok := textOf(v); ok {
		if s.kind != 0 && s.kind != 's' {
			fail("Unknown format code '%c' for object of type 'str'", s.kind)
		}
		if s.align == '=' {
			fail("'=' alignment not allowed in string format specifier")
		}
		if s.sign != 0 || s.grouping != 0 || s.alternate {
			fail("Sign, grouping and alternate form are not allowed in string format specifier")
		}
		if s.precision >= 0 {
			str = cutRunes(str, s.precision)
		}
		if s.align == 0 {
			s.align = '<'
		}
		return s.padded(r, str)
	}
	n, ok := number(v)
	if !ok {
		fail("unsupported format string passed to %s.__format__", typeName(v))
	}
	if s.align == 0 {
		s.align = '>'
	}
	_, isFloat := n.(float64)
	switch s.kind {
	case 'e', 'E', 'f', 'F', 'g', 'G', '%':
		if s.precision < 0 {
			s.precision = 6
		}
		return s.padded(r, s.float(r, floatOf(n)))
	case 's':
		fail("Unknown format code 's' for object of type '%s'", typeName(v))
	}
	if isFloat {
		if s.kind != 0 && s.kind != 'n' {
			fail("Unknown format code '%c' for object of type 'float'", s.kind)
		}
		f := n.(float64)
		if s.precision < 0 {
			digits := strings.TrimPrefix(formatFloat(f), "-")
			whole, fraction := digits, ""
			if at := strings.IndexAny(digits, ".e"); at >= 0 {
				whole, fraction = digits[:at], digits[at:]
			}
			return s.padded(r, s.signed(math.Signbit(f), s.group(whole)+fraction))
		}
		return s.padded(r, s.float(r, f))
	}
	if s.precision >= 0 {
		fail("Precision not allowed in integer format specifier")
	}
	if s.kind == 'c' {
		return s.padded(r, string(rune(bigOf(n).Int64())))
	}
	return s.padded(r, s.integer(bigOf(n)))
}

func textOf(v value) (string, bool) {
	if b, ok := v.(bool); ok { // bool formats as an integer only with an integer's spec
		_ = b
		return "", false
	}
	return text(v)
}

// braces is Python's format.format(*args, **kwargs), as the sandbox allows it.
func (r *renderer) braces(format string, a args) string {
	automatic := 0
	return r.bracesAt(format, a, &automatic, 2)
}

func (r *renderer) bracesAt(format string, a args, automatic *int, depth int) string {
	if depth == 0 {
		fail("Max string recursion exceeded")
	}
	b := &output{r: r}
	for i := 0; i < len(format); i++ {
		r.step()
		c := format[i]
		if c != '{' && c != '}' {
			b.WriteByte(c)
			continue
		}
		if i+1 < len(format) && format[i+1] == c {
			b.WriteByte(c)
			i++
			continue
		}
		if c == '}' {
			fail("Single '}' encountered in format string")
		}
		level, end := 1, i+1
		for end < len(format) {
			if format[end] == '{' {
				level++
			} else if format[end] == '}' {
				if level--; level == 0 {
					break
				}
			}
			end++
		}
		if end >= len(format) {
			fail("expected '}' before end of string")
		}
		field := format[i+1 : end]
		i = end
		field, specText, _ := cutOutside(field, ':')
		name, conversion, hasConversion := cutOutside(field, '!')
		v := r.field(name, a, automatic)
		if hasConversion {
			switch conversion {
			case "s":
				v = r.str(v)
			case "r", "a":
				v = r.repr(v)
			default:
				fail("Unknown conversion specifier '%s'", conversion)
			}
		}
		if strings.ContainsAny(specText, "{}") {
			specText = r.bracesAt(specText, a, automatic, depth-1)
		}
		b.write(r.format(v, specText))
	}
	return b.String()
}

// cutOutside cuts at the first separator that is not inside brackets.
func cutOutside(s string, separator byte) (before, after string, found bool) {
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '[':
			depth++
		case ']':
			depth--
		case separator:
			if depth <= 0 {
				return s[:i], s[i+1:], true
			}
		}
	}
	return s, "", false
}

// field is the value of a replacement field's name, such as 0.a[1].
func (r *renderer) field(name string, a args, automatic *int) value {
	end := strings.IndexAny(name, ".[")
	if end < 0 {
		end = len(name)
	}
	first, rest := name[:end], name[end:]
	var v value
	switch n, err := strconv.Atoi(first); {
	case first == "":
		if *automatic < 0 {
			fail("cannot switch from manual field specification to automatic field numbering")
		}
		n = *automatic
		*automatic++
		if n >= len(a.positional) {
			fail("Replacement index %d out of range for positional args tuple", n)
		}
		v = a.positional[n]
	case err == nil && first[0] >= '0' && first[0] <= '9':
		if *automatic > 0 {
			fail("cannot switch from automatic field numbering to manual field specification")
		}
		*automatic = -1
		if n >= len(a.positional) {
			fail("Replacement index %d out of range for positional args tuple", n)
		}
		v = a.positional[n]
	default:
		for i, key := range a.names {
			if key == first {
				v = a.named[i]
			}
		}
		if v == nil {
			fail("'%s'", first)
		}
	}
	for rest != "" {
		if rest[0] == '.' {
			end := strings.IndexAny(rest[1:], ".[")
			if end < 0 {
				end = len(rest) - 1
			}
			attribute := rest[1 : end+1]
			if attribute == "" {
				fail("Empty attribute in format string")
			}
			v = r.attribute(v, attribute)
			rest = rest[end+1:]
		} else {
			end := strings.IndexByte(rest, ']')
			if rest[0] != '[' || end < 0 {
				fail("Missing ']' in format string")
			}
			key := rest[1:end]
			if n, err := strconv.Atoi(key); err == nil {
				v = r.item(v, n)
			} else {
				v = r.item(v, key)
			}
			rest = rest[end+1:]
		}
	}
	return v
}
