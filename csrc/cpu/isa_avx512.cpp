// The kernels for AVX-512 F, BW, DQ and VL (Skylake server and later).
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <memory>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))),                   \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

#define CONQUER_ISA avx512
#define CONQUER_AVX512
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
