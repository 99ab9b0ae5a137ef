#!/usr/bin/env bash
# jinja2 3.1.6. Jinja's expressions follow Python's syntax, but three operators bind differently:
# - ~ (concatenation) binds tighter than + and -: 'n' ~ 1 + 1 is an error, not 'n2'.
# - unary minus binds tighter than **: -2 ** 2 is 4, in Python -4.
# - ** associates to the left: 2 ** 3 ** 2 is 64, in Python 512.
# A port of the engine to another language has to copy them, or chat templates that build strings
# with ~ and + render differently.
# Seen: TypeError for the first, 4 and 64 for the others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" jinja2==3.1.6
PYTHONPATH=$folder python3 - <<'PYTHON'
import jinja2
env = jinja2.Environment()
try:
    raise SystemExit("'n' ~ 1 + 1 is now " + env.from_string("{{ 'n' ~ 1 + 1 }}").render())
except TypeError as e:
    print("'n' ~ 1 + 1 ->", e)
for text, expected, python in ("-2 ** 2", "4", "-4"), ("2 ** 3 ** 2", "64", "512"):
    got = env.from_string("{{ " + text + " }}").render()
    print(text, "->", got, "in Python", eval(text))
    assert got == expected and str(eval(text)) == python, got
PYTHON
echo "jinja2 3.1.6 behaves as described"
