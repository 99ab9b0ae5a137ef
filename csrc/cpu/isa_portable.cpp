// The kernels for any processor: what the compiler's baseline offers (SSE2 on x86-64, NEON on
// arm64).
#include <string.h>

#include <algorithm>
#include <cmath>
#include <memory>

#define CONQUER_ISA portable
#include "isa.h"
