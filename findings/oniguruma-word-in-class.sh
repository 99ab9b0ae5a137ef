#!/usr/bin/env bash
# In the regular expressions of tokenizers (Oniguruma), \w alone matches "²", "³", "¹", "¼", "½" and
# "¾", but [\w] does not, and \b counts them as parts of a word. Other numbers that are not digits,
# such as "⅓" and "⁴", match neither. So a pattern changes its meaning if \w is moved into brackets.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q tokenizers==0.23.3
"$folder/env/bin/python" - <<'PY'
import tokenizers
from tokenizers import Regex, pre_tokenizers

print("tokenizers", tokenizers.__version__)


def matches(pattern, char):
    return pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(char) == []


seen = {c: (matches(r"\w", c), matches(r"[\w]", c)) for c in "²³¹¼½¾⅓⁴5x"}
for char, (alone, inside) in seen.items():
    print(f"{char}: \\w {alone}, [\\w] {inside}")
want = {c: (True, False) for c in "²³¹¼½¾"} | {c: (False, False) for c in "⅓⁴"} | {
    c: (True, True) for c in "5x"}
assert seen == want, "the behaviour has changed"
PY
echo "tokenizers 0.23.3 behaves as described"
