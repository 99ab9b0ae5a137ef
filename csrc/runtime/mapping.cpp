// mapping.cpp: files mapped into memory, and tensors that view them.
#include "handles.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

using namespace conquer;

namespace {
struct Pages {
  uint8_t *data = nullptr;
  size_t bytes = 0;
  ~Pages() {
    if (data)
      munmap(data, bytes);
  }
};
} // namespace

struct cq_mapping {
  std::shared_ptr<Pages> file;
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
    auto file = std::make_shared<Pages>();
    file->bytes = static_cast<size_t>(st.st_size);
    if (file->bytes) {
      void *p =
          mmap(nullptr, file->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
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

int cq_map_tensor(cq_mapping *map, size_t offset, const int64_t *sizes, int rank, int dtype,
                  cq_tensor *out) {
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
