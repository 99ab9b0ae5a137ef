// trace.cpp: libtorch's profiler (Kineto): a trace that Chrome and Perfetto open, and the time by operation.
#include "internal.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cstdlib>
#include <map>

using namespace conquer;
namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

namespace {

struct Row {
  int64_t calls = 0, total = 0, own = 0; // nanoseconds; own: without the operations inside
};

// One line an operation: device, calls, total and own nanoseconds, name.
std::string table_of(const std::vector<profiler::KinetoEvent> &events) {
  std::map<std::pair<bool, std::string>, Row> rows; // on a GPU or not, name
  std::map<uint64_t, std::vector<const profiler::KinetoEvent *>> threads;
  for (const auto &e : events) {
    if (e.isAsync())
      continue;
    if (e.deviceType() == c10::DeviceType::CPU) {
      threads[e.startThreadId()].push_back(&e);
      continue;
    }
    Row &row = rows[{true, e.name()}];
    row.calls++, row.total += e.durationNs(), row.own += e.durationNs();
  }
  for (auto &[thread, list] : threads) {
    std::sort(list.begin(), list.end(), [](auto *a, auto *b) {
      return a->startNs() != b->startNs() ? a->startNs() < b->startNs() : a->endNs() > b->endNs();
    });
    std::vector<const profiler::KinetoEvent *> open;
    for (auto *e : list) {
      while (!open.empty() && open.back()->endNs() <= e->startNs())
        open.pop_back();
      if (!open.empty())
        rows[{false, open.back()->name()}].own -= e->durationNs();
      Row &row = rows[{false, e->name()}];
      row.calls++, row.total += e->durationNs(), row.own += e->durationNs();
      open.push_back(e);
    }
  }
  std::string table;
  for (auto &[key, row] : rows)
    table +=
        c10::str(key.first ? "gpu" : "cpu", '\t', row.calls, '\t', row.total, '\t', row.own, '\t', key.second, '\n');
  return table;
}

std::set<ActivityType> activities() {
  std::set<ActivityType> set = {ActivityType::CPU};
  if (cq_cuda_device_count() > 0)
    set.insert(ActivityType::CUDA);
  return set;
}

} // namespace

int cq_trace_begin(void) {
  return guarded([&] {
    setenv("KINETO_LOG_LEVEL", "99", 0); // or it complains of machines without a GPU
    ProfilerConfig config(ProfilerState::KINETO);
    profiler::prepareProfiler(config, activities());
    profiler::enableProfiler(config, activities(), {at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE});
    return 0;
  });
}

int cq_trace_end(const char *path, const char **table) {
  static thread_local std::string text;
  return guarded([&] {
    if (cq_cuda_device_count() > 0 && cq_cuda_synchronize(0))
      return 1;
    auto result = profiler::disableProfiler();
    result->save(path);
    text = table_of(result->events());
    *table = text.c_str();
    return 0;
  });
}
