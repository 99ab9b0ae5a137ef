// The state-space kernels for AVX2 and FMA. The target is set for the kernels' own code alone, after every header, so
// no inline function of a library is compiled for it and then shared with a processor that lacks it.
#include "ssd_prelude.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define SSD_SPACE avx2
#define SSD_LANES 8
#include "ssd_head.h"
#include "ssd_rows.h"
#pragma GCC pop_options

const conquer::ssd::Kernels *conquer::ssd::kernels_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::table : nullptr;
}
#else
const conquer::ssd::Kernels *conquer::ssd::kernels_avx2() { return nullptr; }
#endif
