// device.cpp: the registered device tables.
#include "device.h"

#include <atomic>

namespace conquer::ops {

static std::atomic<const Device *> cpu{nullptr}, cuda{nullptr};

void register_device(at::DeviceType type, const Device *device) {
  (type == at::kCPU ? cpu : cuda) = device;
}

static const Device *registered(const at::Tensor &t) {
  return t.is_cpu()    ? cpu.load(std::memory_order_acquire)
         : t.is_cuda() ? cuda.load(std::memory_order_acquire)
                       : nullptr;
}

const Device *device_for(const at::Tensor &t) {
  const Device *device = t.defined() ? registered(t) : nullptr;
  return device && device->accepts(t) ? device : nullptr;
}

const Device &registered_device(const at::Tensor &t) {
  const Device *device = registered(t);
  TORCH_CHECK(device, "no kernels are registered for tensors on ", t.device());
  return *device;
}

} // namespace conquer::ops
