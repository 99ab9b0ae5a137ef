"""Compares the project's Jinja engine with jinja2, as transformers configures it.

    chat_templates.py [--count 2000] [--seed 1]

It draws --count random templates from the constructs that chat templates use, renders each with
jinja2 over random conversations, and lets `go test ./text/jinja -run Jinja2` render them too. Text
must be equal; where jinja2 fails, the engine must fail.
"""

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Generation(jinja2.ext.Extension):
    """The {% generation %} block: it renders its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_render", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def strftime_now(form):
        return datetime.datetime(2024, 7, 6, 13, 5, 9).strftime(form)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


TEXT_FILTERS = ("trim", "upper", "lower", "title", "capitalize", "string", "reverse", "safe", "e")
JSON_OPTIONS = ("indent=2", "sort_keys=true", "ensure_ascii=true", "indent=1, ensure_ascii=false")
TEXT_METHODS = ("strip()", "lstrip()", "upper()", "lower()", "title()", "capitalize()",
                "swapcase()", "zfill(4)")
# chr stands for a string.
STRIP_METHODS = ("strip(chr)", "rstrip(chr)", "removeprefix(chr)", "removesuffix(chr)")
TEST_METHODS = ("startswith(chr)", "endswith((chr, chr))", "isdigit()", "isalpha()", "isupper()",
                "islower()", "istitle()", "isspace()", "isalnum()")
SPLIT_ARGUMENTS = ("", "'a'", "' ', 1")
COMPARISONS = ("equalto", "eq", "==", "ne", "in")
CONTENT_TESTS = ("string", "none", "defined", "mapping")
TESTS = ("defined", "undefined", "none", "string", "number", "integer", "float", "boolean",
         "mapping", "sequence", "iterable", "true", "false", "callable", "sameas none")


class Draw:
    """Random templates. Depth bounds nesting."""

    def __init__(self, rng):
        self.rng = rng

    def pick(self, *options):
        return self.rng.choice(options)

    def text(self):
        words = [
            "user", " ", "\n", "  ", "<|im_start|>", "a b", "\t", "x\ny", "\n\n", "é日", "", "{ }",
            "%"
        ]
        return "".join(self.rng.choice(words) for _ in range(self.rng.randint(0, 4)))

    def string(self, depth):
        """An expression that is usually a string."""
        if depth <= 0 or self.rng.random() < 0.25:
            return self.pick(
                "'a'",
                '"b c"',
                "''",
                "'\\n'",
                "'it\\'s'",
                "'x,y,z'",
                "' pad '",
                "'Ünï'",
                "'10'",
                "'3.7'",
                "bos_token",
                "m.role",
                "m['role']",
                "d.a",
                "d['a']",
                "words[1]",
                "messages[0].role",
                "m['content']",
                "'{} {x}'",
            )
        s, n = (lambda: self.string(depth - 1)), (lambda: self.number(depth - 1))
        l = lambda: self.list(depth - 1)
        a = lambda: self.any(depth - 1)
        return self.pick(
            lambda: f"({s()} ~ {a()})",
            lambda: f"({s()} + {s()})",
            lambda: f"({s()} * 2)",
            lambda: f"({s()})[{self.slice()}]",
            lambda:
            f"{s()}|{self.pick(*TEXT_FILTERS)}",
            lambda: f"{s()}|replace({s()}, {s()})",
            lambda: f"{s()}|replace('a', '', 1)",
            lambda: f"{a()}|tojson",
            lambda:
            f"{a()}|tojson({self.pick(*JSON_OPTIONS)})",
            lambda: f"{l()}|join({s()})",
            lambda: f"{l()}|join",
            lambda: f"{a()}|string",
            lambda: f"{s()}|default({s()}, true)",
            lambda: f"missing|default({s()})",
            lambda: f"{s()}|indent({self.pick('2', '2, true', 'first=true', '1, blank=true')})",
            lambda: f"{s()}|truncate({self.pick('5', '4, true', '6, false, end=chr', '255')})".
            replace("=chr", "='…'"),
            lambda: f"{s()}|center(9)",
            lambda: f"{s()}|striptags",
            lambda: f"{s()}|urlencode",
            lambda: f"{l()}|first|string",
            lambda:
            f"({s()}).{self.pick(*TEXT_METHODS)}",
            lambda:
            f"({s()}).{self.pick(*STRIP_METHODS)}"
            .replace("chr", "'a'"),
            lambda: f"({s()}).replace({s()}, {s()})",
            lambda: f"({s()}).join(words)",
            lambda: f"({s()}).split({s()})[0]",
            lambda: f"({s()}).ljust({n()}, '.')",
            lambda: f"'%s|%5s|%-4s|%r' % ({a()}, {s()}, {s()}, {s()})",
            lambda: f"'{{}}-{{:>4}}-{{:<3}}|'.format({n()}, {s()}, {s()})",
            lambda: f"'%d %05d %x' % ({n()}|int, 42, 255)",
            lambda: f"'%s {self.pick('%.2f', '%e', '%g', '%6.1f')}'|format({s()}, {n()})",
            lambda: f"({s()} if {self.test()} else {s()})",
            lambda:
            f"({s()}).partition({self.pick(chr(39) + ' ' + chr(39), chr(39) + 'a' + chr(39))})[2]",
        )()

    def number(self, depth):
        """An expression that is usually a number."""
        if depth <= 0 or self.rng.random() < 0.3:
            return self.pick("0", "1", "-1", "2", "7", "1.5", "1e3", "10", "3", "nums[0]", "d.b",
                             "ns.v", "-2.5", "1_000", "0x1f")
        s, n = (lambda: self.string(depth - 1)), (lambda: self.number(depth - 1))
        l = lambda: self.list(depth - 1)
        return self.pick(
            lambda: f"({n()} {self.pick('+', '-', '*', '/', '//', '%')} {n()})",
            lambda: f"(-{n()})",
            lambda: f"({n()} ** 2)",
            lambda: f"{l()}|length",
            lambda: f"{s()}|length",
            lambda: f"{s()}|int",
            lambda: f"{s()}|float",
            lambda: f"{n()}|abs",
            lambda: f"{n()}|int",
            lambda: f"{n()}|float",
            lambda: f"{n()}|round",
            lambda: f"{n()}|round({self.pick('1', '2', '-1', '0, chr')})".replace("chr", "'floor'"),
            lambda: "nums|sum",
            lambda: "nums|max",
            lambda: "nums|min",
            lambda: f"{s()}|wordcount",
            lambda: f"({s()}).find({s()})",
            lambda: f"({s()}).count('a')",
            lambda: f"{s()}|int(3)",
            lambda: f"{l()}|count",
            lambda: "nums.index(2)",
            lambda: f"({n()} if {self.test()} else {n()})",
            lambda: "messages|map('length')|sum",
        )()

    def list(self, depth):
        """An expression that is usually a list."""
        if depth <= 0 or self.rng.random() < 0.3:
            return self.pick("messages", "nums", "words", "[]", "[1, 2, 3]", "['b', 'A', 'c']",
                             "range(3)", "[[1, 2], [3, 4]]", "(1, 'x')", "d.nested.list",
                             "range(1, 8, 3)", "d.items()|list", "d|dictsort")
        s, l = (lambda: self.string(depth - 1)), (lambda: self.list(depth - 1))
        return self.pick(
            lambda: f"({l()})[{self.slice()}]",
            lambda:
            f"({self.pick('[1]', 'words', 'nums')} + {self.pick('[2]', 'words', 'messages')})",
            lambda: f"{l()}|list",
            lambda: f"{l()}|reverse|list",
            lambda: "nums|sort",
            lambda: f"words|sort({self.pick('reverse=true', 'case_sensitive=true', '')})",
            lambda: f"{self.pick('nums', 'words')}|unique|list",
            lambda: f"{l()}|map('string')|list",
            lambda: "messages|map(attribute='role')|list",
            lambda:
            f"messages|map(attribute='{self.pick('content', 'x', 'role')}', default={s()})|list",
            lambda:
            f"messages|selectattr('role', '{self.pick(*COMPARISONS)}', {s()})|list",
            lambda:
            f"messages|rejectattr('content', '{self.pick(*CONTENT_TESTS)}')|list",
            lambda:
            f"{l()}|select('{self.pick('string', 'number', 'mapping', 'none', 'sequence')}')|list",
            lambda: f"{l()}|reject|list",
            lambda: f"{l()}|batch(2)|list",
            lambda: f"{l()}|slice(2)|list",
            lambda: f"{l()}|batch(2, {s()})|list",
            lambda:
            f"({s()}).split({self.pick(*SPLIT_ARGUMENTS)})",
            lambda: f"({s()}).splitlines()",
            lambda: f"{s()}|list",
            lambda: f"[{self.any(depth - 1)}, {self.any(depth - 1)}]",
            lambda: "messages|groupby('role')|map('first')|list",
            lambda: f"words|map('{self.pick('upper', 'length', 'title')}')|list",
            lambda: "d.keys()|list",
            lambda: "d.values()|list",
            lambda: "messages|sort(attribute='role')|map(attribute='role')|list",
            lambda: f"({s()}).rsplit({self.pick(chr(39) + ' ' + chr(39) + ', 1', 'none, 1', '')})",
        )()

    def slice(self):
        return self.pick("1:", ":2", "::-1", "1:3", "-2:", ":", "::2", ":-1", "5:", "2:1", "-1::-2")

    def test(self):
        """A condition."""
        a, s, n = (lambda: self.any(1)), (lambda: self.string(1)), (lambda: self.number(1))
        return self.pick(
            lambda:
            f"{a()} is {self.pick('', 'not ')}{self.pick(*TESTS)}",
            lambda: f"{n()}|int is {self.pick('odd', 'even', 'divisibleby 2', 'divisibleby(3)')}",
            lambda: f"{s()} is {self.pick('lower', 'upper')}",
            lambda: f"{s()} {self.pick('==', '!=', '<', 'in', 'not in')} {s()}",
            lambda: f"{n()} {self.pick('<', '>', '<=', '>=', '==', '!=')} {n()}",
            lambda: f"{n()} in nums",
            lambda: f"{s()} in {self.pick('words', 'd')}",
            lambda: f"({self.test()} {self.pick('and', 'or')} {self.test()})",
            lambda: f"not {self.test()}",
            lambda:
            f"({s()}).{self.pick(*TEST_METHODS)}"
            .replace("chr", "'a'"),
            lambda: "missing",
            lambda: "missing is defined and missing",
            lambda: "messages",
            lambda: "loop is defined and loop.first",
            lambda: "loop is defined and loop.last",
            lambda: "m is defined and m.role == 'user'",
            lambda: "1 < 2 < 3",
            lambda: a(),
            lambda: "loop is defined and loop.previtem is defined",
            lambda: "loop is defined and loop.nextitem",
        )()

    def any(self, depth):
        if self.rng.random() < 0.08:
            return self.pick("missing", "none_value", "tools", "m", "x", "f", "loop.index",
                             "messages[9]", "d.zz", "ns", "d['a']['b']", "messages.role", "nums[7]",
                             "{'a': missing}", "x.y", "none", "m.content", "add_generation_prompt")
        return self.pick(
            lambda: self.string(depth),
            lambda: self.string(depth),
            lambda: self.number(depth),
            lambda: self.list(depth),
            lambda: self.pick("d", "{'k': 1, 'z': [2]}", "{}", "true", "False", "none",
                              f"dict(a={self.number(1)})", "tools"),
            lambda: f"{{'p': {self.string(depth - 1)}, 'q': {self.number(depth - 1)}}}",
            lambda: f"d.get({self.string(1)}, {self.string(1)})",
            lambda: f"({self.any(depth - 1)} if {self.test()})",
            lambda: f"({self.any(depth - 1)} {self.pick('or', 'and')} {self.string(1)})",
            lambda: f"({self.test()})",
        )()

    def expr(self, depth=3):
        return self.any(depth)

    def literal(self):
        return self.pick("'a'", "1", "none", "[1]", "'Ünï'", "true", "1.5")

    def block(self, depth=3):
        open_, close = self.pick("{%", "{%-", "{%", "{%+"), self.pick("%}", "-%}", "%}", "+%}")
        tag = lambda s: f"{open_} {s} {close}"
        if depth <= 0 or self.rng.random() < 0.2:
            return self.text()
        kind = self.rng.randint(0, 12)
        body = lambda: self.body(depth - 1)
        if kind <= 3:
            o, c = self.pick("{{", "{{-", "{{"), self.pick("}}", "-}}", "}}")
            return f"{o} {self.expr()} {c}"
        if kind == 4:
            otherwise = self.pick("", tag("else") + body(), tag(f"elif {self.expr(2)}") + body())
            return tag(f"if {self.expr(2)}") + body() + otherwise + tag("endif")
        if kind in (5, 6):
            over = self.pick("messages", "nums", "words", "d", "messages[1:]", "range(3)",
                             self.expr(1), "d.items()|list")
            test = self.pick("", "", f" if {self.expr(1)}")
            otherwise = self.pick("", "", tag("else") + body())
            control = self.pick("", "", "", tag("if loop.index > 1") + tag("break") + tag("endif"),
                                tag("if loop.first") + tag("continue") + tag("endif"))
            return tag(f"for m in {over}{test}") + control + body() + otherwise + tag("endfor")
        if kind == 7:
            target = self.pick("x", "x", "ns.v", "m", "a, b")
            return tag(f"set {target} = {self.expr(2)}")
        if kind == 8:
            return tag("set x") + body() + tag("endset")
        if kind == 9:
            name = self.pick("f", "g")
            return (tag(f"macro {name}(a, b={self.literal()})") + self.text() + "{{ a }}{{ b }}" +
                    body() + tag("endmacro") + "{{ " + name +
                    self.pick("(1)", "('q', b=2)", "()", "(x, x)") + " }}")
        if kind == 10:
            return "{#" + self.pick("-", "") + " note " + self.pick("-", "") + "#}"
        if kind == 11:
            return tag("generation") + body() + tag("endgeneration")
        return self.pick(
            tag("raw") + "{{ raw }}" + tag("endraw"),
            tag("with x=1, y=x") + body() + tag("endwith"),
            tag("filter upper") + body() + tag("endfilter"))

    def body(self, depth):
        return "".join(self.block(depth) for _ in range(self.rng.randint(1, 3)))

    def template(self):
        start = "{% set ns = namespace(v=0) %}" if self.rng.random() < 0.7 else ""
        return start + "".join(self.block() for _ in range(self.rng.randint(1, 5)))

    def context(self):
        roles = ["system", "user", "assistant", "tool"]
        contents = [
            "Hi", " 2+2?\n", "", "abc a", None, [{
                "type": "text",
                "text": "part"
            }], "Été <b>", "a\nb\n"
        ]
        messages = [{"role": self.rng.choice(roles), "content": self.rng.choice(contents)}
                    for _ in range(self.rng.randint(0, 4))]
        return {
            "messages": messages,
            "tools": self.pick(None, [], [{
                "name": "f",
                "parameters": {
                    "z": 1,
                    "a": [True]
                }
            }]),
            "add_generation_prompt": self.pick(True, False),
            "bos_token": "<s>",
            "nums": [3, 1, 2, 3],
            "words": ["b", "A", "c", "a"],
            "none_value": None,
            "d": {
                "b": 1,
                "a": "x",
                "nested": {
                    "list": [1, 2.5, "s"]
                }
            },
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    warnings.simplefilter("ignore")  # Python's, about subscripts of constants
    env, draw, rows = environment(), Draw(random.Random(o.seed)), []
    while len(rows) < o.count:
        row = {"template": draw.template(), "context": draw.context()}
        try:
            row["want"] = env.from_string(row["template"]).render(**row["context"])
        except RecursionError:
            continue
        except Exception as e:
            row["error"] = f"{type(e).__name__}: {e}"
        if "operand type(s) for +=" in row.get("error", ""):
            continue  # jinja2 fails on its own output: a constant in a macro
        if " object at 0x" in row.get("want", "") or "<function" in row.get("want", "") \
                or "<built-in" in row.get("want", "") or "<bound" in row.get("want", ""):
            continue  # an address
        rows.append(row)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(rows, f)
        f.flush()
        test = ["go", "test", "-count=1", "-run", "Jinja2", "./text/jinja"]
        code = subprocess.run(test, cwd=ROOT, env={
            **os.environ, "CONQUER_TEMPLATES": f.name
        }).returncode
    print(f"{len(rows)} templates, {sum('error' in r for r in rows)} of which jinja2 refuses")
    return code


if __name__ == "__main__":
    sys.exit(main())
