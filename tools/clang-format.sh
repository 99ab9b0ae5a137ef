#!/bin/sh
# clang-format.sh CACHE PYTHON ARGUMENT...: runs a pinned clang-format over csrc. The first run
# installs it into CACHE.
set -e
cache=$1/clang-format-20.1.8; python=$2; shift 2
if [ ! -x "$cache/bin/clang-format" ]; then
  "$python" -m venv "$cache" && "$cache/bin/pip" install --quiet --only-binary=:all: \
    --require-hashes -r "$(dirname "$0")/requirements-clang-format.txt"
fi
find csrc \( -name '*.cpp' -o -name '*.h' -o -name '*.inl' \) -print0 |
  xargs -0 "$cache/bin/clang-format" "$@"
