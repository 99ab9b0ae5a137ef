// trace.cpp: libtorch's profiler (Kineto): a trace that Chrome and Perfetto open, and the time by
// operation.
#include "handles.h"

#include <kineto/ActivityType.h>
#include <kineto/libkineto.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>

using namespace conquer;
namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

namespace {

struct Row {
  int64_t calls = 0, total = 0, own = 0; // nanoseconds; own excludes the operations inside
};

// One line for each operation: device, calls, total and own nanoseconds, name.
std::string table_of(const std::vector<profiler::KinetoEvent> &events) {
  std::map<std::pair<bool, std::string>, Row> rows; // on a GPU or not, name
  std::map<uint64_t, std::vector<const profiler::KinetoEvent *>> threads;
  for (const auto &e : events) {
    // A host range appears again on the GPU, above kernels that are counted themselves.
    if (e.isAsync() ||
        e.activityType() == static_cast<uint8_t>(libkineto::ActivityType::GPU_USER_ANNOTATION))
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
    table += c10::str(key.first ? "gpu" : "cpu", '\t', row.calls, '\t', row.total, '\t', row.own,
                      '\t', key.second, '\n');
  return table;
}

std::set<ActivityType> activities() {
  std::set<ActivityType> set = {ActivityType::CPU};
  if (cq_cuda_device_count() > 0)
    set.insert(ActivityType::CUDA);
  return set;
}

thread_local std::vector<std::pair<std::string, std::unique_ptr<at::RecordFunction>>> open_spans;

// Communication, which runs on threads of c10d that the profiler sees only in part. Overlapping
// events get different rows.
struct Background {
  struct Event {
    std::string name;
    size_t row;
    // Nanoseconds of the system clock, as in the profiler's events; end is 0 while it runs.
    int64_t start, end;
  };
  std::mutex mutex;
  bool on = false;
  int recording = 0; // number of the trace; an event may end after its trace
  std::vector<Event> events;
  std::vector<bool> taken; // rows
};

Background &background() {
  static auto *a = new Background; // not freed: threads may end an event as the program exits
  return *a;
}

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string quoted(const std::string &text) {
  std::string s = "\"";
  for (char c : text)
    if (c == '"' || c == '\\')
      (s += '\\') += c;
    else
      s += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  return s + '"';
}

// Inserts the events into the trace file that the profiler wrote.
void add_events(const char *path, const std::vector<Background::Event> &events) {
  if (events.empty())
    return;
  std::stringstream file;
  file << std::ifstream(path, std::ios::binary).rdbuf();
  const std::string text = file.str(),
                    base = "\"baseTimeNanoseconds\":", list = "\"traceEvents\": [";
  const size_t at = text.find(base), begin = text.find(list);
  TORCH_CHECK(at != text.npos && begin != text.npos,
              "the profiler's trace file has an unexpected format");
  const int64_t zero = std::strtoll(text.c_str() + at + base.size(), nullptr, 10);
  std::ostringstream added;
  added << std::fixed;
  added.precision(3);
  size_t rows = 0;
  for (auto &e : events) {
    rows = std::max(rows, e.row + 1);
    added << "\n{\"ph\":\"X\",\"cat\":\"communication\",\"name\":" << quoted(e.name)
          << ",\"pid\":" << getpid() << ",\"tid\":" << (1 << 30) + e.row
          << ",\"ts\":" << (e.start - zero) / 1e3 << ",\"dur\":" << (e.end - e.start) / 1e3 << "},";
  }
  for (size_t row = 0; row < rows; row++)
    added << "\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":" << getpid()
          << ",\"tid\":" << (1 << 30) + row << ",\"args\":{\"name\":\"communication " << row + 1
          << "\"}},";
  std::ofstream out(path, std::ios::binary);
  out << text.substr(0, begin + list.size()) << added.str() << text.substr(begin + list.size());
  TORCH_CHECK(out.flush(), "could not be written");
}

} // namespace

std::function<void()> conquer::trace_background(const std::string &name) {
  Background &a = background();
  std::lock_guard<std::mutex> lock(a.mutex);
  if (!a.on)
    return nullptr;
  const size_t row = std::find(a.taken.begin(), a.taken.end(), false) - a.taken.begin(),
               index = a.events.size();
  if (row == a.taken.size())
    a.taken.push_back(false);
  a.taken[row] = true;
  a.events.push_back({open_spans.empty() ? name : open_spans.back().first, row, now(), 0});
  return [&a, row, index, recording = a.recording] {
    std::lock_guard<std::mutex> lock(a.mutex);
    if (recording == a.recording && a.on) {
      a.events[index].end = now();
      a.taken[row] = false;
    }
  };
}

int cq_span_begin(const char *name) {
  return guarded([&] {
    auto record = std::make_unique<at::RecordFunction>(at::RecordScope::USER_SCOPE);
    if (record->isActive())
      record->before(std::string(name));
    open_spans.emplace_back(name, std::move(record));
    return 0;
  });
}

void cq_span_end(void) { open_spans.pop_back(); }

int cq_trace_begin(void) {
  return guarded([&] {
    setenv("KINETO_LOG_LEVEL", "99", 0); // else it warns on machines without a GPU
    // Kineto initializes its client, which libtorch registered while it was loaded, with its first
    // profile, and prints an error if that runs on another thread. A goroutine's thread is another:
    // so the client is registered again here.
    if (!libkineto::api().isProfilerRegistered())
      libkineto::api().registerClient(libkineto::api().client());
    ProfilerConfig config(ProfilerState::KINETO);
    profiler::prepareProfiler(config, activities());
    profiler::enableProfiler(config, activities(),
                             {at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE});
    Background &a = background();
    std::lock_guard<std::mutex> lock(a.mutex);
    a.events.clear();
    a.taken.clear();
    a.recording++;
    a.on = true;
    return 0;
  });
}

int cq_trace_end(const char *path, const char **table) {
  static thread_local std::string text;
  return guarded([&] {
    if (cq_cuda_device_count() > 0 && cq_cuda_synchronize(0))
      return 1;
    std::vector<Background::Event> events;
    {
      Background &a = background();
      std::lock_guard<std::mutex> lock(a.mutex);
      a.on = false;
      events = std::move(a.events);
    }
    for (auto &e : events)
      if (!e.end)
        e.end = now();
    auto result = profiler::disableProfiler();
    result->save(path);
    add_events(path, events);
    text = table_of(result->events());
    *table = text.c_str();
    return 0;
  });
}
