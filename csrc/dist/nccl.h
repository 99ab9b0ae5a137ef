// nccl.h: the declarations of NCCL and of CUDA's libraries that c10d's ProcessGroupNCCL.hpp needs.
// Their own headers come with hundreds of megabytes of libraries. Nothing of these libraries is
// called here. Sizes and values are those of the version that libtorch was built with: NCCL 2.28.9.
#pragma once

#include <cstddef>

#define NCCL_MAJOR 2
#define NCCL_MINOR 28
#define NCCL_PATCH 9
#define NCCL_VERSION(major, minor, patch) ((major) * 10000 + (minor) * 100 + (patch)) // since 2.9
#define NCCL_VERSION_CODE NCCL_VERSION(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH)

extern "C" {

typedef struct ncclComm *ncclComm_t;
typedef struct {
  char internal[128];
} ncclUniqueId;

typedef enum {
  ncclSuccess = 0,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7
} ncclResult_t;

typedef enum {
  ncclSum,
  ncclProd,
  ncclMax,
  ncclMin,
  ncclAvg,
  ncclMaxRedOp = 0x7fffffff
} ncclRedOp_t;

typedef enum {
  ncclInt8 = 0,
  ncclUint8 = 1,
  ncclInt32 = 2,
  ncclInt64 = 4,
  ncclHalf = 6,
  ncclFloat = 7,
  ncclDouble = 8,
  ncclBfloat16 = 9,
  ncclFloat8e4m3 = 10,
  ncclFloat8e5m2 = 11,
} ncclDataType_t;

// How a group communicates. NCCL chooses every value that is left at `any`.
typedef struct ncclConfig_v22800 {
  static const int any = -0x7fffffff - 1;
  size_t size = sizeof(ncclConfig_v22800);
  unsigned magic = 0xcafebeef, version = NCCL_VERSION_CODE;
  int blocking = any, cgaClusterSize = any, minCTAs = any, maxCTAs = any;
  const char *netName = nullptr;
  int splitShare = any, trafficClass = any;
  const char *commName = nullptr;
  int collnetEnable = any, CTAPolicy = any, shrinkShare = any, nvlsCTAs = any,
      nChannelsPerNetPeer = any, nvlinkCentricSched = any;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER                                                                    \
  {                                                                                                \
  }
#define NCCL_SPLIT_NOCOLOR -1

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm);

// Handles and results of CUDA's linear algebra libraries.
typedef struct cusparseContext *cusparseHandle_t;
typedef struct cublasContext *cublasHandle_t;
typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cusolverDnContext *cusolverDnHandle_t;
typedef enum { CUSPARSE_STATUS_SUCCESS } cusparseStatus_t;
typedef enum { CUBLAS_STATUS_SUCCESS } cublasStatus_t;
typedef enum { CUSOLVER_STATUS_SUCCESS } cusolverStatus_t;
}
