#!/usr/bin/env bash
# jinja2 3.1.6, extension loopcontrols, which transformers enables for chat templates. The else
# branch of a for block runs if no pass through the body reached its end. A pass that {% continue %}
# or {% break %} ends does not count. Jinja's documentation ("if no iteration took place") and
# Python's for/else say otherwise. A template that skips its only message therefore renders the
# text for an empty conversation.
# Seen: "[no message]" for a list of one skipped message, "[user]" for two of which one is
# skipped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" jinja2==3.1.6
PYTHONPATH=$folder python3 - <<'PYTHON'
import jinja2
env = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
template = env.from_string(
    "{% for role in roles %}{% if role == 'system' %}{% continue %}{% endif %}[{{ role }}]"
    "{% else %}[no message]{% endfor %}"
)
cases = (["system"], "[no message]"), (["system", "user"], "[user]"), ([], "[no message]")
for roles, expected in cases:
    got = template.render(roles=roles)
    print(roles, "->", got)
    assert got == expected, (got, expected)
one = env.from_string("{% for x in [1] %}{% break %}{% else %}[else]{% endfor %}").render()
print("break in the first pass ->", one)
assert one == "[else]", one
PYTHON
echo "jinja2 3.1.6 behaves as described"
