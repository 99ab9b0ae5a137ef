// profile.cpp: the time of each operation on a thread, through libtorch's callbacks before and
// after it. The time of the operations inside is subtracted, so that the times add up.
#include "cuda.h"

#include <ATen/record_function.h>

#include <chrono>
#include <map>

namespace conquer {

namespace {

using Clock = std::chrono::steady_clock;

struct Frame {
  Clock::time_point began;
  double inside = 0; // seconds in the operations inside
};

struct Entry {
  double seconds = 0;
  int64_t calls = 0;
};

struct Profile {
  int device = -1;
  bool on = false;
  at::CallbackHandle handle = 0;
  std::vector<Frame> stack;
  std::map<std::string, Entry> entries;
};
thread_local Profile profile;

void wait() {
  if (profile.device >= 0)
    cuda_services().synchronize(profile.device);
}

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction &) {
  wait();
  profile.stack.push_back({Clock::now()});
  return nullptr;
}

void leave(const at::RecordFunction &f, at::ObserverContext *) {
  if (profile.stack.empty()) // entered before the profile began
    return;
  wait();
  const Frame frame = profile.stack.back();
  profile.stack.pop_back();
  const double took = std::chrono::duration<double>(Clock::now() - frame.began).count();
  Entry &entry = profile.entries[f.name()];
  entry.seconds += took - frame.inside;
  entry.calls++;
  if (!profile.stack.empty())
    profile.stack.back().inside += took;
}

} // namespace

} // namespace conquer

using namespace conquer;

int cq_profile_begin(int device) {
  return guarded([&] {
    if (profile.on)
      return fail("this thread is being profiled already");
    profile.entries.clear();
    profile.stack.clear();
    profile.device = device;
    profile.handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&enter, &leave)
            .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION,
                     at::RecordScope::USER_SCOPE}));
    profile.on = true;
    return 0;
  });
}

void cq_profile_end(void) {
  if (profile.on)
    at::removeCallback(profile.handle);
  profile.on = false;
}

int cq_profile_entry(int i, const char **name, double *seconds, int64_t *calls) {
  if (i < 0 || i >= static_cast<int>(profile.entries.size()))
    return fail(c10::str("the profile has no entry ", i));
  const auto &entry = *std::next(profile.entries.begin(), i);
  *name = entry.first.c_str();
  *seconds = entry.second.seconds;
  *calls = entry.second.calls;
  return 0;
}
