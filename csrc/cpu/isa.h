// isa.h: compiles every kernel for one instruction set. An isa_*.cpp includes the standard headers,
// sets the compiler's target, defines CONQUER_ISA (a namespace) and CONQUER_AVX*, and includes
// this. The headers come first, so that no inline function of the standard library is compiled for
// an instruction set that the processor may lack. Kernels also use no library templates that might
// not be inlined, such as std::vector<float>.
#include "../runtime/memory.h"
#include "kernels.h"

namespace conquer {
namespace CONQUER_ISA {

#include "vec.h"

#include "gemm.inl"

#include "add_rows.inl"
#include "attention.inl"
#include "block_linear.inl"
#include "cross_entropy.inl"
#include "decode_attention.inl"
#include "linear.inl"
#include "optimizer.inl"
#include "rms_norm.inl"
#include "rope.inl"
#include "ssd_scan.inl"
#include "state_space.inl"
#include "swiglu.inl"

template <class T> constexpr Kernels<T> table() {
  Kernels<T> t{};
  t.linear = linear<T>;
  t.widen = widen<T>;
  t.round = round<T>;
  t.rms_norm = rms_norm<T>;
  t.rms_norm_backward = rms_norm_backward<T>;
  t.swiglu = swiglu<T>;
  t.swiglu_backward = swiglu_backward<T>;
  t.rotate = rotate<T>;
  t.attend = attend<T>;
  t.flash = flash<T>;
  t.flash_backward = flash_backward<T>;
  t.transpose_keys = transpose_keys<T>;
  t.add_rows = add_rows<T>;
  t.cross_entropy = cross_entropy<T>;
  t.adamw = adamw<T>;
  t.adamw_bf16 = adamw_bf16<T>;
  t.adamw_8bit = adamw_8bit<T>;
  t.lion = lion<T>;
  t.sum_of_squares = sum_of_squares<T>;
  return t;
}

} // namespace CONQUER_ISA

#define CONQUER_SET_(name) kernels_##name
#define CONQUER_SET(name) CONQUER_SET_(name)
extern const KernelSet CONQUER_SET(CONQUER_ISA) = {
    CONQUER_ISA::table<float>(), CONQUER_ISA::table<bf16>(), CONQUER_ISA::table<f16>(),
    CONQUER_ISA::state_space::table, CONQUER_ISA::block_table()};

} // namespace conquer
