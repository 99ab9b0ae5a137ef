// scope.cpp: errors, scopes and the number of threads. A scope is a mark in a per-thread stack of
// tensor handles; closing it frees the handles above the mark. libtorch counts references, so a
// scope never frees storage that is still in use.
#include "handles.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <vector>

namespace conquer {

namespace {

thread_local std::string last_error;
std::atomic<int64_t> live_tensors{0};

struct ScopeStack {
  std::vector<at::Tensor *> handles; // of all open scopes, innermost last
  std::vector<size_t> marks;         // where each open scope begins in `handles`
};
thread_local ScopeStack scopes;

void free_handle(at::Tensor *t) {
  delete t;
  live_tensors.fetch_sub(1, std::memory_order_relaxed);
}

} // namespace

int fail(const std::string &reason) {
  last_error = reason;
  return 1;
}

std::vector<at::Tensor> tensors_of(const cq_tensor *ts, int n) {
  std::vector<at::Tensor> result;
  result.reserve(n);
  for (int i = 0; i < n; i++)
    result.push_back(tensor_of(ts[i]));
  return result;
}

int give(cq_tensor *out, at::Tensor t) {
  auto *handle = new at::Tensor(std::move(t));
  if (cq_scope_adopt(handle))
    return 1;
  *out = handle;
  return 0;
}

} // namespace conquer

using namespace conquer;

const char *cq_last_error(void) { return last_error.c_str(); }

// OpenMP's number of threads belongs to each thread of the process, and a goroutine moves between
// threads. So each thread adopts the number when it opens a scope. With different numbers, sums
// would be split differently.
static std::atomic<int> chosen_threads{0};

static void adopt_threads() {
  thread_local int mine = 0;
  if (int n = chosen_threads.load(std::memory_order_relaxed); n != mine)
    at::set_num_threads(mine = n);
}

void cq_set_threads(int n) {
  chosen_threads = n;
  adopt_threads();
}

int cq_threads(void) { return at::get_num_threads(); }

void cq_scope_open(void) {
  adopt_threads();
  scopes.marks.push_back(scopes.handles.size());
}

void cq_scope_close(void) {
  if (scopes.marks.empty())
    return;
  size_t mark = scopes.marks.back();
  scopes.marks.pop_back();
  while (scopes.handles.size() > mark) { // newest first, as C++ would destroy locals
    at::Tensor *t = scopes.handles.back();
    scopes.handles.pop_back();
    free_handle(t);
  }
}

int cq_scope_adopt(cq_tensor t) {
  auto *handle = static_cast<at::Tensor *>(t);
  live_tensors.fetch_add(1, std::memory_order_relaxed);
  if (scopes.marks.empty()) {
    free_handle(handle);
    return fail("no scope is open on this thread: call it inside torch.Run or torch.Scoped");
  }
  scopes.handles.push_back(handle);
  return 0;
}

int cq_scope_keep(cq_tensor t) {
  if (scopes.marks.size() < 2)
    return fail("no scope encloses the innermost one, so the tensor cannot be kept");
  size_t mark = scopes.marks.back();
  for (size_t i = scopes.handles.size(); i-- > mark;)
    if (scopes.handles[i] == t) {
      std::swap(scopes.handles[i], scopes.handles[mark]);
      scopes.marks.back() = mark + 1;
      return 0;
    }
  return fail("the tensor does not belong to the innermost scope");
}

int cq_scope_release(cq_tensor t) {
  for (size_t i = scopes.handles.size(); i-- > 0;)
    if (scopes.handles[i] == t) {
      scopes.handles.erase(scopes.handles.begin() + i);
      for (auto &mark : scopes.marks)
        if (mark > i)
          mark--;
      return 0;
    }
  return fail("the tensor does not belong to an open scope of this thread");
}

void cq_tensor_free(cq_tensor t) { free_handle(static_cast<at::Tensor *>(t)); }

int64_t cq_live_tensors(void) { return live_tensors.load(std::memory_order_relaxed); }

int cq_scope_depth(void) { return static_cast<int>(scopes.marks.size()); }
