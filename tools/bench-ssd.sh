#!/bin/sh
# bench-ssd.sh CONQUER ENVIRONMENT PYTHON [ARGUMENT...]: the state-space layer beside its peers
# (tools/peers/ssd.py).
set -e
cd "$(dirname "$0")/.."
conquer=$1 environment=$2 python=$3; shift 3
tools/parity/environment.sh "$environment" "$python"
exec "$environment/bin/python" tools/peers/ssd.py "$conquer" "$@"
