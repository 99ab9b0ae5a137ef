#!/bin/sh
# bench-cpu.sh CONQUER ENVIRONMENT PYTHON [ARGUMENT...]: the speed table beside transformers
# (tools/peers/cpu.py).
set -e
cd "$(dirname "$0")/.."
conquer=$1 environment=$2 python=$3; shift 3
tools/parity/environment.sh "$environment" "$python"
lib=$PWD/build/lib/conquer
go test -c -ldflags "-r $lib:$lib/torch/lib" -o build/bin/generate.test ./generate
exec "$environment/bin/python" tools/peers/cpu.py "$conquer" build/bin/generate.test "$@"
