// cuda.cpp: loads CUDA at run time. libconquer.so itself needs no CUDA; it opens libtorch_cuda.so
// and then libconquer_cuda.so when a GPU is asked for. The order matters: after a CUDA query before
// libtorch_cuda is loaded, libtorch answers "no CUDA" for the rest of the process.
#include "cuda.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>

#include <cstring>
#include <mutex>

using namespace conquer;

static CudaServices services{};
static bool loaded = false;

// Opens a library in this library's folder, or else through the loader's search path.
static void *open_beside(const char *name) {
  Dl_info self;
  if (dladdr(reinterpret_cast<void *>(&cq_cuda_load), &self) && self.dli_fname) {
    std::string path(self.dli_fname);
    path = path.substr(0, path.find_last_of('/') + 1) + name;
    if (void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL))
      return handle;
  }
  return dlopen(name, RTLD_NOW | RTLD_GLOBAL);
}

// Why the driver or its devices do not work with this build of libtorch, which is for CUDA 13; ""
// if they do.
static std::string unfit(void *driver) {
  auto call = [&](const char *name, auto... arguments) {
    auto f = reinterpret_cast<int (*)(decltype(arguments)...)>(dlsym(driver, name));
    return f ? f(arguments...) : -1;
  };
  int version = 0, count = 0;
  call("cuDriverGetVersion", &version);
  if (version < 13000)
    return c10::str("the NVIDIA driver is for CUDA ", version / 1000, ".", version % 1000 / 10,
                    ", libtorch needs 13.0: update the driver");
  if (int code = call("cuInit", 0u))
    return c10::str("the NVIDIA driver does not start (error ", code,
                    "): no GPU is there, or none may be used");
  call("cuDeviceGetCount", &count);
  int best = 0;
  for (int i = 0; i < count; i++) {
    int device = 0, major = 0, minor = 0;
    call("cuDeviceGet", &device, i);
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    call("cuDeviceGetAttribute", &major, 75, device);
    call("cuDeviceGetAttribute", &minor, 76, device);
    best = std::max(best, major * 10 + minor);
  }
  if (count > 0 && best < 75)
    return c10::str("the GPU is of compute capability ", best / 10, ".", best % 10,
                    ", libtorch needs 7.5 or later");
  return "";
}

// Returns 2 on a machine without a driver, 1 if something else is wrong.
int cq_cuda_load(void) {
  static std::once_flag once;
  static std::string reason;
  static bool none = false;
  std::call_once(once, [] {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!driver) {
      none = access("/dev/nvidiactl", F_OK) != 0;
      reason = none ? "no NVIDIA driver here (libcuda.so.1 does not load)"
                    : "this machine has an NVIDIA driver, but libcuda.so.1 does not load: in a "
                      "container, let it have "
                      "the driver's libraries (NVIDIA_DRIVER_CAPABILITIES=compute,utility)";
      return;
    }
    if (!(reason = unfit(driver)).empty())
      return;
    // This library's search path has libtorch_cuda.so.
    if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
      reason = std::string("libtorch's CUDA part does not load: ") + dlerror() +
               "; build with `make build CUDA=1`, which fetches CUDA's libraries, or with "
               "LIBTORCH=<site-packages of a "
               "PyTorch 2.11 for CUDA 13>";
      return;
    }
    void *ours = open_beside("libconquer_cuda.so");
    if (!ours) {
      reason = std::string("libconquer_cuda.so does not load: ") + dlerror();
      return;
    }
    if (!services.device_count) { // the library registers them as it is opened
      reason = "libconquer_cuda.so is from another version of this program";
      return;
    }
    if (services.device_count() < 1) {
      reason = "the NVIDIA driver finds no device";
      return;
    }
    loaded = true;
  });
  return loaded ? 0 : fail(reason) + none;
}

int cq_cuda_device_count(void) { return loaded ? services.device_count() : 0; }

static int need_cuda() { return loaded ? 0 : fail("CUDA was not loaded"); }

int cq_cuda_describe(int device, cq_cuda_info *info) {
  return need_cuda() || services.describe(device, info);
}
int cq_cuda_reset_peak(int device) { return need_cuda() || services.reset_peak(device); }
int cq_cuda_synchronize(int device) { return need_cuda() || services.synchronize(device); }

int cq_graph_begin(int device, cq_graph **out) {
  return need_cuda() || services.graph_begin(device, out);
}
int cq_graph_end(cq_graph *graph) { return services.graph_end(graph); }
int cq_graph_replay(cq_graph *graph) { return services.graph_replay(graph); }
void cq_graph_abandon(cq_graph *graph) { services.graph_abandon(graph); }
void cq_graph_free(cq_graph *graph) { services.graph_free(graph); }

const CudaServices &conquer::cuda_services() { return services; }
void conquer::register_cuda_services(const CudaServices &s) { services = s; }

int cq_upload(cq_tensor t, int device, cq_tensor *out) {
  return need_cuda() ||
         guarded([&] { return give(out, services.upload(tensor_of(t).detach(), device)); });
}

struct cq_fetch {
  at::Tensor copy;
  std::shared_ptr<void> event; // none on the CPU
};

int cq_fetch_begin(cq_tensor t, cq_fetch **out) {
  return guarded([&] {
    at::Tensor source = tensor_of(t).detach();
    auto fetch = std::make_unique<cq_fetch>();
    fetch->copy = source.is_cuda() ? services.fetch(source, fetch->event)
                                   : source.clone(at::MemoryFormat::Contiguous);
    *out = fetch.release();
    return 0;
  });
}

int cq_fetch_end(cq_fetch *fetch, void *data, size_t bytes) {
  std::unique_ptr<cq_fetch> owned(fetch);
  return guarded([&] {
    if (fetch->event)
      services.wait(fetch->event);
    if (!data)
      return 0;
    if (fetch->copy.nbytes() != bytes)
      return fail("the tensor has " + std::to_string(fetch->copy.nbytes()) + " bytes, the buffer " +
                  std::to_string(bytes));
    std::memcpy(data, fetch->copy.const_data_ptr(), bytes);
    return 0;
  });
}
