// memory.cpp: the allocator of libtorch's CPU tensors. glibc returns large blocks to the system as
// soon as they are freed. A training step allocates and frees its activations and gradients every
// time, so the kernel would clear them again, 4 KB at each page fault: 17 % of a step. This
// allocator keeps freed blocks for reuse, on huge pages, where a fault clears 2 MB.
//
// Memory is mapped in regions, which are divided into adjacent blocks. Free neighbours are merged
// at once; a request takes the smallest free block that fits. glibc serves small blocks.
#include "memory.h"
#include "handles.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

namespace conquer {

namespace {

constexpr size_t huge_page = 2 << 20;
constexpr size_t least = 128 << 10;       // smaller blocks come from glibc
constexpr size_t alignment = 64;          // of the widest vector loads
constexpr size_t step = 4 << 10;          // sizes are rounded up to a multiple
constexpr size_t region_size = 64 << 20;  // minimum; a larger request gets a region of its own size
constexpr size_t always_kept = 512 << 20; // free memory that is never returned to the system

size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Bytes that CPU tensors and kernels hold, glibc's blocks included, and the maximum since the last
// reset.
std::atomic<int64_t> held{0}, most_held{0};

void hold(int64_t bytes) {
  const int64_t now = held.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t most = most_held.load(std::memory_order_relaxed);
  while (now > most && !most_held.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

class BlockAllocator final : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t n) override {
    void *data = block(n);
    return {data, data, &release, c10::Device(c10::kCPU)};
  }

  void *block(size_t n) {
    if (n >= least)
      return take(rounded(n, step));
    void *data = std::aligned_alloc(alignment, rounded(n, alignment));
    TORCH_CHECK(data || n == 0, "out of memory: no ", n, " bytes are left");
    hold(malloc_usable_size(data));
    return data;
  }

  static void release(void *data);

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void *to, const void *from, size_t n) const override {
    default_copy_data(to, from, n);
  }

private:
  struct Block {
    size_t size;
    bool free;
    char *region; // start of its region; blocks of two regions are never merged
  };
  using Blocks = std::map<char *, Block>;

  std::mutex mutex_;
  Blocks blocks_;                            // every block of every region
  std::map<char *, size_t> regions_;         // their sizes
  std::set<std::pair<size_t, char *>> free_; // by size, then by address
  size_t used_ = 0, unused_ = 0;             // bytes in allocated and in free blocks

  void *take(size_t n) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.lower_bound({n, nullptr});
    if (best == free_.end())
      best = map_region(n);
    const Blocks::iterator at = blocks_.find(best->second);
    free_.erase(best);
    Block &block = at->second;
    if (block.size > n) {
      char *rest = at->first + n;
      blocks_.emplace_hint(std::next(at), rest, Block{block.size - n, true, block.region});
      free_.emplace(block.size - n, rest);
      block.size = n;
    }
    block.free = false;
    used_ += n;
    unused_ -= n;
    hold(n);
    return at->first;
  }

  // Maps a region for at least n bytes, as one free block.
  std::set<std::pair<size_t, char *>>::iterator map_region(size_t n) {
    const size_t size = rounded(std::max(n, region_size), huge_page), room = size + huge_page;
    void *mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(mapped != MAP_FAILED, "out of memory: the system gave no ", n >> 20, " MB more, ",
                used_ >> 20, " MB are in use");
    char *from = static_cast<char *>(mapped);
    char *start = reinterpret_cast<char *>(rounded(reinterpret_cast<size_t>(from), huge_page));
    if (start > from)
      munmap(from, start - from);
    if (start + size < from + room)
      munmap(start + size, from + room - start - size);
    madvise(start, size, MADV_HUGEPAGE); // ignored by a system without huge pages
    regions_.emplace(start, size);
    blocks_.emplace(start, Block{size, true, start});
    unused_ += size;
    return free_.emplace(size, start).first;
  }

  // Frees data and returns true if it is a block of a region.
  bool give_back(void *data) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto at = blocks_.find(static_cast<char *>(data));
    if (at == blocks_.end())
      return false;
    hold(-int64_t(at->second.size));
    used_ -= at->second.size;
    unused_ += at->second.size;
    at->second.free = true;
    if (auto next = std::next(at); next != blocks_.end() && mergeable(at->second, next->second)) {
      free_.erase({next->second.size, next->first});
      at->second.size += next->second.size;
      blocks_.erase(next);
    }
    if (at != blocks_.begin()) {
      if (auto before = std::prev(at); mergeable(before->second, at->second)) {
        free_.erase({before->second.size, before->first});
        before->second.size += at->second.size;
        blocks_.erase(at);
        at = before;
      }
    }
    free_.emplace(at->second.size, at->first);
    // The next training step reuses this memory. Empty regions beyond that amount are unmapped.
    if (unused_ > always_kept && unused_ > used_ &&
        at->second.size == regions_[at->second.region]) {
      free_.erase({at->second.size, at->first});
      unused_ -= at->second.size;
      munmap(at->first, at->second.size);
      regions_.erase(at->first);
      blocks_.erase(at);
    }
    return true;
  }

  static bool mergeable(const Block &a, const Block &b) {
    return a.free && b.free && a.region == b.region;
  }
};

BlockAllocator &allocator() {
  static auto *a = new BlockAllocator; // never destroyed: tensors may outlive everything else
  return *a;
}

void BlockAllocator::release(void *data) {
  if (data && !allocator().give_back(data)) {
    hold(-int64_t(malloc_usable_size(data)));
    std::free(data);
  }
}

// Runs before main and before any tensor. oneDNN's scratch memory comes from glibc, which is told
// to keep it.
const bool installed = [] {
  c10::SetCPUAllocator(&allocator(), /*priority=*/1);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  return true;
}();

} // namespace

void *take_scratch(size_t n) { return allocator().block(n); }
void give_scratch(void *data) { BlockAllocator::release(data); }

} // namespace conquer

void cq_cpu_memory(int64_t *now, int64_t *most) {
  *now = conquer::held;
  *most = conquer::most_held;
}

void cq_cpu_reset_peak(void) { conquer::most_held = conquer::held.load(); }
