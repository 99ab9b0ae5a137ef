package jinja

import (
	"strconv"
	"strings"
	"time"
)

// globals are the functions that every template can call, as transformers provides them.
var globals = map[string]value{
	"range":     &function{"range", makeRange},
	"dict":      &function{"dict", makeDict},
	"namespace": &function{"namespace", makeNamespace},
	"cycler":    &function{"cycler", makeCycler},
	"joiner":    &function{"joiner", makeJoiner},
	"lipsum": &function{"lipsum", func(*renderer, args) value {
		fail("lipsum() is not supported in chat templates")
		return nil
	}},
	"raise_exception": &function{"raise_exception", func(r *renderer, a args) value {
		b := a.bind("raise_exception", "message")
		panic(&Error{Line: r.line, Message: r.str(b[0]), Raised: true})
	}},
	"strftime_now": &function{"strftime_now", func(r *renderer, a args) value {
		b := a.bind("strftime_now", "format")
		format, ok := text(b[0])
		if !ok {
			fail("Strftime() argument 1 must be str, not %s", typeName(b[0]))
		}
		r.reads(32 * len(format))
		r.size(maxDirective * (strings.Count(format, "%") + 1))
		return r.made(Strftime(r.now(), format))
	}},
	"self": &opaque{"TemplateReference"},
}

func makeRange(r *renderer, a args) value {
	if len(a.positional) == 0 {
		fail("range expected at least 1 argument, got 0")
	}
	a.count("range", 1, 3)
	v := &rangeObject{0, intArg(a, 0, 0), 1}
	if len(a.positional) > 1 {
		v.start, v.stop, v.step = intArg(a, 0, 0), intArg(a, 1, 0), intArg(a, 2, 1)
	}
	const far = 1 << 53
	for _, n := range []int{v.start, v.stop, v.step} {
		if n > far || n < -far {
			failLimit("range", r.limits.Range)
		}
	}
	if v.step == 0 {
		fail("range() arg 3 must not be zero")
	}
	if v.len() > r.limits.Range {
		failLimit("range", r.limits.Range)
	}
	return v
}

func makeDict(r *renderer, a args) value { return dictOf(r, "dict", a) }

func dictOf(r *renderer, name string, a args) *Dict {
	d := NewDict()
	if n := len(a.positional); n > 1 {
		fail("dict expected at most 1 argument, got %d", n)
	}
	if len(a.positional) == 1 {
		switch v := a.positional[0].(type) {
		case *Dict:
			r.elements(4 * v.Len())
			d = v.clone()
		default:
			for i, item := range r.collect(v) {
				pair := r.collect(item)
				if len(pair) != 2 {
					fail("dictionary update sequence element #%d has length %d; 2 is required",
						i, len(pair))
				}
				d.set(r.hashable(pair[0]), pair[1])
			}
		}
	}
	for i, n := range a.names {
		d.set(n, a.named[i])
	}
	return d
}

func makeNamespace(r *renderer, a args) value {
	n := &namespace{NewDict()}
	for _, e := range dictOf(r, "namespace", a).entries {
		name, ok := text(e.key)
		if !ok {
			fail("attribute name must be string, not '%s'", typeName(e.key))
		}
		n.set(name, e.value)
	}
	return n
}

// cycler is what cycler() returns.
type cycler struct {
	items []value
	at    int
}

func makeCycler(_ *renderer, a args) value {
	if len(a.positional) == 0 {
		fail("at least one item has to be provided")
	}
	return &cycler{items: a.positional}
}

func (c *cycler) attribute(name string) value {
	switch name {
	case "next":
		return &function{"next", func(_ *renderer, a args) value {
			v := c.items[c.at]
			c.at = (c.at + 1) % len(c.items)
			return v
		}}
	case "reset":
		return &function{"reset", func(*renderer, args) value {
			c.at = 0
			return none{}
		}}
	case "current":
		return c.items[c.at]
	}
	return nil
}

func makeJoiner(_ *renderer, a args) value {
	b := a.bind("joiner", "sep=")
	if b[0] == nil {
		b[0] = ", "
	}
	used := false
	return &function{"joiner", func(*renderer, args) value {
		if used {
			return b[0]
		}
		used = true
		return ""
	}}
}

// maxDirective is the most bytes that a directive of strftime writes.
const maxDirective = 32

// Strftime formats t as Python's datetime.strftime does in the C locale.
func Strftime(t time.Time, format string) string {
	var b strings.Builder
	pad := func(n, width int, fill string, flag byte) {
		s := strconv.Itoa(n)
		switch flag {
		case '-':
			width = 0
		case '_':
			fill = " "
		case '0':
			fill = "0"
		}
		for len(s) < width {
			s = fill + s
		}
		b.WriteString(s)
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		flag := byte(0)
		if strings.IndexByte("-_0^#", format[i]) >= 0 && i+1 < len(format) {
			flag = format[i]
			i++
		}
		word := func(s string) {
			if flag == '^' {
				s = strings.ToUpper(s)
			}
			b.WriteString(s)
		}
		hour := (t.Hour()+11)%12 + 1
		switch format[i] {
		case 'a':
			word(t.Format("Mon"))
		case 'A':
			word(t.Format("Monday"))
		case 'b', 'h':
			word(t.Format("Jan"))
		case 'B':
			word(t.Format("January"))
		case 'c':
			b.WriteString(t.Format("Mon Jan _2 15:04:05 2006"))
		case 'C':
			pad(t.Year()/100, 2, "0", flag)
		case 'd':
			pad(t.Day(), 2, "0", flag)
		case 'D', 'x':
			b.WriteString(t.Format("01/02/06"))
		case 'e':
			pad(t.Day(), 2, " ", flag)
		case 'f':
			pad(t.Nanosecond()/1000, 6, "0", flag)
		case 'F':
			b.WriteString(t.Format("2006-01-02"))
		case 'G':
			year, _ := t.ISOWeek()
			pad(year, 4, "0", flag)
		case 'H':
			pad(t.Hour(), 2, "0", flag)
		case 'I':
			pad(hour, 2, "0", flag)
		case 'j':
			pad(t.YearDay(), 3, "0", flag)
		case 'k':
			pad(t.Hour(), 2, " ", flag)
		case 'l':
			pad(hour, 2, " ", flag)
		case 'm':
			pad(int(t.Month()), 2, "0", flag)
		case 'M':
			pad(t.Minute(), 2, "0", flag)
		case 'n':
			b.WriteByte('\n')
		case 'p':
			word(t.Format("PM"))
		case 'P':
			b.WriteString(t.Format("pm"))
		case 'r':
			b.WriteString(t.Format("03:04:05 PM"))
		case 'R':
			b.WriteString(t.Format("15:04"))
		case 's':
			b.WriteString(strconv.FormatInt(t.Unix(), 10))
		case 'S':
			pad(t.Second(), 2, "0", flag)
		case 't':
			b.WriteByte('\t')
		case 'T', 'X':
			b.WriteString(t.Format("15:04:05"))
		case 'u':
			pad((int(t.Weekday())+6)%7+1, 1, "0", flag)
		case 'U':
			pad((t.YearDay()+6-int(t.Weekday()))/7, 2, "0", flag)
		case 'V':
			_, week := t.ISOWeek()
			pad(week, 2, "0", flag)
		case 'w':
			pad(int(t.Weekday()), 1, "0", flag)
		case 'W':
			pad((t.YearDay()+6-(int(t.Weekday())+6)%7)/7, 2, "0", flag)
		case 'y':
			pad(t.Year()%100, 2, "0", flag)
		case 'Y':
			pad(t.Year(), 4, "0", flag)
		case 'z', 'Z':
			// A datetime without a time zone has neither.
		case '%':
			b.WriteByte('%')
		default:
			b.WriteByte('%')
			if flag != 0 {
				b.WriteByte(flag)
			}
			b.WriteByte(format[i])
		}
	}
	return b.String()
}
