// internal.h: what the C++ files of this folder share.
#pragma once

#include <ATen/ATen.h>

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "conquer.h"

namespace c10d {
class Backend;
class Store;
} // namespace c10d

namespace conquer {

// Records the reason of a failure for cq_last_error and returns 1.
int fail(const std::string &reason);

// The tensor behind a handle, or an undefined tensor for NULL.
inline at::Tensor tensor_of(cq_tensor t) { return t ? *static_cast<at::Tensor *>(t) : at::Tensor(); }
inline std::optional<at::Tensor> optional_of(cq_tensor t) {
  return t ? std::optional<at::Tensor>(*static_cast<at::Tensor *>(t)) : std::nullopt;
}
std::vector<at::Tensor> tensors_of(const cq_tensor *ts, int n);

// Makes a handle that belongs to the calling thread's innermost scope.
int give(cq_tensor *out, at::Tensor t);

// Runs f, turning an exception into a recorded failure. f returns 0 or 1 as the C functions do.
template <class F> int guarded(F &&f) noexcept {
  try {
    return f();
  } catch (const c10::Error &e) {
    return fail(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return fail(e.what());
  } catch (...) {
    return fail("unknown C++ exception");
  }
}

// While a trace is recorded, begins a stretch of it that runs beside the calling thread's own, named after the thread's
// innermost cq_span, or `otherwise`; what is returned ends it, on any thread. Empty while none is recorded.
std::function<void()> traced_aside(const std::string &otherwise);

// What the CUDA library offers; filled in by cq_cuda_load (see cuda/loader.cpp).
struct CudaTable {
  int (*describe)(int, cq_cuda_info *);
  int (*reset_peak)(int);
  int (*synchronize)(int);
  int (*device_count)();
  int (*graph_begin)(int, cq_graph **);
  int (*graph_end)(cq_graph *);
  int (*graph_replay)(cq_graph *);
  void (*graph_abandon)(cq_graph *);
  void (*graph_free)(cq_graph *);
  // A copy of a CPU tensor on a device.
  at::Tensor (*upload)(const at::Tensor &t, int device);
  // Starts a copy of t into pinned memory; `done` waits for it.
  at::Tensor (*fetch)(const at::Tensor &t, std::shared_ptr<void> &event);
  void (*wait)(const std::shared_ptr<void> &event);
  // A group of NCCL's.
  c10::intrusive_ptr<c10d::Backend> (*nccl_group)(const c10::intrusive_ptr<c10d::Store> &store, int rank, int size,
                                                  int device, std::chrono::milliseconds timeout);
};

// Attention by the CPU's own kernels, and whether they take these tensors; see cq_sdpa and cpu/flash.cpp.
bool flash_serves(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const at::Tensor &mask);
at::Tensor flash_attention(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const at::Tensor &mask,
                           bool causal, double scale);

const CudaTable &cuda_table(); // empty until cq_cuda_load succeeded

} // namespace conquer
