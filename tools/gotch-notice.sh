#!/bin/sh
# Says why the first build is slow: gotch's C++ has not been compiled on this machine yet.
if ! ls "$(go env GOCACHE)"/conquer-gotch-* >/dev/null 2>&1; then
  echo "compiling gotch's C++ bindings: 2 to 3 minutes, once per machine ..."
fi
