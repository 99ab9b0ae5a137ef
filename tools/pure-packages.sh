#!/bin/sh
# pure-packages.sh GO: lists the packages whose tests need no libtorch.
set -e
cd "$(dirname "$0")/.."
format='{{if not .Standard}}{{.ImportPath}} {{join .Deps " "}}{{end}}'
"$1" list -test -deps -f "$format" ./... | awk '
  $1 ~ /\.test$/ && !/sugarme\/gotch|conquer\/torch( |$)/ { sub(/\.test$/, "", $1); print $1 }'
