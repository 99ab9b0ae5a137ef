// kernels.cpp: chooses the table of kernels for this processor.
#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace conquer {

static const KernelSet &choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // CONQUER_CPU=portable|avx2|avx512 limits the choice, to test or measure a lesser instruction
  // set.
  const char *limit = std::getenv("CONQUER_CPU");
  int level = 3;
  if (limit)
    level = !std::strcmp(limit, "portable") ? 0
            : !std::strcmp(limit, "avx2")   ? 1
            : !std::strcmp(limit, "avx512") ? 2
                                            : 3;
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (level >= 3 && avx512 && __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("bmi2"))
    return kernels_avx512_bf16;
  if (level >= 2 && avx512)
    return kernels_avx512;
  if (level >= 1 && avx2)
    return kernels_avx2;
#endif
  return kernels_portable;
}

static const KernelSet &chosen() {
  static const KernelSet &set = choose();
  return set;
}

bool has_avx512() {
#if defined(__x86_64__)
  return &chosen() != &kernels_portable && &chosen() != &kernels_avx2;
#else
  return false;
#endif
}

template <> const Kernels<float> &kernels<float>() { return chosen().f32; }
template <> const Kernels<bf16> &kernels<bf16>() { return chosen().b16; }
template <> const Kernels<f16> &kernels<f16>() { return chosen().h16; }
const StateSpaceKernels &state_space_kernels() { return chosen().state_space; }
const BlockKernels &block_kernels() { return chosen().blocks; }

} // namespace conquer
