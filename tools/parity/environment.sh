#!/bin/sh
# environment.sh FOLDER PYTHON: makes a Python virtual environment with the peers of
# requirements.txt, once.
set -e
folder=$1 python=$2
wanted=$(dirname "$0")/requirements.txt
if ! cmp -s "$wanted" "$folder/requirements.txt"; then
  echo "installing the peers into $folder ..."
  "$python" -m venv "$folder"
  # llama.cpp is built for AVX2: some virtual machines report AMX but do not permit it, and a native
  # build crashes there.
  CMAKE_ARGS="-DGGML_NATIVE=OFF $CMAKE_ARGS" "$folder/bin/pip" install --quiet -r "$wanted"
  cp "$wanted" "$folder/requirements.txt"
fi
