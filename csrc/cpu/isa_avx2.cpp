// The kernels for AVX2 with FMA and F16C (Haswell, Zen and later).
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <memory>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define CONQUER_ISA avx2
#define CONQUER_AVX2
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
