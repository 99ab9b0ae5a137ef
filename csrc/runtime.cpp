// runtime.cpp: scopes, errors and mapped files. A scope is a mark in a per-thread stack of tensor handles: closing it
// frees every handle above the mark. libtorch counts references itself, so a scope frees handles, never storage that
// something else still uses.
#include "internal.h"

#include <ATen/Parallel.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
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

// OpenMP keeps its number of threads for each thread of the process, libtorch asks it once a thread, and a goroutine
// moves from thread to thread: each takes on the number at its next scope. Two threads of unlike numbers would cut sums
// differently.
static std::atomic<int> named_threads{0};

static void follow_threads() {
  thread_local int mine = 0;
  if (int n = named_threads.load(std::memory_order_relaxed); n != mine)
    at::set_num_threads(mine = n);
}

void cq_set_threads(int n) {
  named_threads = n;
  follow_threads();
}

int cq_threads(void) { return at::get_num_threads(); }

void cq_scope_open(void) {
  follow_threads();
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
    return fail("there is no scope outside to keep the tensor in");
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

// ---- tensors
// ---------------------------------------------------------------------------------------------------------

void cq_tensor_describe(cq_tensor t, int *rank, int *dtype, int *device, int64_t *sizes, int room) {
  const auto &tensor = *static_cast<at::Tensor *>(t);
  *rank = static_cast<int>(tensor.dim());
  *dtype = static_cast<int>(tensor.scalar_type());
  *device = tensor.is_cuda() ? tensor.get_device() : -1;
  for (int i = 0; i < *rank && i < room; i++)
    sizes[i] = tensor.size(i);
}

int cq_tensor_read(cq_tensor t, void *data, size_t bytes) {
  return guarded([&] {
    at::Tensor source = tensor_of(t).detach().to(at::kCPU).contiguous();
    if (source.nbytes() != bytes)
      return fail("the tensor has " + std::to_string(source.nbytes()) + " bytes, the buffer " + std::to_string(bytes));
    if (bytes)
      std::memcpy(data, source.const_data_ptr(), bytes);
    return 0;
  });
}

int cq_split(cq_tensor t, int64_t dim, const int64_t *sizes, int n, cq_tensor *out) {
  return guarded([&] {
    auto parts = at::split_with_sizes(tensor_of(t), at::IntArrayRef(sizes, n), dim);
    for (int i = 0; i < n; i++)
      if (give(out + i, parts[i]))
        return 1;
    return 0;
  });
}

int cq_tensor_from(const void *data, size_t bytes, const int64_t *sizes, int rank, int dtype, cq_tensor *out) {
  return guarded([&] {
    at::Tensor t = at::empty(at::IntArrayRef(sizes, rank), at::TensorOptions().dtype(at::ScalarType(dtype)));
    if (t.nbytes() != bytes)
      return fail("shape " + c10::str(t.sizes()) + " takes " + std::to_string(t.nbytes()) + " bytes, " +
                  std::to_string(bytes) + " were given");
    if (bytes)
      std::memcpy(t.mutable_data_ptr(), data, bytes);
    return give(out, std::move(t));
  });
}

namespace {
struct MappedFile {
  uint8_t *data = nullptr;
  size_t bytes = 0;
  ~MappedFile() {
    if (data)
      munmap(data, bytes);
  }
};
} // namespace

struct cq_mapping {
  std::shared_ptr<MappedFile> file;
};

int cq_map_open(const char *path, cq_mapping **out, const uint8_t **data, size_t *bytes) {
  return guarded([&] {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
      return fail(std::strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0) {
      int code = errno;
      close(fd);
      return fail(std::strerror(code));
    }
    if (!S_ISREG(st.st_mode)) {
      close(fd);
      return fail("not a regular file");
    }
    auto file = std::make_shared<MappedFile>();
    file->bytes = static_cast<size_t>(st.st_size);
    if (file->bytes) {
      void *p = mmap(nullptr, file->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
      if (p == MAP_FAILED) {
        int code = errno;
        close(fd);
        return fail(std::strerror(code));
      }
      file->data = static_cast<uint8_t *>(p);
    }
    close(fd);
    *data = file->data;
    *bytes = file->bytes;
    *out = new cq_mapping{std::move(file)};
    return 0;
  });
}

void cq_map_close(cq_mapping *map) { delete map; }

int cq_map_tensor(cq_mapping *map, size_t offset, const int64_t *sizes, int rank, int dtype, cq_tensor *out) {
  return guarded([&] {
    auto type = at::ScalarType(dtype);
    size_t bytes = c10::elementSize(type);
    for (int i = 0; i < rank; i++)
      if (sizes[i] < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(sizes[i]), &bytes))
        return fail("the tensor's size overflows");
    const auto &file = map->file;
    if (offset > file->bytes || bytes > file->bytes - offset)
      return fail("the tensor reaches beyond the end of the file");
    if (offset % c10::elementSize(type) != 0)
      return fail("the tensor's data is not aligned to its dtype");
    if (bytes == 0)
      return give(out, at::empty(at::IntArrayRef(sizes, rank), at::TensorOptions().dtype(type)));
    auto holder = file; // the deleter's copy keeps the mapping alive
    return give(out, at::from_blob(
                         file->data + offset, at::IntArrayRef(sizes, rank), [holder](void *) {},
                         at::TensorOptions().dtype(type)));
  });
}

double cq_time_add(cq_tensor a, cq_tensor b, int64_t n) {
  const at::Tensor &x = tensor_of(a), &y = tensor_of(b);
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < n; i++) {
    cq_scope_open();
    cq_tensor out;
    guarded([&] { return give(&out, at::add(x, y)); });
    cq_scope_close();
  }
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / n;
}
