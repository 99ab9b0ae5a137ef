// graph.cpp: CUDA graphs and asynchronous copies to the host. Work is recorded on a separate
// stream, because the default stream cannot be recorded, and replayed on the thread's current
// stream.
#include "../runtime/cuda.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>

using namespace conquer;

namespace {

// One memory pool for all graphs of a device that exist at the same time: they replay one after the
// other and share its memory. libtorch cannot reuse a pool after its last graph is freed; then a
// new pool is made.
struct Pool {
  c10::MempoolId_t id;
  int graphs = 0;
};
std::mutex pools_mutex;
std::map<int, Pool> pools;

c10::MempoolId_t take_pool(int device) {
  std::lock_guard<std::mutex> lock(pools_mutex);
  Pool &pool = pools[device];
  if (pool.graphs++ == 0)
    pool.id = at::cuda::graph_pool_handle();
  return pool.id;
}

// The last graph frees the pool's memory; libtorch cannot do that while another graph is being
// recorded.
void leave_pool(int device) {
  std::lock_guard<std::mutex> lock(pools_mutex);
  Pool &pool = pools[device];
  if (--pool.graphs == 0)
    c10::cuda::CUDACachingAllocator::emptyCache(pool.id);
}

} // namespace

struct cq_graph {
  int device;
  c10::MempoolId_t pool;
  at::cuda::CUDAGraph graph;
  std::optional<c10::cuda::CUDAStream> before; // the thread's stream, restored after recording

  explicit cq_graph(int device) : device(device), pool(take_pool(device)) {}
  ~cq_graph() {
    graph.reset();
    leave_pool(device);
  }
};

namespace {

// The stream that a thread records on, the same for each device: cuBLAS keeps 32 MB for every
// stream that it sees.
c10::cuda::CUDAStream recording_stream(int device) {
  thread_local std::map<int, c10::cuda::CUDAStream> streams;
  auto known = streams.find(device);
  if (known == streams.end())
    known = streams
                .emplace(device,
                         c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(device)))
                .first;
  return known->second;
}

int graph_begin(int device, cq_graph **out) {
  return guarded([&] {
    c10::cuda::CUDAGuard guard(
        static_cast<c10::DeviceIndex>(device)); // libtorch records the current device
    auto graph = std::make_unique<cq_graph>(device);
    auto current = c10::cuda::getCurrentCUDAStream(device);
    auto side = recording_stream(device);
    c10::cuda::CUDAEvent ready;
    ready.record(current);
    ready.block(side);
    graph->before = current;
    c10::cuda::setCurrentCUDAStream(side);
    try {
      graph->graph.capture_begin(graph->pool, cudaStreamCaptureModeThreadLocal);
    } catch (...) {
      c10::cuda::setCurrentCUDAStream(current);
      throw;
    }
    *out = graph.release();
    return 0;
  });
}

int graph_end(cq_graph *graph) {
  return guarded([&] {
    struct Restore {
      c10::cuda::CUDAStream stream;
      ~Restore() { c10::cuda::setCurrentCUDAStream(stream); }
    } restore{*graph->before};
    c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(graph->device));
    graph->graph.capture_end();
    return 0;
  });
}

int graph_replay(cq_graph *graph) {
  return guarded([&] {
    c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(graph->device));
    graph->graph.replay();
    return 0;
  });
}

void graph_abandon(cq_graph *graph) {
  guarded([&] {
    std::unique_ptr<cq_graph> owned(graph);
    c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(graph->device));
    try {
      graph->graph.capture_end(); // ends recording; an invalidated one throws
    } catch (const std::exception &) {
    }
    cudaGetLastError(); // clears the error, which was reported already
    c10::cuda::setCurrentCUDAStream(*graph->before);
    return 0;
  });
}

void graph_free(cq_graph *graph) {
  guarded([&] {
    std::unique_ptr<cq_graph> owned(graph);
    c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(graph->device));
    c10::cuda::device_synchronize();
    return 0;
  });
}

at::Tensor fetch(const at::Tensor &t, std::shared_ptr<void> &event) {
  c10::cuda::CUDAGuard guard(t.device());
  at::Tensor copy = at::empty(t.sizes(), t.options().device(at::kCPU).pinned_memory(true));
  copy.copy_(t, /*non_blocking=*/true);
  auto recorded = std::make_shared<c10::cuda::CUDAEvent>(cudaEventDisableTiming);
  recorded->record(c10::cuda::getCurrentCUDAStream(t.get_device()));
  event = recorded;
  return copy;
}

void wait(const std::shared_ptr<void> &event) {
  static_cast<c10::cuda::CUDAEvent *>(event.get())->synchronize();
}

} // namespace

namespace conquer {

void add_graph(CudaServices &services) {
  services.graph_begin = graph_begin;
  services.graph_end = graph_end;
  services.graph_replay = graph_replay;
  services.graph_abandon = graph_abandon;
  services.graph_free = graph_free;
  services.fetch = fetch;
  services.wait = wait;
}

} // namespace conquer
