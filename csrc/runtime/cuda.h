// cuda.h: the services of a CUDA device that are not operators: graphs, copies, groups of
// processes, memory. They are registered by libconquer_cuda.so when it is opened; see
// cuda/device.cpp. Operators are in ops/device.h.
#pragma once

#include "handles.h"

#include <c10/util/intrusive_ptr.h>

#include <chrono>

namespace c10d {
class Backend;
class Store;
} // namespace c10d

namespace conquer {

struct CudaServices {
  int (*device_count)();
  int (*describe)(int device, cq_cuda_info *);
  int (*reset_peak)(int device);
  int (*synchronize)(int device);
  int (*graph_begin)(int device, cq_graph **);
  int (*graph_end)(cq_graph *);
  int (*graph_replay)(cq_graph *);
  void (*graph_abandon)(cq_graph *);
  void (*graph_free)(cq_graph *);
  // A copy of a CPU tensor on a device.
  at::Tensor (*upload)(const at::Tensor &t, int device);
  // Starts a copy of t into pinned memory; wait(event) waits for it.
  at::Tensor (*fetch)(const at::Tensor &t, std::shared_ptr<void> &event);
  void (*wait)(const std::shared_ptr<void> &event);
  c10::intrusive_ptr<c10d::Backend> (*nccl_group)(const c10::intrusive_ptr<c10d::Store> &store,
                                                  int rank, int size, int device,
                                                  std::chrono::milliseconds timeout);
};

// All entries are null until cq_cuda_load succeeded.
const CudaServices &cuda_services();
void register_cuda_services(const CudaServices &services);

} // namespace conquer
