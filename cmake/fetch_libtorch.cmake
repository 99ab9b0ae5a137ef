# Fetches libtorch into a cache folder: cmake -DDESTINATION=... -DPYTHON=python3 -P cmake/fetch_libtorch.cmake
# The folder appears complete or not at all.
if(EXISTS "${DESTINATION}/torch/lib/libtorch_cpu.so")
  return()
endif()
get_filename_component(PARENT "${DESTINATION}" DIRECTORY)
file(MAKE_DIRECTORY "${PARENT}")
string(RANDOM LENGTH 8 SUFFIX)
set(WORK "${DESTINATION}.${SUFFIX}")
file(MAKE_DIRECTORY "${WORK}/wheels" "${WORK}/unpacked")

message("fetching libtorch 2.11.0 (about 545 MB, once per machine) into ${DESTINATION}")
execute_process(
  COMMAND ${PYTHON} -m pip download --quiet --progress-bar on --no-deps --only-binary=:all: --require-hashes
          --python-version 3.12 --implementation cp --abi cp312 --abi none
          --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64
          --dest ${WORK}/wheels -r ${CMAKE_CURRENT_LIST_DIR}/requirements-libtorch.txt
  RESULT_VARIABLE FAILED)
if(FAILED)
  file(REMOVE_RECURSE "${WORK}")
  message(FATAL_ERROR "could not fetch libtorch with `${PYTHON} -m pip download`. It needs Python 3 with pip and a way to "
                      "the package index. An installed PyTorch 2.11 serves as well: make LIBTORCH=<its site-packages folder>")
endif()
file(GLOB WHEELS "${WORK}/wheels/*.whl")
foreach(WHEEL ${WHEELS})
  execute_process(COMMAND ${CMAKE_COMMAND} -E tar xf ${WHEEL} WORKING_DIRECTORY "${WORK}/unpacked" RESULT_VARIABLE FAILED)
  if(FAILED)
    file(REMOVE_RECURSE "${WORK}")
    message(FATAL_ERROR "could not unpack ${WHEEL}: is the disk full? (2 GB are needed in ${PARENT})")
  endif()
endforeach()
file(RENAME "${WORK}/unpacked" "${DESTINATION}" RESULT FAILED)
file(REMOVE_RECURSE "${WORK}")
if(FAILED AND NOT EXISTS "${DESTINATION}/torch/lib/libtorch_cpu.so")
  message(FATAL_ERROR "could not put libtorch at ${DESTINATION}: ${FAILED}")
endif()
