# cmake -DBUILD=build -DPREFIX=... -DLIBTORCH=... -P cmake/install.cmake
# Installs PREFIX/bin/conquer and PREFIX/lib/conquer, which do not need the source tree.
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
message("installed ${PREFIX}/bin/conquer")
