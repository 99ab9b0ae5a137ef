// autograd.cpp: gradients and generator states.
#include "handles.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

using namespace conquer;

int cq_backward(const cq_tensor *outputs, const cq_tensor *seeds, int n, const cq_tensor *inputs,
                int n_inputs, int keep_graph) {
  return guarded([&] {
    torch::autograd::backward(tensors_of(outputs, n), tensors_of(seeds, n), keep_graph != 0,
                              /*create_graph=*/false, tensors_of(inputs, n_inputs));
    return 0;
  });
}

int cq_set_grad_enabled(int on) {
  bool was = at::GradMode::is_enabled();
  at::GradMode::set_enabled(on != 0);
  return was;
}

void cq_clear_grad(cq_tensor t) { static_cast<at::Tensor *>(t)->mutable_grad().reset(); }

int cq_set_grad(cq_tensor t, cq_tensor grad) {
  return guarded([&] {
    static_cast<at::Tensor *>(t)->mutable_grad() = tensor_of(grad);
    return 0;
  });
}

int cq_set_data(cq_tensor t, cq_tensor src) {
  return guarded([&] {
    static_cast<at::Tensor *>(t)->set_data(tensor_of(src).detach());
    return 0;
  });
}

int cq_manual_seed(int64_t seed) {
  return guarded([&] {
    at::manual_seed(static_cast<uint64_t>(seed));
    return 0;
  });
}

static at::Generator generator_of(int device) {
  return at::globalContext().defaultGenerator(device < 0 ? at::Device(at::kCPU)
                                                         : at::Device(at::kCUDA, device));
}

int cq_rng_state(int device, cq_tensor *out) {
  return guarded([&] {
    at::Generator generator = generator_of(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    return give(out, generator.get_state());
  });
}

int cq_set_rng_state(int device, cq_tensor state) {
  return guarded([&] {
    at::Generator generator = generator_of(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(tensor_of(state));
    return 0;
  });
}
