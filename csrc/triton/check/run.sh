#!/bin/sh
# run.sh CACHE PYTHON [--long]: checks the Triton kernels in Triton's interpreter, on the CPU. The
# first run makes a Python environment in CACHE; triton comes from CACHE/triton-3.6.0, where
# `make kernels` installs it. --long checks more and larger shapes.
set -e
cache=$1 python=$2 mode=$3
here=$(cd "$(dirname "$0")" && pwd)
environment=$cache/kernel-checks
py=$environment/bin/python
if ! cmp -s "$here/requirements.txt" "$environment/requirements.txt"; then
  echo "installing numpy and autograd into $environment ..."
  "$python" -m venv --clear "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: \
    --require-hashes -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$environment/requirements.txt"
fi
export TRITON_INTERPRET=1 PYTHONPATH="$cache/triton-3.6.0" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# The cache's triton works only with the Python version that installed it.
if ! "$py" -c 'import triton.language' 2> /dev/null; then
  echo "installing triton 3.6.0 into $environment (190 MB) ..."
  unset PYTHONPATH
  "$environment/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: \
    --require-hashes -r "$here/../../../cmake/requirements-triton.txt"
fi
if [ "$mode" = --long ]; then
  scan="1 40" dense="1"
else
  scan="--quick 1 8" dense="--quick 1"
fi
"$py" "$here/check.py" $scan > "$environment/scan.log" 2>&1 &
running=$!
status=0
"$py" "$here/check_dense.py" $dense || status=1
wait $running || status=1
cat "$environment/scan.log"
exit $status
