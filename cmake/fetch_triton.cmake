# cmake -DDESTINATION=... -DPYTHON=python3 -P cmake/fetch_triton.cmake
# Installs triton into a cache folder that several builds share. The folder appears complete or not
# at all.
if(EXISTS "${DESTINATION}/triton/__init__.py")
  return()
endif()
string(RANDOM LENGTH 8 SUFFIX)
set(WORK "${DESTINATION}.${SUFFIX}")
execute_process(
  COMMAND ${PYTHON} -m pip install --quiet --root-user-action ignore --disable-pip-version-check
          --no-deps --only-binary=:all: --require-hashes --target ${WORK}
          -r ${CMAKE_CURRENT_LIST_DIR}/requirements-triton.txt
  RESULT_VARIABLE FAILED)
if(NOT FAILED AND NOT EXISTS "${DESTINATION}/triton/__init__.py")
  file(REMOVE_RECURSE "${DESTINATION}")
  file(RENAME "${WORK}" "${DESTINATION}" RESULT FAILED)
endif()
file(REMOVE_RECURSE "${WORK}")
if(NOT EXISTS "${DESTINATION}/triton/__init__.py")
  message(FATAL_ERROR "could not install triton into ${DESTINATION}: ${FAILED}. It needs a Python "
                      "from 3.10 on with pip, access to the package index, and 650 MB.")
endif()
