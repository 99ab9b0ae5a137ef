// Included before gotch's C++, which is written for libtorch 2.1, so that it compiles against 2.11.
// Three functions whose arguments changed get an overload with the old arguments. Nothing in this
// project calls them.
#pragma once
// gotch calls functions that libtorch has deprecated since.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#ifdef __cplusplus
#include <ATen/ATen.h>

#include <stdexcept>
#include <tuple>

namespace torch {
using at::_cslt_sparse_mm;
using at::_scaled_mm;
using at::_scaled_mm_out;

inline at::Tensor _cslt_sparse_mm(const at::Tensor &, const at::Tensor &, const at::Tensor &,
                                  bool) {
  throw std::runtime_error("_cslt_sparse_mm: this argument list left libtorch after 2.1");
}
inline std::tuple<at::Tensor, at::Tensor> _scaled_mm(const at::Tensor &, const at::Tensor &,
                                                     const at::Tensor &,
                                                     std::optional<at::ScalarType>,
                                                     const at::Tensor &, const at::Tensor &,
                                                     const at::Tensor &) {
  throw std::runtime_error("_scaled_mm: this argument list left libtorch after 2.1");
}
inline std::tuple<at::Tensor, at::Tensor>
_scaled_mm_out(at::Tensor &, at::Tensor &, const at::Tensor &, const at::Tensor &,
               const at::Tensor &, std::optional<at::ScalarType>, const at::Tensor &,
               const at::Tensor &, const at::Tensor &) {
  throw std::runtime_error("_scaled_mm_out: this argument list left libtorch after 2.1");
}
} // namespace torch
#endif
