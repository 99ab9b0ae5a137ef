// threads.cpp: the threads behind parallel_for. It also shortens the waits of OpenMP's threads.
#include "threads.h"

#include <ATen/Parallel.h>

#include <linux/futex.h>
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <system_error>
#include <thread>

namespace conquer::cpu {

namespace {

constexpr auto spin_time = std::chrono::microseconds(50);
constexpr int64_t pieces_per_thread = 8;
constexpr int64_t most_threads = 4096; // 16 bits hold the number of pieces

// Sleeps while *word is `value`. It may also return early.
void sleep_on(std::atomic<uint32_t> &word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake(std::atomic<uint32_t> &word, int threads) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until *word differs from `value` or spin_time has passed. Returns the value seen last.
uint32_t spin_on(const std::atomic<uint32_t> &word, uint32_t value) {
  const auto end = std::chrono::steady_clock::now() + spin_time;
  do
    for (int i = 0; i < 32; i++) {
      if (uint32_t now = word.load(std::memory_order_acquire); now != value)
        return now;
      relax();
    }
  while (std::chrono::steady_clock::now() < end);
  return value;
}

// A thread that shares a loop with others runs loops inside it alone.
thread_local bool inside = false;

// Makes OpenMP's waits short. libtorch's own loops run on GNU's OpenMP, whose threads spin for some
// milliseconds before they sleep: they keep processors from Team's threads and from other programs.
// Its manual (GOMP_SPINCOUNT) says that they spin only 100 times while the runtime has more threads
// than processors. A thread that sleeps keeps an idle team, so that this team and that of a loop on
// at::get_num_threads() threads exceed the processors. OMP_WAIT_POLICY and GOMP_SPINCOUNT take
// precedence.
void shorten_waits_of_openmp() {
  const int extra = std::max(1, omp_get_num_procs() - at::get_num_threads() + 1);
  std::thread([extra] {
#pragma omp parallel num_threads(extra + 1)
    {
    }
    for (;;)
      ::pause();
  }).detach();
}

// The worker threads of the process and the loop that they share. There is one loop at a time.
class Team {
public:
  // Runs the loop on `threads` threads with this one. Returns false if another thread's loop runs.
  bool run(int64_t n, int64_t piece, int64_t pieces, int64_t threads,
           void (*run)(const void *, int64_t, int64_t), const void *data) {
    if (taken.exchange(true, std::memory_order_acquire))
      return false;
    grow(int(threads) - 1);
    // No thread reads these: `state` still says that the last loop has no pieces left.
    loop.run.store(run, std::memory_order_relaxed);
    loop.data.store(data, std::memory_order_relaxed);
    loop.n.store(n, std::memory_order_relaxed);
    loop.piece.store(piece, std::memory_order_relaxed);
    helpers.store(int(threads) - 1, std::memory_order_relaxed);
    finished.store(0, std::memory_order_relaxed);
    const uint32_t call = calls.load(std::memory_order_relaxed) + 1;
    state.store(uint64_t(call) << 32 | uint64_t(pieces) << 16, std::memory_order_release);
    calls.store(call);
    if (sleeping.load())
      wake(calls, size > threads - 1 ? INT_MAX : int(std::min(threads, pieces) - 1));

    inside = true;
    take_pieces();
    inside = false;
    uint32_t done = finished.load(std::memory_order_acquire);
    while (done != pieces) {
      if (uint32_t now = spin_on(finished, done); now != done) {
        done = now;
        continue;
      }
      caller_sleeps.store(true);
      if ((done = finished.load()) != pieces)
        sleep_on(finished, done);
      caller_sleeps.store(false, std::memory_order_relaxed);
      done = finished.load(std::memory_order_acquire);
    }
    taken.store(false, std::memory_order_release);
    return true;
  }

private:
  // Takes pieces until none is left. A piece is taken by adding one to `state`, which holds the
  // number of the call, its pieces and the next piece. Where that succeeds, the loop is the one
  // that was read before, because a loop with a piece that nobody has taken cannot have ended.
  void take_pieces() {
    uint64_t s = state.load(std::memory_order_acquire);
    for (;;) {
      const int64_t next = s & 0xFFFF, pieces = s >> 16 & 0xFFFF;
      if (next >= pieces)
        return;
      const auto run = loop.run.load(std::memory_order_relaxed);
      const auto data = loop.data.load(std::memory_order_relaxed);
      const int64_t n = loop.n.load(std::memory_order_relaxed),
                    piece = loop.piece.load(std::memory_order_relaxed);
      if (!state.compare_exchange_weak(s, s + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
        continue;
      run(data, next * piece, std::min(n, (next + 1) * piece));
      if (finished.fetch_add(1) + 1 == pieces && caller_sleeps.load())
        wake(finished, 1);
      s = state.load(std::memory_order_acquire);
    }
  }

  void work(int index) {
    inside = true;
    for (uint32_t seen = 0;;) {
      uint32_t call = spin_on(calls, seen);
      while (call == seen) {
        sleeping.fetch_add(1);
        if (calls.load() == seen)
          sleep_on(calls, seen);
        sleeping.fetch_sub(1);
        call = calls.load(std::memory_order_acquire);
      }
      seen = call;
      if (index < helpers.load(std::memory_order_relaxed))
        take_pieces();
    }
  }

  // Starts workers until there are n. If the system refuses one, the loop has fewer threads. The
  // workers leave signals to other threads, as Go's runtime wants.
  void grow(int n) {
    if (size >= n)
      return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      if (size == 0)
        shorten_waits_of_openmp();
      for (; size < n; size++)
        std::thread(&Team::work, this, size).detach();
    } catch (const std::system_error &) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  std::atomic<bool> taken{false};
  int size = 0; // workers; only the thread that holds `taken` uses it
  struct {
    std::atomic<void (*)(const void *, int64_t, int64_t)> run;
    std::atomic<const void *> data;
    std::atomic<int64_t> n, piece;
  } loop;
  std::atomic<int> helpers{0}; // workers that take part in the loop
  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<uint32_t> finished{0}; // pieces
  std::atomic<bool> caller_sleeps{false};
  alignas(64) std::atomic<uint32_t> calls{0};
  std::atomic<int> sleeping{0}; // workers
};

// Never destroyed: workers use it until the process ends.
Team &team() {
  static Team *const t = new Team;
  return *t;
}

} // namespace

void share_out(int64_t n, int64_t grain, void (*run)(const void *data, int64_t begin, int64_t end),
               const void *data) {
  if (n <= 0)
    return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t grains = (n + grain - 1) / grain,
                threads = std::min<int64_t>({at::get_num_threads(), grains, most_threads});
  if (threads == 1 || inside || at::in_parallel_region())
    return run(data, 0, n);
  const int64_t most = threads * pieces_per_thread, piece = (grains + most - 1) / most * grain,
                pieces = (n + piece - 1) / piece;
  // Where two threads of the process compute at once, the second has OpenMP's.
  if (!team().run(n, piece, pieces, threads, run, data))
    at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        run(data, i * piece, std::min(n, (i + 1) * piece));
    });
}

} // namespace conquer::cpu
