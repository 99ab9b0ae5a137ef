// The kernels for any processor, in the compiler's baseline instructions (SSE2 on x86-64, NEON on
// arm64).
#include <string.h>

#include <algorithm>
#include <cmath>
#include <memory>

#define CONQUER_ISA portable
#include "isa.h"
