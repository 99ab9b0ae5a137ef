// device.cpp: registers the kernels and services of CUDA devices as libconquer_cuda.so is opened.
#include "../ops/device.h"
#include "../runtime/cuda.h"

namespace conquer {

void add_memory(CudaServices &);
void add_graph(CudaServices &);
void add_upload(CudaServices &);
void add_nccl(CudaServices &);

namespace cuda {

void add_dense(ops::Device &);       // dense.cpp
void add_grouped(ops::Device &);     // grouped.cpp
void add_scan(ops::Device &);        // ssd_triton.cpp
void add_state_space(ops::Device &); // ssd_rows.cpp

static const bool registered = [] {
  static ops::Device device{};
  add_dense(device);
  add_grouped(device);
  add_scan(device);
  add_state_space(device);
  ops::register_device(at::kCUDA, &device);
  CudaServices services{};
  add_memory(services);
  add_graph(services);
  add_upload(services);
  add_nccl(services);
  register_cuda_services(services);
  return true;
}();

} // namespace cuda

} // namespace conquer
