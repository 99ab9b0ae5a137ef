#!/bin/sh
# environment.sh FOLDER PYTHON: a Python virtual environment with the peers of requirements.txt, made once.
set -e
folder=$1 python=$2
wanted=$(dirname "$0")/requirements.txt
if ! cmp -s "$wanted" "$folder/requirements.txt"; then
  echo "installing the peers into $folder ..."
  "$python" -m venv "$folder"
  # llama.cpp for AVX2: where a virtual machine names AMX and does not let it be used, what is built for the machine ends there.
  CMAKE_ARGS="-DGGML_NATIVE=OFF $CMAKE_ARGS" "$folder/bin/pip" install --quiet -r "$wanted"
  cp "$wanted" "$folder/requirements.txt"
fi
