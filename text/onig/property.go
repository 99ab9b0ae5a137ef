package onig

import (
	"strings"
	"sync"
	"unicode"
)

// posixSets are the sets of POSIX brackets. They are also names of properties.
var posixSets = map[string]func() *set{
	"alnum": cached(func() *set { return either(alphabetic(), categories("Nd")) }),
	"alpha": cached(alphabetic),
	"ascii": cached(func() *set { return newSet(0, 0x7f) }),
	"blank": cached(func() *set { return either(categories("Zs"), newSet('\t', '\t')) }),
	"cntrl": cached(func() *set { return categories("Cc") }),
	"digit": cached(func() *set { return categories("Nd") }),
	"graph": cached(func() *set { return graph() }),
	"lower": cached(func() *set { return either(categories("Ll"), table("Other_Lowercase")) }),
	"print": cached(func() *set { return either(graph(), categories("Zs")) }),
	"punct": cached(func() *set { return categories("P", "S") }),
	"space": cached(space),
	"upper": cached(func() *set { return either(categories("Lu"), table("Other_Uppercase")) }),
	"word":  cached(word),
	"xdigit": cached(func() *set {
		return either(newSet('0', '9'), newSet('A', 'F'), newSet('a', 'f'))
	}),
}

func graph() *set {
	return without(space(), categories("Cc", "Cs"), unassigned())
}

// cached returns copies of a set that is made once.
func cached(make func() *set) func() *set {
	once := sync.OnceValue(make)
	return func() *set {
		s := new(set)
		s.union(once())
		return s
	}
}

func either(sets ...*set) *set {
	all := new(set)
	for _, s := range sets {
		all.union(s)
	}
	all.normalize()
	return all
}

// without returns the characters that are in none of the sets.
func without(sets ...*set) *set {
	s := either(sets...)
	s.negate()
	return s
}

func table(property string) *set {
	s := new(set)
	s.addTable(unicode.Properties[property])
	return s
}

func categories(names ...string) *set {
	s := new(set)
	for _, name := range names {
		s.addTable(unicode.Categories[name])
		for _, r := range Unicode16(name) {
			s.add(r[0], r[1])
		}
		if name == "Mn" {
			s.remove(0x1171e, 0x1171e) // it became a Mc
		}
	}
	return s
}

func unassigned() *set {
	return without(categories("L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co", "Cs"))
}

func space() *set { return table("White_Space") }

func alphabetic() *set {
	s := either(categories("L", "Nl"), table("Other_Alphabetic"))
	for _, r := range alphabetic16 {
		s.add(r[0], r[1])
	}
	return s
}

func word() *set {
	return either(alphabetic(), categories("M", "Nd", "Pc"))
}

// wordAlone is the set of \w and \b outside of classes, where Oniguruma also counts the
// numbers of Latin-1.
var wordAlone = cached(func() *set {
	s := word()
	for _, r := range "²³¹¼½¾" {
		s.add(r, r)
	}
	return s
})

// properties maps normalized names to sets.
var properties = sync.OnceValue(func() map[string]func() *set {
	m := map[string]func() *set{
		"any":        func() *set { return newSet(0, unicode.MaxRune) },
		"assigned":   cached(func() *set { return without(unassigned()) }),
		"cn":         cached(unassigned),
		"unassigned": cached(unassigned),
		"alphabetic": cached(alphabetic),
		"whitespace": cached(space),
		"c": cached(func() *set {
			return either(categories("Cc", "Cf", "Co", "Cs"), unassigned())
		}),
		"lc": cached(func() *set { return categories("Lu", "Ll", "Lt") }),
	}
	m["other"], m["casedletter"] = m["c"], m["lc"]
	for name, s := range posixSets {
		m[name] = s
	}
	m["punct"] = cached(func() *set { return categories("P") }) // [[:punct:]] has symbols too
	for name := range unicode.Scripts {
		m[plainName(name)] = cached(func() *set {
			s := new(set)
			s.addTable(unicode.Scripts[name])
			for _, r := range scripts16[name] {
				s.add(r[0], r[1])
			}
			if name == "Egyptian_Hieroglyphs" {
				s.remove(0x13460, 0x143fa) // Oniguruma leaves them out
			}
			return s
		})
	}
	for long, short := range categoryNames {
		s := cached(func() *set { return categories(short) })
		m[strings.ToLower(short)], m[long] = s, s
	}
	return m
})

// categoryNames maps the long names of the general categories to the short ones.
var categoryNames = map[string]string{
	"letter": "L", "uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt",
	"modifierletter": "Lm", "otherletter": "Lo", "mark": "M", "nonspacingmark": "Mn",
	"spacingmark": "Mc", "enclosingmark": "Me", "number": "N", "decimalnumber": "Nd",
	"letternumber": "Nl", "othernumber": "No", "punctuation": "P", "connectorpunctuation": "Pc",
	"dashpunctuation": "Pd", "openpunctuation": "Ps", "closepunctuation": "Pe",
	"initialpunctuation": "Pi", "finalpunctuation": "Pf", "otherpunctuation": "Po", "symbol": "S",
	"mathsymbol": "Sm", "currencysymbol": "Sc", "modifiersymbol": "Sk", "othersymbol": "So",
	"separator": "Z", "spaceseparator": "Zs", "lineseparator": "Zl", "paragraphseparator": "Zp",
	"control": "Cc", "format": "Cf", "privateuse": "Co", "surrogate": "Cs",
}

// property returns the set of a property's name, or nil. Case, spaces, "_" and "-" in
// the name do not count.
func property(name string) *set {
	if make := properties()[plainName(name)]; make != nil {
		return make()
	}
	return nil
}

func plainName(name string) string {
	return strings.NewReplacer(" ", "", "_", "", "-", "").Replace(strings.ToLower(name))
}
