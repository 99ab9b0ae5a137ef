#!/bin/sh
# bench-gpu.sh BINARY PYTHON [ARGUMENT...]: conquer beside transformers on this machine's GPU
# (tools/peers/gpu.py). PYTHON has torch 2.11 for CUDA, transformers and peft.
set -e
binary=$1; python=$2; shift 2
"$binary" info --device
exec "$python" "$(dirname "$0")/peers/gpu.py" "$binary" "$@"
