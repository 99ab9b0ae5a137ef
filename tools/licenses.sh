#!/usr/bin/env bash
# licenses.sh GO BINARY LIBTORCH OUT: collects into the folder OUT the license texts of everything
# that `make install` installs: conquer, the Go modules in the binary, Go's own library, and
# libtorch with the libraries that it brings. It fails if a text is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
go=$1 binary=$2 libtorch=$3 out=$4
rm -rf "$out"
mkdir -p "$out"
cp LICENSE "$out/LICENSE"

# copy FROM TO: the license texts below a folder, with their paths.
copy() {
  local file found=
  while IFS= read -r -d '' file; do
    mkdir -p "$2/$(dirname "$file")"
    install -m 644 "$1/$file" "$2/$file"
    if [ -s "$1/$file" ]; then found=1; fi
  done < <(cd "$1" && find . -type f ! -path '*/testdata/*' \
    \( -iname 'licen[sc]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'patents*' \
    -o -path '*/licenses/*' \) ! -name '*.go' ! -name '*.py' -print0)
  [ -n "$found" ] || { echo "licenses.sh: $1 has no license text" >&2; exit 1; }
}

copy "$("$go" env GOROOT)" "$out/go"
modules=$("$go" version -m "$binary" | awk '$1 == "dep" || $1 == "=>" { print $2 "@" $3 }')
for module in $modules; do
  copy "$("$go" list -m -f '{{.Dir}}' "$module")" "$out/$module"
done

# Each library belongs to a wheel, whose RECORD lists it.
while IFS= read -r -d '' library; do
  record=$(cd "$libtorch" && grep -lF "$library," -- *.dist-info/RECORD | head -n 1) || {
    echo "licenses.sh: no package in $libtorch says that $library is its own, so its license" \
      "text is missing: remove this folder and build again" >&2
    exit 1
  }
  wheel=$(dirname "$record")
  [ -e "$out/${wheel%.dist-info}" ] || copy "$libtorch/$wheel" "$out/${wheel%.dist-info}"
done < <(cd "$libtorch" && find torch/lib nvidia -name '*.so*' ! -name 'libtorch_python*' -print0)
# libtorch brings GCC's OpenMP runtime without its license.
cp -r cmake/libgomp "$out/libgomp"
