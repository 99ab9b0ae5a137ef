// triton.cpp: finds, loads and launches compiled Triton kernels: cubins for the device's
// architecture, or PTX that the driver compiles. A variant is loaded at its first launch and stays
// loaded.
#include "triton.h"

#include "../runtime/handles.h"

#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <unordered_map>

namespace conquer::triton {

Arguments &Arguments::operator<<(int64_t v) {
  TORCH_CHECK(v >= INT32_MIN && v <= INT32_MAX, "a kernel argument of ", v,
              " does not fit 32 bits: the tensor is too large");
  return add(static_cast<uint32_t>(static_cast<int32_t>(v)));
}

std::vector<void *> Arguments::pointers() {
  add(0).add(0); // scratch
  return order;
}

namespace {

decltype(&cuTensorMapEncodeTiled) encoder() {
  static const auto encode = [] {
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    C10_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                    cudaEnableDefault, &found));
    TORCH_CHECK(f, "the NVIDIA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f);
  }();
  return encode;
}

} // namespace

Arguments &Arguments::operator<<(const Boxes &b) {
  auto type = b.tensor.scalar_type() == at::kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                  : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  auto size = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  cuuint64_t shape[] = {size(b.shape[2]), size(b.shape[1]), size(b.shape[0])},
             strides[] = {size(b.strides[1] * 2), size(b.strides[0] * 2)}; // in bytes
  cuuint32_t box[] = {64, static_cast<cuuint32_t>(b.rows), 1}, steps[] = {1, 1, 1};
  maps.emplace_back();
  CUresult code = encoder()(&maps.back(), type, 3, b.tensor.data_ptr(), shape, strides, box, steps,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TORCH_CHECK(code == CUDA_SUCCESS, "the NVIDIA driver refuses a tensor map of [", b.shape[0], ",",
              b.shape[1], ",", b.shape[2], "] (error ", static_cast<int>(code), ")");
  order.push_back(&maps.back());
  // Triton's kernels also take shape and strides, even if they do not read them.
  *this << b.shape[0] << b.shape[1] << b.shape[2];
  return add(size(b.strides[0])).add(size(b.strides[1])).add(1);
}

namespace {

struct Variant {
  std::string file, name;
  int shared, warps;
  bool early = false; // may begin before the previous kernel has ended
  cudaKernel_t kernel = nullptr;
};

// The kernels for one device.
struct Set {
  int device;
  std::string folder;
  std::unordered_map<std::string, Variant> variants;
};

// $CONQUER_KERNELS, or the folder `kernels` beside this library.
std::string kernel_folder() {
  if (const char *set = std::getenv("CONQUER_KERNELS"))
    return set;
  Dl_info self;
  if (!dladdr(reinterpret_cast<void *>(&launch), &self) || !self.dli_fname)
    return "kernels";
  std::string path(self.dli_fname);
  return path.substr(0, path.find_last_of('/') + 1) + "kernels";
}

bool read_manifest(Set &set, const std::string &folder) {
  std::ifstream file(folder + "/manifest");
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string key;
    Variant v;
    if (fields >> key >> v.file >> v.name >> v.shared >> v.warps >> v.early)
      set.variants.emplace(key, v);
  }
  set.folder = folder;
  return !set.variants.empty();
}

std::pair<int, int> capability_of(int device) {
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return {major, minor};
}

// A cubin runs on its own architecture and on later minor versions of it.
Set load_set(int device) {
  Set set;
  set.device = device;
  auto [major, minor] = capability_of(device);
  std::string root = kernel_folder();
  for (int m = minor; m >= 0; m--)
    if (read_manifest(set, root + "/sm_" + std::to_string(major * 10 + m)))
      return set;
  read_manifest(set, root + "/ptx");
  return set;
}

std::string read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  TORCH_CHECK(file, "cannot read the kernel ", path);
  return bytes.str();
}

void load(const Set &set, Variant &v) {
  std::string code = read_file(set.folder + "/" + v.file);
  cudaLibrary_t library;
  C10_CUDA_CHECK(
      cudaLibraryLoadData(&library, code.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0));
  C10_CUDA_CHECK(cudaLibraryGetKernel(&v.kernel, library, v.name.c_str()));
  if (v.shared > 48 * 1024)
    C10_CUDA_CHECK(cudaKernelSetAttributeForDevice(
        v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, v.shared, set.device));
}

std::mutex mutex;

// The kernels for the current device. The mutex is held.
Set &current_set() {
  static std::map<int, Set> sets;
  int device = c10::cuda::current_device();
  auto set = sets.find(device);
  if (set == sets.end())
    set = sets.emplace(device, load_set(device)).first;
  return set->second;
}

} // namespace

bool available() {
  std::lock_guard<std::mutex> lock(mutex);
  static bool told = false;
  bool any = !current_set().variants.empty();
  if (!any && !told) {
    std::fprintf(stderr,
                 "conquer: no compiled kernels in %s: libtorch's slower ones are used, and the "
                 "state-space scan does not run; `make kernels` compiles them\n",
                 kernel_folder().c_str());
    told = true;
  }
  return any;
}

std::string capability() {
  auto [major, minor] = capability_of(c10::cuda::current_device());
  return std::to_string(major) + "." + std::to_string(minor);
}

int sm_count() {
  int count = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
  return count;
}

bool has(const std::string &key) {
  std::lock_guard<std::mutex> lock(mutex);
  return current_set().variants.count(key) > 0;
}

void launch(const std::string &key, dim3 grid, Arguments &arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0)
    return;
  Variant variant;
  {
    std::lock_guard<std::mutex> lock(mutex);
    Set &set = current_set();
    auto found = set.variants.find(key);
    TORCH_CHECK(
        found != set.variants.end(), "no compiled kernel ", key, " in ", kernel_folder(),
        ": build the target triton_kernels for this GPU, with TRITON_FULL=ON for other shapes");
    if (!found->second.kernel)
      load(set, found->second);
    variant = found->second;
  }
  auto pointers = arguments.pointers();
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(variant.warps * 32);
  config.dynamicSmemBytes = variant.shared;
  config.stream = c10::cuda::getCurrentCUDAStream();
  // An early kernel reads weights before the previous kernel has ended. That is safe only if no
  // kernel writes weights: without gradients, none does.
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  if (variant.early && !at::GradMode::is_enabled()) {
    config.attrs = &early;
    config.numAttrs = 1;
  }
  C10_CUDA_CHECK(cudaLaunchKernelExC(&config, reinterpret_cast<const void *>(variant.kernel),
                                     pointers.data()));
}

} // namespace conquer::triton
