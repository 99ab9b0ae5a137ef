// nccl.cpp: groups of processes with a GPU each, through libtorch's ProcessGroupNCCL. It is part of
// libconquer_cuda.so; NCCL comes with libtorch's CUDA libraries.
#include "../runtime/cuda.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace conquer {

static c10::intrusive_ptr<c10d::Backend> nccl_group(const c10::intrusive_ptr<c10d::Store> &store,
                                                    int rank, int size, int device,
                                                    std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  group->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
  return group;
}

void add_nccl(CudaServices &services) { services.nccl_group = nccl_group; }

} // namespace conquer
