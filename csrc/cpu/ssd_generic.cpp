// The state-space kernels for any processor, with four lanes.
#include "ssd_prelude.h"

#define SSD_SPACE generic
#define SSD_LANES 4
#include "ssd_head.h"
#include "ssd_rows.h"

const conquer::ssd::Kernels &conquer::ssd::kernels_generic() { return generic::table; }
