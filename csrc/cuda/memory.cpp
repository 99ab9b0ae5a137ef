// memory.cpp: properties and memory of CUDA devices. This folder is compiled with the plain C++
// compiler into libconquer_cuda.so, without nvcc or a GPU; runtime/cuda.cpp opens it if there is a
// driver.
#include "../runtime/cuda.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>

using namespace conquer;

namespace {

int device_count() { return c10::cuda::device_count(); }

// Asked for once: the driver takes a millisecond.
const cudaDeviceProp &properties_of(int device) {
  static std::mutex mutex;
  static std::map<int, cudaDeviceProp> known;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) {
    cudaDeviceProp properties;
    C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    found = known.emplace(device, properties).first;
  }
  return found->second;
}

int describe(int device, cq_cuda_info *info) {
  return guarded([&] {
    const cudaDeviceProp &properties = properties_of(device);
    std::strncpy(info->name, properties.name, sizeof info->name - 1);
    info->name[sizeof info->name - 1] = 0;
    info->major = properties.major;
    info->minor = properties.minor;
    info->multiprocessors = properties.multiProcessorCount;
    c10::cuda::CUDAGuard guard(device);
    size_t free_bytes = 0, total_bytes = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    info->free_bytes = static_cast<int64_t>(free_bytes);
    info->total_bytes = static_cast<int64_t>(total_bytes);
    // The allocator has no statistics before.
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device);
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    info->allocated_bytes = stats.allocated_bytes[all].current;
    info->peak_allocated_bytes = stats.allocated_bytes[all].peak;
    return 0;
  });
}

int reset_peak(int device) {
  return guarded([&] {
    c10::cuda::CUDACachingAllocator::resetPeakStats(device);
    return 0;
  });
}

int synchronize(int device) {
  return guarded([&] {
    c10::cuda::CUDAGuard guard(device);
    c10::cuda::device_synchronize();
    return 0;
  });
}

} // namespace

namespace conquer {

void add_memory(CudaServices &services) {
  services.device_count = device_count;
  services.describe = describe;
  services.reset_peak = reset_peak;
  services.synchronize = synchronize;
}

} // namespace conquer
