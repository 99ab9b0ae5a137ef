#!/usr/bin/env bash
# reproduce.sh [--cold]: builds the last commit in two folders whose names differ in length, without
# the Triton kernels, and compares the binary and the libraries. --cold gives the second build a Go
# cache of its own, so that all Go packages and gotch's C++ are compiled twice: some minutes more.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
source=$PWD
for folder in "$work/a" "$work/another/folder"; do
  git clone -q "$source" "$folder"
  git -C "$folder" checkout -q --detach "$(git rev-parse HEAD)"
  if [ "$folder" != "$work/a" ] && [ "${1-}" = --cold ]; then export GOCACHE=$work/cache; fi
  make -C "$folder" --no-print-directory binary
done
status=0
for file in bin/conquer lib/conquer/libconquer.so lib/conquer/libconquer_cuda.so; do
  sums=$(cd "$work" && sha256sum "a/build/$file" "another/folder/build/$file" | cut -d ' ' -f 1)
  if [ "$(sort -u <<< "$sums" | wc -l)" = 1 ]; then
    echo "equal   $(head -n 1 <<< "$sums")  $file"
  else
    echo "differs $(tr '\n' ' ' <<< "$sums") $file"
    status=1
  fi
done
exit $status
