#!/usr/bin/env bash
# jinja2 3.1.6. A test without parentheses takes the next name as its argument, unless that name is
# "else", "or" or "and". In "x is defined if y else z" the word "if" therefore becomes the argument
# of "defined", and the rest is a syntax error. Parentheses around the test avoid this. Chat
# templates that guard a variable this way do not compile.
# Seen: TemplateSyntaxError "expected token 'end of print statement', got 'y'", and "z" with
# parentheses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" jinja2==3.1.6
PYTHONPATH=$folder python3 - <<'PYTHON'
import jinja2
env = jinja2.Environment()
try:
    env.from_string("{{ x is defined if y else 'z' }}")
    raise SystemExit("it compiles now")
except jinja2.TemplateSyntaxError as e:
    print("without parentheses:", e)
    assert str(e) == "expected token 'end of print statement', got 'y'", e
got = env.from_string("{{ (x is defined) if y else 'z' }}").render()
print("with parentheses:", got)
assert got == "z", got
PYTHON
echo "jinja2 3.1.6 behaves as described"
