# cmake -DBUILD=build -DPREFIX=... -DLIBTORCH=... -DGO=go -P cmake/install.cmake
# Installs PREFIX/bin/conquer and PREFIX/lib/conquer, which do not need the source tree, and
# PREFIX/share/doc/conquer: the license texts of all that is installed, and SHA256SUMS.
set(LIB "${PREFIX}/lib/conquer")
file(INSTALL "${BUILD}/bin/conquer" DESTINATION "${PREFIX}/bin" USE_SOURCE_PERMISSIONS)
file(GLOB OURS "${BUILD}/lib/conquer/*.so")
file(INSTALL ${OURS} DESTINATION "${LIB}" USE_SOURCE_PERMISSIONS)
if(IS_DIRECTORY "${BUILD}/lib/conquer/kernels")
  file(INSTALL "${BUILD}/lib/conquer/kernels" DESTINATION "${LIB}")
endif()
file(GLOB TORCH "${LIBTORCH}/torch/lib/*.so*")
list(FILTER TORCH EXCLUDE REGEX "libtorch_python")
file(INSTALL ${TORCH} DESTINATION "${LIB}/torch/lib" USE_SOURCE_PERMISSIONS)
if(EXISTS "${LIBTORCH}/nvidia")
  file(INSTALL "${LIBTORCH}/nvidia/" DESTINATION "${LIB}/nvidia" FILES_MATCHING PATTERN "*.so*"
       PATTERN "include" EXCLUDE)
endif()
set(DOC "${PREFIX}/share/doc/conquer")
execute_process(COMMAND ${CMAKE_CURRENT_LIST_DIR}/../tools/licenses.sh ${GO}
                        ${BUILD}/bin/conquer ${LIBTORCH} ${DOC}/licenses
                RESULT_VARIABLE FAILED)
if(FAILED)
  message(FATAL_ERROR "could not collect the license texts in ${DOC}/licenses")
endif()
# `cd PREFIX && sha256sum -c share/doc/conquer/SHA256SUMS` finds files that were changed.
file(GLOB_RECURSE FILES RELATIVE "${PREFIX}" "${PREFIX}/bin/conquer" "${LIB}/*" "${DOC}/*")
set(SUMS "")
foreach(FILE ${FILES})
  if(NOT FILE STREQUAL "share/doc/conquer/SHA256SUMS")
    file(SHA256 "${PREFIX}/${FILE}" SUM)
    string(APPEND SUMS "${SUM}  ${FILE}\n")
  endif()
endforeach()
file(WRITE "${DOC}/SHA256SUMS" "${SUMS}")
message("installed ${PREFIX}/bin/conquer")
