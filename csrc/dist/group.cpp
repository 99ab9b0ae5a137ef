// group.cpp: libtorch's distributed engine, c10d: the key-value store of a run, and groups of
// processes with collectives. Groups on the CPU use Gloo; groups on GPUs use NCCL and come from
// libconquer_cuda.so.
#include "../runtime/cuda.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <c10/core/DeviceGuard.h>
#include <c10/util/Logging.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

using namespace conquer;

struct cq_store {
  c10::intrusive_ptr<c10d::TCPStore> store;
};

struct cq_group {
  c10::intrusive_ptr<c10d::Backend> backend;
  bool gpu;
};

struct cq_work {
  std::vector<c10::intrusive_ptr<c10d::Work>> parts;
  std::vector<at::Tensor> tensors; // that the operation reads or writes, kept alive
  bool point_to_point = false;     // only a waiting thread learns of its end
  // Ends the operation's event in a trace, if no callback does.
  std::function<void()> traced = nullptr;
};

namespace {

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(std::max<int64_t>(1, int64_t(seconds * 1000)));
}

c10d::ReduceOp reduction(int op) {
  switch (op) {
  case CQ_SUM:
    return c10d::ReduceOp::SUM;
  case CQ_MAX:
    return c10d::ReduceOp::MAX;
  }
  TORCH_CHECK(false, "unknown reduction ", op);
}

// The elements of t as a vector, without autograd.
at::Tensor plain(cq_tensor t) {
  at::Tensor tensor = tensor_of(t).detach();
  TORCH_CHECK(tensor.is_contiguous(), "collectives take contiguous tensors, not one of sizes ",
              tensor.sizes(), " and strides ", tensor.strides());
  return tensor.view({-1});
}

// Starts an operation and returns it. A trace shows it until it is done; NCCL's operations are
// traced by Kineto.
template <class F> int start(cq_group *group, cq_work **out, const char *name, F &&begin) {
  std::function<void()> traced = group->gpu ? nullptr : trace_background(name);
  auto work = std::make_unique<cq_work>(begin());
  if (traced && work->point_to_point)
    work->traced = traced;
  else if (traced) {
    auto left = std::make_shared<std::atomic<size_t>>(work->parts.size());
    for (auto &part : work->parts)
      part->getFuture()->addCallback([left, traced](c10::ivalue::Future &) {
        if (--*left == 0)
          traced();
      });
  }
  *out = work.release();
  return 0;
}

// Whether output is a view of this rank's part of input.
bool is_part(const at::Tensor &output, const at::Tensor &input, int rank) {
  return output.numel() > 0 && output.dtype() == input.dtype() &&
         output.const_data_ptr() ==
             input.narrow(0, rank * output.numel(), output.numel()).const_data_ptr();
}

} // namespace

// ---- store

int cq_store_open(const char *host, int port, int listener, double seconds, cq_store **out) {
  return guarded([&] {
    // The returned error has the reason. c10d would also print it, with the place in C++ that
    // raised it.
    if (!std::getenv("TORCH_CPP_LOG_LEVEL"))
      FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(port);
    options.isServer = listener >= 0;
    if (listener >= 0)
      options.masterListenFd = listener;
    options.waitWorkers = false;
    options.timeout = milliseconds(seconds);
    *out = new cq_store{c10::make_intrusive<c10d::TCPStore>(host, options)};
    return 0;
  });
}

void cq_store_close(cq_store *store) { delete store; }

int cq_store_set(cq_store *store, const char *key, const void *data, size_t bytes) {
  return guarded([&] {
    const auto *from = static_cast<const uint8_t *>(data);
    store->store->set(key, std::vector<uint8_t>(from, from + bytes));
    return 0;
  });
}

int cq_store_get(cq_store *store, const char *key, double seconds, void **data, size_t *bytes) {
  return guarded([&] {
    store->store->wait({key}, milliseconds(seconds));
    const std::vector<uint8_t> value = store->store->get(key);
    *data = std::malloc(std::max<size_t>(1, value.size()));
    *bytes = value.size();
    if (!value.empty())
      std::memcpy(*data, value.data(), value.size());
    return 0;
  });
}

int cq_store_has(cq_store *store, const char *key, int *out) {
  return guarded([&] {
    *out = store->store->check({key});
    return 0;
  });
}

// ---- groups

int cq_group_new(cq_store *store, const char *name, int rank, int size, int device,
                 const char *address, double seconds, cq_group **out) {
  return guarded([&] {
    auto within = c10::make_intrusive<c10d::PrefixStore>(name, store->store);
    if (device >= 0) {
      *out = new cq_group{
          cuda_services().nccl_group(within, rank, size, device, milliseconds(seconds)), true};
      return 0;
    }
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(seconds));
    if (*address)
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    else if (const char *interface = std::getenv("GLOO_SOCKET_IFNAME"))
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interface));
    else
      options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    *out = new cq_group{c10::make_intrusive<c10d::ProcessGroupGloo>(within, rank, size, options),
                        false};
    return 0;
  });
}

void cq_group_free(cq_group *group) { delete group; }

int cq_all_reduce(cq_group *group, cq_tensor tensor, int op, cq_work **out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{plain(tensor)};
    c10d::AllreduceOptions options;
    options.reduceOp = reduction(op);
    return start(group, out, "all-reduce",
                 [&] { return cq_work{{group->backend->allreduce(tensors, options)}, tensors}; });
  });
}

int cq_all_gather(cq_group *group, cq_tensor output, cq_tensor input, cq_work **out) {
  return guarded([&] {
    at::Tensor to = plain(output), from = plain(input);
    if (to.is_cuda() || from.numel() == 0)
      return start(group, out, "all-gather", [&] {
        return cq_work{{group->backend->_allgather_base(to, from)}, {to, from}};
      });
    // Gloo's all-gather copies the output. Instead each rank broadcasts its part into its place.
    const int64_t n = from.numel();
    const int size = group->backend->getSize();
    TORCH_CHECK(to.numel() == n * size && to.dtype() == from.dtype(), "an all-gather of ", n,
                " elements from each of ", size, " ranks into ", to.numel());
    to.narrow(0, group->backend->getRank() * n, n).copy_(from);
    return start(group, out, "all-gather", [&] {
      cq_work work{{}, {to}};
      for (int rank = 0; rank < size; rank++) {
        std::vector<at::Tensor> part{to.narrow(0, rank * n, n)};
        c10d::BroadcastOptions options;
        options.rootRank = rank;
        work.parts.push_back(group->backend->broadcast(part, options));
      }
      return work;
    });
  });
}

int cq_reduce_scatter(cq_group *group, cq_tensor output, cq_tensor input, int op, cq_work **out) {
  return guarded([&] {
    at::Tensor to = plain(output), from = plain(input);
    if (!to.is_cuda() && is_part(to, from, group->backend->getRank())) {
      // Gloo's own sums a copy of the input, all of it for every rank. Here each rank's part is
      // summed in place.
      const int64_t n = to.numel();
      return start(group, out, "reduce-scatter", [&] {
        cq_work work{{}, {from}};
        for (int rank = 0; rank < group->backend->getSize(); rank++) {
          std::vector<at::Tensor> part{from.narrow(0, rank * n, n)};
          c10d::ReduceOptions options;
          options.reduceOp = reduction(op);
          options.rootRank = rank;
          work.parts.push_back(group->backend->reduce(part, options));
        }
        return work;
      });
    }
    c10d::ReduceScatterOptions options;
    options.reduceOp = reduction(op);
    return start(group, out, "reduce-scatter", [&] {
      return cq_work{{group->backend->_reduce_scatter_base(to, from, options)}, {to, from}};
    });
  });
}

int cq_broadcast(cq_group *group, cq_tensor tensor, int root, cq_work **out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{plain(tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return start(group, out, "broadcast",
                 [&] { return cq_work{{group->backend->broadcast(tensors, options)}, tensors}; });
  });
}

int cq_send(cq_group *group, cq_tensor tensor, int to, int tag, cq_work **out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{plain(tensor)};
    return start(group, out, "send",
                 [&] { return cq_work{{group->backend->send(tensors, to, tag)}, tensors, true}; });
  });
}

int cq_recv(cq_group *group, cq_tensor tensor, int from, int tag, cq_work **out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{plain(tensor)};
    return start(group, out, "receive", [&] {
      return cq_work{{group->backend->recv(tensors, from, tag)}, tensors, true};
    });
  });
}

int cq_work_wait(cq_work *work) {
  std::unique_ptr<cq_work> owned(work);
  return guarded([&] {
    for (auto &part : work->parts)
      TORCH_CHECK(part->wait(), "the operation was aborted");
    if (work->traced)
      work->traced();
    return 0;
  });
}

void cq_work_forget(cq_work *work) { delete work; }

// ---- storage

int cq_storage_resize(cq_tensor t, size_t bytes) {
  return guarded([&] {
    c10::StorageImpl *storage = tensor_of(t).storage().unsafeGetStorageImpl();
    if (storage->nbytes() == bytes)
      return 0;
    c10::DeviceGuard guard(storage->device()); // GPU allocators use the current device
    at::DataPtr data =
        bytes ? storage->allocator()->allocate(bytes) : at::DataPtr(nullptr, storage->device());
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(bytes);
    return 0;
  });
}
