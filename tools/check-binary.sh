#!/usr/bin/env bash
# check-binary.sh BUILD FOLDER...: checks the protections of the binary and the libraries that the
# build made, and that none of them holds the name of a FOLDER of this machine.
set -euo pipefail
build=$1
shift
status=0
wrong() {
  echo "$1: $2" >&2
  status=1
}
# expect FILE TEXT PATTERN WHAT: the text, of readelf, has a line of the pattern.
expect() { grep -qE "$3" <<< "$2" || wrong "$1" "$4"; }

for file in "$build/bin/conquer" "$build/lib/conquer/libconquer.so" \
  "$build/lib/conquer/libconquer_cuda.so"; do
  headers=$(readelf -lW "$file") dynamic=$(readelf -dW "$file")
  symbols=$(readelf -W --dyn-syms "$file")
  expect "$file" "$headers" '^Elf file type is DYN' "it is not position-independent"
  expect "$file" "$headers" 'GNU_STACK .* RW  ' "its stack is executable"
  expect "$file" "$headers" 'GNU_RELRO' "its relocations stay writable (-z relro)"
  expect "$file" "$dynamic" 'FLAGS.*NOW' "symbols are bound late (-z now)"
  if grep -q TEXTREL <<< "$dynamic"; then wrong "$file" "its code has relocations"; fi
  if grep -qE 'LOAD .* RWE ' <<< "$headers"; then wrong "$file" "a segment is writable code"; fi
  paths=$(sed -nE 's/.*(RPATH|RUNPATH).*\[(.*)\]/\2/p' <<< "$dynamic" | tr ':' '\n' |
    grep -v '^\$ORIGIN' || true)
  if [ -n "$paths" ]; then wrong "$file" "it searches libraries in $paths"; fi
  case $file in
  *.so) expect "$file" "$symbols" ' __stack_chk_fail' "no function has a stack protector" ;;
  esac
  case $file in # the CUDA part has no call that could be checked
  */libconquer.so)
    expect "$file" "$symbols" ' __(mem|str|s?n?printf|vs?n?printf|read|longjmp)\w*_chk' \
      "no call is checked (_FORTIFY_SOURCE)"
    ;;
  esac
  for folder in "$@"; do
    found=$(grep -aoF -m 1 -- "$folder/" "$file" | head -n 1 || true)
    if [ -n "$found" ]; then wrong "$file" "it holds the path $folder"; fi
  done
done
exit $status
