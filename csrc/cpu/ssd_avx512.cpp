// The state-space kernels for AVX-512. See ssd_avx2.cpp for why the target is set here.
#include "ssd_prelude.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#define SSD_SPACE avx512
#define SSD_LANES 16
#include "ssd_head.h"
#include "ssd_rows.h"
#pragma GCC pop_options

const conquer::ssd::Kernels *conquer::ssd::kernels_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
             ? &avx512::table
             : nullptr;
}
#else
const conquer::ssd::Kernels *conquer::ssd::kernels_avx512() { return nullptr; }
#endif
