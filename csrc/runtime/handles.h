// handles.h: tensors behind the C header's handles, errors and scopes.
#pragma once

#include <ATen/ATen.h>

#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "../conquer.h"

namespace conquer {

// Stores the reason of a failure for cq_last_error and returns 1.
int fail(const std::string &reason);

// The tensor behind a handle, or an undefined tensor for NULL.
inline at::Tensor tensor_of(cq_tensor t) {
  return t ? *static_cast<at::Tensor *>(t) : at::Tensor();
}
inline std::optional<at::Tensor> optional_of(cq_tensor t) {
  return t ? std::optional<at::Tensor>(*static_cast<at::Tensor *>(t)) : std::nullopt;
}
std::vector<at::Tensor> tensors_of(const cq_tensor *ts, int n);

// Makes a handle in the calling thread's innermost scope. Returns 0, or 1 on failure.
int give(cq_tensor *out, at::Tensor t);

// Runs f, which returns 0 or 1 like the C functions, and turns an exception into a failure.
template <class F> int guarded(F &&f) noexcept {
  try {
    return f();
  } catch (const c10::Error &e) {
    return fail(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return fail(e.what());
  } catch (...) {
    return fail("unknown C++ exception");
  }
}

// While a trace is recorded, begins an event of it on a row of its own, named after the calling
// thread's innermost cq_span, or `name` if there is none. The result ends the event, on any thread;
// it is empty if no trace is recorded.
std::function<void()> trace_background(const std::string &name);

} // namespace conquer
