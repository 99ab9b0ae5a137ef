package jinja

import (
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// scope lists the variables that one block of a template assigns. Each has a slot in the block's
// frames.
type scope struct {
	parent *scope
	names  []string
	slots  map[string]int // of the names
}

// slot returns the place of a variable that the scope assigns, declaring it if it is new.
func (s *scope) slot(name string) int {
	if i, known := s.slots[name]; known {
		return i
	}
	if s.slots == nil {
		s.slots = map[string]int{}
	}
	s.slots[name] = len(s.names)
	s.names = append(s.names, name)
	return len(s.names) - 1
}

// parser turns tokens into statements. It follows the grammar of Jinja's own parser.
type parser struct {
	limits     Limits
	tokens     []token
	at         int
	depth      int
	height     int // of the last expression that was parsed, see above
	scope      *scope
	names      []*nameExpr // resolved once all scopes are known
	loops      int         // enclosing loops that break and continue can address
	open       []string    // enclosing tags, for errors
	generation bool
	given      map[string]filter // of Settings
	// depth of conditional code, where an unknown filter fails only when it runs
	soft int
}

func (p *parser) cur() token  { return p.tokens[p.at] }
func (p *parser) look() token { return p.tokens[min(p.at+1, len(p.tokens)-1)] }

func (p *parser) next() token {
	t := p.tokens[p.at]
	if p.at < len(p.tokens)-1 {
		p.at++
	}
	return t
}

func (p *parser) fail(format string, args ...any) {
	panic(&Error{Line: p.cur().line, Message: fmt.Sprintf(format, args...)})
}

func (p *parser) isOp(op string) bool {
	t := p.cur()
	return t.kind == tokenOperator && t.text == op
}

func (p *parser) isName(name string) bool {
	t := p.cur()
	return t.kind == tokenName && t.text == name
}

func (p *parser) skipOp(op string) bool {
	if p.isOp(op) {
		p.next()
		return true
	}
	return false
}

func (p *parser) skipName(name string) bool {
	if p.isName(name) {
		p.next()
		return true
	}
	return false
}

func (p *parser) expectOp(op string) {
	if !p.skipOp(op) {
		p.fail("expected token '%s', got '%s'", op, p.cur().describe())
	}
}

func (p *parser) expectName() string {
	if p.cur().kind != tokenName {
		p.fail("expected token 'name', got '%s'", p.cur().describe())
	}
	return p.next().text
}

func (p *parser) expect(kind tokenKind) {
	if p.cur().kind != kind {
		p.fail("expected token '%s', got '%s'", token{kind: kind}.describe(), p.cur().describe())
	}
	p.next()
}

// enter counts a level of nesting; its result leaves it.
func (p *parser) enter() func() {
	p.depth++
	if p.depth > p.limits.Nesting {
		failLimit("nesting", p.limits.Nesting)
	}
	return func() { p.depth-- }
}

// maxHeight bounds how deep the parts of an expression are nested, which is how deep evaluating it
// recurses. A chain such as a + b + c nests once an operator without parentheses.
const maxHeight = 1000

// above notes that the last expression is nested in another, whose first part has a height.
func (p *parser) above(first int) {
	if p.height = max(p.height, first) + 1; p.height > maxHeight {
		failLimit("nesting", maxHeight)
	}
}

// inner opens a scope; its result closes it.
func (p *parser) inner() (*scope, func()) {
	s := &scope{parent: p.scope}
	p.scope = s
	return s, func() { p.scope = s.parent }
}

func (p *parser) template() []stmt {
	p.scope = &scope{}
	body := p.subparse(nil)
	for _, n := range p.names {
		n.resolve()
	}
	return body
}

// subparse parses statements up to a block tag that begins with one of the names in end, which it
// leaves as the current token. nil means to the end of the template.
func (p *parser) subparse(end []string) (body []stmt) {
	defer p.enter()()
	for {
		switch t := p.cur(); t.kind {
		case tokenEOF:
			if end != nil {
				p.fail("Unexpected end of template. Jinja was looking for the following tags: %s. "+
					"The innermost block that needs to be closed is '%s'.",
					quoteAll(end), p.innermost())
			}
			return body
		case tokenData:
			p.next()
			body = append(body, &dataStmt{t.text})
		case tokenVariableBegin:
			p.next()
			e := p.tuple(true, nil)
			p.expect(tokenVariableEnd)
			body = append(body, &printStmt{t.line, e})
		case tokenBlockBegin:
			p.next()
			if name := p.cur(); name.kind == tokenName && slices.Contains(end, name.text) {
				return body
			}
			body = append(body, p.statement())
			p.expect(tokenBlockEnd)
		default:
			p.fail("unexpected %s", t.describe())
		}
	}
}

func quoteAll(names []string) string {
	return "'" + strings.Join(names, "' or '") + "'"
}

func (p *parser) innermost() string {
	if len(p.open) == 0 {
		return ""
	}
	return p.open[len(p.open)-1]
}

// block parses the statements of a tag's body, after the tag's own tokens, up to one of end.
func (p *parser) block(end ...string) []stmt {
	p.skipOp(":")
	p.expect(tokenBlockEnd)
	return p.subparse(end)
}

func (p *parser) statement() stmt {
	t := p.cur()
	if t.kind != tokenName {
		p.fail("tag name expected")
	}
	p.next()
	parse, known := map[string]func(int) stmt{
		"for": p.parseFor, "if": p.parseIf, "set": p.parseSet, "macro": p.parseMacro,
		"call": p.parseCall, "filter": p.parseFilterBlock, "with": p.parseWith,
		"print": p.parsePrint, "generation": p.parseGeneration,
	}[t.text]
	if known {
		p.open = append(p.open, t.text)
		s := parse(t.line)
		p.open = p.open[:len(p.open)-1]
		return s
	}
	switch t.text {
	case "break", "continue":
		if p.loops == 0 {
			p.fail("'%s' not properly in loop", t.text)
		}
		if t.text == "break" {
			return breakStmt{}
		}
		return continueStmt{}
	case "block", "extends", "include", "import", "from", "autoescape":
		p.fail("the tag '%s' is not supported in chat templates", t.text)
	}
	if len(p.open) > 0 {
		p.fail("Encountered unknown tag '%s'. The innermost block that needs to be closed is '%s'.",
			t.text, p.innermost())
	}
	p.fail("Encountered unknown tag '%s'.", t.text)
	return nil
}

func (p *parser) parsePrint(line int) stmt {
	var body []stmt
	for p.cur().kind != tokenBlockEnd {
		if len(body) > 0 {
			p.expectOp(",")
		}
		body = append(body, &printStmt{line, p.expression(true)})
	}
	return &groupStmt{body}
}

func (p *parser) parseFor(line int) stmt {
	s := &forStmt{line: line}
	var leave func()
	// The iterated expression belongs to the outer scope, the target to the loop's.
	outer := p.scope
	s.scope, leave = p.inner()
	s.target = p.assignTarget(true, false, []string{"in"})
	if !p.skipName("in") {
		p.fail("expected token 'in', got '%s'", p.cur().describe())
	}
	inner := p.scope
	p.scope = outer
	s.iter = p.tuple(false, []string{"recursive"})
	p.scope = inner
	if p.skipName("if") {
		s.test = p.expression(true)
	}
	s.recursive = p.skipName("recursive")
	s.loop = s.scope.slot("loop")
	p.loops++
	s.body = p.block("endfor", "else")
	p.loops--
	leave()
	if p.next().text == "else" {
		var leave func()
		s.elseScope, leave = p.inner()
		s.orElse = p.block("endfor")
		p.next()
		leave()
	}
	return s
}

func (p *parser) parseIf(int) stmt {
	s := &ifStmt{}
	p.soft++
	defer func() { p.soft-- }()
	for {
		test := p.tuple(false, nil)
		s.tests = append(s.tests, test)
		s.bodies = append(s.bodies, p.block("elif", "else", "endif"))
		switch p.next().text {
		case "elif":
			continue
		case "else":
			s.orElse = p.block("endif")
			p.next()
		}
		return s
	}
}

func (p *parser) parseSet(line int) stmt {
	target := p.assignTarget(true, true, nil)
	if p.skipOp("=") {
		return &setStmt{line, target, p.tuple(true, nil)}
	}
	s := &setBlockStmt{line: line, target: target, filter: p.filters(nil, true)}
	var leave func()
	s.scope, leave = p.inner()
	s.body = p.block("endset")
	p.next()
	leave()
	return s
}

// signature parses the parameters of a macro or call block into m.
func (p *parser) signature(m *macro) {
	p.expectOp("(")
	for !p.isOp(")") {
		if len(m.params) > 0 {
			p.expectOp(",")
		}
		name := p.expectName()
		m.params = append(m.params, name)
		m.slots = append(m.slots, m.scope.slot(name))
		if p.skipOp("=") {
			m.defaults = append(m.defaults, p.expression(true))
		} else {
			if len(m.defaults) > 0 {
				p.fail("non-default argument follows default argument")
			}
		}
	}
	p.expectOp(")")
}

// macroBody parses the body of m, whose scope is open.
func (p *parser) macroBody(m *macro, end string) {
	loops := p.loops
	p.loops = 0
	for _, name := range []string{"caller", "varargs", "kwargs"} {
		m.special = append(m.special, m.scope.slot(name))
	}
	first := len(p.names)
	m.body = p.block(end)
	p.next()
	p.loops = loops
	for _, n := range p.names[first:] {
		switch n.name {
		case "caller":
			m.usesCaller = true
		case "varargs":
			m.usesVarargs = true
		case "kwargs":
			m.usesKwargs = true
		}
	}
}

func (p *parser) parseMacro(line int) stmt {
	name := p.expectName()
	s := &macroStmt{line: line, slot: p.scope.slot(name), macro: &macro{name: name}}
	var leave func()
	s.macro.scope, leave = p.inner()
	p.signature(s.macro)
	p.macroBody(s.macro, "endmacro")
	leave()
	return s
}

func (p *parser) parseCall(line int) stmt {
	m := &macro{name: "caller"}
	outer := p.scope
	var leave func()
	m.scope, leave = p.inner()
	if p.isOp("(") {
		p.signature(m)
	}
	inner := p.scope
	p.scope = outer
	call, ok := p.expression(true).(*callExpr)
	if !ok {
		p.fail("expected call")
	}
	p.scope = inner
	p.macroBody(m, "endcall")
	leave()
	return &callStmt{line, call, m}
}

func (p *parser) parseFilterBlock(line int) stmt {
	s := &setBlockStmt{line: line}
	s.filter = p.filters(nil, true)
	if s.filter == nil {
		p.fail("expected token 'name', got '%s'", p.cur().describe())
	}
	var leave func()
	s.scope, leave = p.inner()
	s.body = p.block("endfilter")
	p.next()
	leave()
	return s
}

func (p *parser) parseWith(line int) stmt {
	s := &withStmt{line: line}
	outer := p.scope
	var leave func()
	s.scope, leave = p.inner()
	inner := p.scope
	for p.cur().kind != tokenBlockEnd && !p.isOp(":") {
		if len(s.targets) > 0 {
			p.expectOp(",")
		}
		s.targets = append(s.targets, p.assignTarget(true, false, nil))
		p.expectOp("=")
		p.scope = outer
		s.values = append(s.values, p.expression(true))
		p.scope = inner
	}
	s.body = p.block("endwith")
	p.next()
	leave()
	return s
}

func (p *parser) parseGeneration(line int) stmt {
	p.generation = true
	s := &generationStmt{line: line}
	var leave func()
	s.scope, leave = p.inner()
	s.body = p.block("endgeneration")
	p.next()
	leave()
	return s
}

// assignTarget parses what set, for and with assign to.
func (p *parser) assignTarget(withTuple, namespaces bool, end []string) target {
	if !withTuple {
		return p.oneTarget(namespaces)
	}
	var list []target
	comma := false
	for {
		if len(list) > 0 {
			if !p.skipOp(",") {
				break
			}
			comma = true
		}
		if p.tupleEnd(end) {
			break
		}
		list = append(list, p.oneTarget(namespaces))
	}
	if len(list) == 0 {
		p.fail("Expected an expression, got '%s'", p.cur().describe())
	}
	if comma {
		return &tupleTarget{list}
	}
	return list[0]
}

func (p *parser) oneTarget(namespaces bool) target {
	defer p.enter()()
	t := p.cur()
	switch {
	case namespaces && t.kind == tokenName && p.look().kind == tokenOperator &&
		p.look().text == ".":
		p.next()
		p.next()
		return &attrTarget{p.name(t), p.expectName()}
	case t.kind == tokenName:
		switch t.text {
		case "true", "false", "none", "True", "False", "None":
			p.fail("can't assign to 'const'")
		}
		p.next()
		return nameTarget{p.scope.slot(t.text)}
	case p.skipOp("("):
		inner := p.assignTarget(true, namespaces, nil)
		p.expectOp(")")
		return inner
	}
	if t.kind == tokenString || t.kind == tokenInteger || t.kind == tokenFloat {
		p.fail("can't assign to 'const'")
	}
	p.fail("Expected an expression, got '%s'", t.describe())
	return nil
}

func (p *parser) name(t token) *nameExpr {
	n := &nameExpr{name: t.text, scope: p.scope}
	p.names = append(p.names, n)
	return n
}

// tupleEnd reports whether the current token ends a tuple.
func (p *parser) tupleEnd(extra []string) bool {
	t := p.cur()
	return t.kind == tokenVariableEnd || t.kind == tokenBlockEnd || p.isOp(")") ||
		t.kind == tokenName && slices.Contains(extra, t.text)
}

// tuple parses expressions with commas between them: a tuple, or a single expression without one.
func (p *parser) tuple(conditional bool, end []string) expr {
	return p.tupleOf(conditional, end, false)
}

func (p *parser) tupleOf(conditional bool, end []string, parentheses bool) expr {
	var items []expr
	comma := false
	highest := 0
	for {
		if len(items) > 0 {
			if !p.skipOp(",") {
				break
			}
			comma = true
		}
		if p.tupleEnd(end) {
			break
		}
		items = append(items, p.expression(conditional))
		highest = max(highest, p.height)
		if !p.isOp(",") {
			break
		}
	}
	p.height = highest
	if !comma {
		if len(items) > 0 {
			return items[0]
		}
		if !parentheses {
			p.fail("Expected an expression, got '%s'", p.cur().describe())
		}
	}
	p.above(0)
	return &tupleExpr{items}
}

func (p *parser) expression(conditional bool) expr {
	defer p.enter()()
	if !conditional {
		return p.or()
	}
	e := p.or()
	for p.skipName("if") {
		p.soft++
		first := p.height
		c := &conditionalExpr{then: e, test: p.or()}
		p.above(first)
		if p.skipName("else") {
			first = p.height
			c.orElse = p.expression(true)
			p.above(first)
		}
		p.soft--
		e = c
	}
	return e
}

func (p *parser) or() expr {
	e := p.and()
	for p.skipName("or") {
		first := p.height
		e = &orExpr{e, p.and()}
		p.above(first)
	}
	return e
}

func (p *parser) and() expr {
	e := p.not()
	for p.skipName("and") {
		first := p.height
		e = &andExpr{e, p.not()}
		p.above(first)
	}
	return e
}

func (p *parser) not() expr {
	if p.skipName("not") {
		defer p.enter()()
		return &notExpr{p.not()}
	}
	return p.compare()
}

func (p *parser) compare() expr {
	first := p.sum()
	var c *compareExpr
	add := func(op string) {
		if c == nil {
			c = &compareExpr{first: first}
		}
		highest := p.height
		c.ops = append(c.ops, op)
		c.operands = append(c.operands, p.sum())
		p.height = max(p.height, highest)
	}
	for {
		t := p.cur()
		switch {
		case t.kind == tokenOperator && slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="},
			t.text):
			p.next()
			add(t.text)
		case p.skipName("in"):
			add("in")
		case p.isName("not") && p.look().kind == tokenName && p.look().text == "in":
			p.next()
			p.next()
			add("not in")
		default:
			if c == nil {
				return first
			}
			return c
		}
	}
}

// sum parses + and -, which bind less tightly than ~.
func (p *parser) sum() expr {
	e := p.concat()
	for p.isOp("+") || p.isOp("-") {
		op, first := p.next().text, p.height
		e = &binaryExpr{op[0], e, p.concat()}
		p.above(first)
	}
	return e
}

func (p *parser) concat() expr {
	e := p.product()
	if !p.isOp("~") {
		return e
	}
	c := &concatExpr{[]expr{e}}
	for p.skipOp("~") {
		highest := p.height
		c.parts = append(c.parts, p.product())
		p.height = max(p.height, highest)
	}
	return c
}

// The operators // and ** as bytes of a binaryExpr.
const (
	opFloorDivide = 'd'
	opPower       = 'p'
)

func (p *parser) product() expr {
	e := p.power()
	for {
		switch {
		case p.isOp("*"), p.isOp("/"), p.isOp("%"):
			op, first := p.next().text, p.height
			e = &binaryExpr{op[0], e, p.power()}
			p.above(first)
		case p.skipOp("//"):
			first := p.height
			e = &binaryExpr{opFloorDivide, e, p.power()}
			p.above(first)
		default:
			return e
		}
	}
}

func (p *parser) power() expr {
	e := p.unary(true)
	for p.skipOp("**") {
		first := p.height
		e = &binaryExpr{opPower, e, p.unary(true)}
		p.above(first)
	}
	return e
}

func (p *parser) unary(filters bool) expr {
	defer p.enter()()
	var e expr
	switch {
	case p.skipOp("-"):
		e = &negateExpr{p.unary(false)}
	case p.skipOp("+"):
		e = &positiveExpr{p.unary(false)}
	default:
		e = p.primary()
	}
	e = p.postfix(e)
	if filters {
		e = p.filterExpr(e)
	}
	return e
}

func (p *parser) primary() expr {
	p.height = 0
	t := p.cur()
	switch t.kind {
	case tokenName:
		p.next()
		switch t.text {
		case "true", "True":
			return constExpr{true}
		case "false", "False":
			return constExpr{false}
		case "none", "None":
			return constExpr{none{}}
		}
		return p.name(t)
	case tokenString:
		var b strings.Builder
		for p.cur().kind == tokenString {
			b.WriteString(p.next().text)
		}
		return constExpr{b.String()}
	case tokenInteger:
		p.next()
		return constExpr{parseInteger(t.text)}
	case tokenFloat:
		p.next()
		f, _ := strconv.ParseFloat(t.text, 64)
		return constExpr{f}
	}
	switch {
	case p.skipOp("("):
		e := p.tupleOf(true, nil, true)
		p.expectOp(")")
		return e
	case p.isOp("["):
		return p.list()
	case p.isOp("{"):
		return p.dict()
	}
	p.fail("unexpected '%s'", t.describe())
	return nil
}

func parseInteger(text string) value {
	n, ok := new(big.Int).SetString(text, 0)
	if !ok {
		n, _ = new(big.Int).SetString(strings.TrimLeft(text, "0"), 10)
		if n == nil {
			return 0
		}
	}
	return normalize(n)
}

func (p *parser) list() expr {
	p.next()
	l := &listExpr{}
	for !p.isOp("]") {
		if len(l.items) > 0 {
			p.expectOp(",")
			if p.isOp("]") {
				break
			}
		}
		highest := p.height
		l.items = append(l.items, p.expression(true))
		p.height = max(p.height, highest)
	}
	p.above(0)
	p.expectOp("]")
	return l
}

func (p *parser) dict() expr {
	p.next()
	d := &dictExpr{}
	for !p.isOp("}") {
		if len(d.keys) > 0 {
			p.expectOp(",")
			if p.isOp("}") {
				break
			}
		}
		highest := p.height
		d.keys = append(d.keys, p.expression(true))
		highest = max(p.height, highest)
		p.expectOp(":")
		d.values = append(d.values, p.expression(true))
		p.height = max(p.height, highest)
	}
	p.above(0)
	p.expectOp("}")
	return d
}

// postfix parses attributes, subscripts and calls.
func (p *parser) postfix(e expr) expr {
	for {
		switch {
		case p.isOp("."), p.isOp("["):
			first := p.height
			e = p.subscript(e)
			p.above(first)
		case p.isOp("("):
			e = p.call(e)
		default:
			return e
		}
	}
}

func (p *parser) filterExpr(e expr) expr {
	for {
		switch {
		case p.isOp("|"):
			e = p.filters(e, false)
		case p.isName("is"):
			first := p.height
			e = p.test(e)
			p.above(first)
		case p.isOp("("):
			e = p.call(e)
		default:
			return e
		}
	}
}

func (p *parser) subscript(e expr) expr {
	if p.skipOp(".") {
		t := p.next()
		switch t.kind {
		case tokenName:
			if p.isOp("(") && unsupportedMethods[t.text] {
				p.fail("the method '%s' is not supported in chat templates", t.text)
			}
			return &attrExpr{e, t.text}
		case tokenInteger:
			return &itemExpr{e, constExpr{parseInteger(t.text)}}
		}
		p.at--
		p.fail("expected name or number")
	}
	p.next()
	var args []expr
	highest := 0
	for !p.isOp("]") {
		if len(args) > 0 {
			p.expectOp(",")
		}
		args = append(args, p.subscribed())
		highest = max(highest, p.height)
	}
	p.height = highest
	p.expectOp("]")
	switch len(args) {
	case 0:
		p.fail("Expected an expression, got ']'")
	case 1:
		return &itemExpr{e, args[0]}
	}
	return &itemExpr{e, &tupleExpr{args}}
}

func (p *parser) subscribed() expr {
	var parts [3]expr
	if p.isOp(":") {
		p.next()
	} else {
		e := p.expression(true)
		if !p.isOp(":") {
			return e
		}
		p.next()
		parts[0] = e
	}
	first := p.height
	if !p.isOp(":") && !p.isOp("]") && !p.isOp(",") {
		parts[1] = p.expression(true)
	}
	if p.skipOp(":") && !p.isOp("]") && !p.isOp(",") {
		parts[2] = p.expression(true)
	}
	p.above(first)
	return &sliceExpr{parts}
}

func (p *parser) call(e expr) expr { return &callExpr{e, p.arguments()} }

// arguments parses the arguments of a call, which is above them and the expression before them.
func (p *parser) arguments() (a arguments) {
	p.expectOp("(")
	comma := false
	highest := p.height
	for ; !p.isOp(")"); highest = max(highest, p.height) {
		if comma {
			p.expectOp(",")
			if p.isOp(")") {
				break
			}
		}
		comma = true
		switch {
		case p.skipOp("*"):
			if a.list != nil || a.dict != nil {
				p.fail("invalid syntax for function call expression")
			}
			a.list = p.expression(true)
		case p.skipOp("**"):
			if a.dict != nil {
				p.fail("invalid syntax for function call expression")
			}
			a.dict = p.expression(true)
		case p.cur().kind == tokenName && p.look().kind == tokenOperator && p.look().text == "=":
			if a.dict != nil {
				p.fail("invalid syntax for function call expression")
			}
			name := p.next().text
			p.next()
			a.names = append(a.names, name)
			a.named = append(a.named, p.expression(true))
		default:
			if a.list != nil || a.dict != nil || len(a.named) > 0 {
				p.fail("invalid syntax for function call expression")
			}
			a.positional = append(a.positional, p.expression(true))
		}
	}
	p.above(highest)
	p.expectOp(")")
	return a
}

func (p *parser) dotted() string {
	name := p.expectName()
	for p.skipOp(".") {
		name += "." + p.expectName()
	}
	return name
}

// filters parses a chain of filters on e. bare says that the first has no bar before it, as after
// {% filter and {% set x |.
func (p *parser) filters(e expr, bare bool) expr {
	result := e
	for p.isOp("|") || bare && p.cur().kind == tokenName {
		if !bare || p.isOp("|") {
			p.next()
		}
		bare = false
		name := p.dotted()
		f := &filterExpr{operand: result, name: name, filter: filters[name]}
		if f.filter == nil {
			f.filter = p.given[name]
		}
		if slices.Contains(unsupportedFilters, name) {
			p.fail("the filter '%s' is not supported in chat templates", name)
		}
		if f.filter == nil && p.soft == 0 {
			p.fail("No filter named '%s'.", name)
		}
		if p.isOp("(") {
			f.args = p.arguments()
		}
		if f.operand == nil {
			f.operand = bodyExpr{}
		}
		p.above(0)
		result = f
	}
	return result
}

func (p *parser) test(e expr) expr {
	p.next()
	negated := p.skipName("not")
	name := p.dotted()
	t := &testExpr{operand: e, name: name, test: tests[name]}
	if t.test == nil && p.soft == 0 {
		p.fail("No test named '%s'.", name)
	}
	switch c := p.cur(); {
	case p.isOp("("):
		t.args = p.arguments()
	case c.kind == tokenName && c.text != "else" && c.text != "or" && c.text != "and",
		c.kind == tokenString, c.kind == tokenInteger, c.kind == tokenFloat, p.isOp("["),
		p.isOp("{"):
		if p.isName("is") {
			p.fail("You cannot chain multiple tests with is")
		}
		t.args.positional = []expr{p.postfix(p.primary())}
	}
	if negated {
		return &notExpr{t}
	}
	return t
}
