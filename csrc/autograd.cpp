// autograd.cpp: gradients, generator state, optimizer steps and attention, where gotch's C layer lacks an argument
// that libtorch has.
#include "internal.h"

#include <atomic>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/SDPBackend.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

using namespace conquer;

int cq_backward(const cq_tensor *outputs, const cq_tensor *seeds, int n, const cq_tensor *inputs, int n_inputs,
                int keep_graph) {
  return guarded([&] {
    torch::autograd::backward(tensors_of(outputs, n), tensors_of(seeds, n), keep_graph != 0, /*create_graph=*/false,
                              tensors_of(inputs, n_inputs));
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
  return at::globalContext().defaultGenerator(device < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, device));
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

// Which of libtorch's attention kernels a GPU tries first. cuDNN's are the fastest, half again as fast as flash's, but
// plan anew for each shape: training has few shapes, prompts have any.
static void choose_attention(bool training) {
  static std::atomic<int> chosen{-1};
  if (chosen.exchange(training) == training)
    return;
  using at::SDPBackend;
  std::vector<int64_t> order;
  for (auto backend : training ? std::vector<SDPBackend>{SDPBackend::cudnn_attention, SDPBackend::flash_attention}
                               : std::vector<SDPBackend>{SDPBackend::flash_attention, SDPBackend::cudnn_attention})
    order.push_back(static_cast<int64_t>(backend));
  order.push_back(static_cast<int64_t>(SDPBackend::efficient_attention));
  order.push_back(static_cast<int64_t>(SDPBackend::math));
  order.push_back(static_cast<int64_t>(SDPBackend::overrideable));
  at::globalContext().setSDPPriorityOrder(order);
}

int cq_sdpa(cq_tensor q, cq_tensor k, cq_tensor v, cq_tensor mask, double dropout, int causal, double scale,
            cq_tensor *out) {
  return guarded([&] {
    const at::Tensor query = tensor_of(q);
    at::Tensor key = tensor_of(k);
    at::Tensor value = tensor_of(v);
    if (dropout == 0 && flash_serves(query, key, value, tensor_of(mask)))
      return give(out, flash_attention(query, key, value, tensor_of(mask), causal != 0, scale));
    bool grouped = query.size(-3) != key.size(-3);
    if (query.is_cuda()) {
      choose_attention(at::GradMode::is_enabled() && query.requires_grad());
      if (grouped && mask) { // no kernel takes both: the plain one that would be left holds all L x S weights
        key = key.repeat_interleave(query.size(-3) / key.size(-3), -3);
        value = value.repeat_interleave(query.size(-3) / value.size(-3), -3);
        grouped = false;
      }
    }
    return give(out,
                at::scaled_dot_product_attention(query, key, value, optional_of(mask), dropout, causal != 0,
                                                 scale > 0 ? std::optional<double>(scale) : std::nullopt, grouped));
  });
}
