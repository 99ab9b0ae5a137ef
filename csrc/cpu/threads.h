// threads.h: divides a loop among threads that may be late.
//
// OpenMP gives each thread a fixed part of a loop and waits for all of them. On a machine that is
// busy with other work, a thread that the system has not scheduled keeps the others waiting. Here
// the loop is cut into more pieces than there are threads, each thread takes the next piece when it
// has finished one, and a thread that comes late finds nothing left to do.
//
// A thread that waits spins for spin_time, which is meant to cover the gap between two operators of
// a model, and then sleeps.
#pragma once

#include <stdint.h>

namespace conquer::cpu {

// Calls run(data, begin, end) for pieces that cover [0, n), on this thread and others, and returns
// when all have returned. Borders between pieces are multiples of grain. They depend on n, grain
// and the number of threads, not on timing. run must not throw.
void share_out(int64_t n, int64_t grain, void (*run)(const void *data, int64_t begin, int64_t end),
               const void *data);

// share_out with a function object, such as a lambda: f(begin, end).
template <class F> void parallel_for(int64_t n, int64_t grain, const F &f) {
  share_out(
      n, grain,
      [](const void *data, int64_t begin, int64_t end) {
        (*static_cast<const F *>(data))(begin, end);
      },
      &f);
}

} // namespace conquer::cpu
