// The kernels for AVX-512 with bfloat16 conversions and dot products of bytes (Cooper Lake, Zen 4
// and later).
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <memory>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,"           \
                          "avx512vnni,avx512vbmi,bmi2"))),                                         \
    apply_to = function)
#else
#pragma GCC target(                                                                                \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx512vbmi,bmi2,"      \
    "prefer-vector-width=512")
#endif

#define CONQUER_ISA avx512_bf16
#define CONQUER_AVX512
#define CONQUER_AVX512_BF16
#define CONQUER_AVX512_VNNI
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
