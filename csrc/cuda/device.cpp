// What launches ask of the device, and of torch.
#include <dlfcn.h>

#include <array>
#include <atomic>

#include "../out_of_memory.h"
#include "launch.h"

namespace udml {

Listener& listener() {
  static Listener heard = nullptr;
  return heard;
}

void fail(const char* kernel, const char* reason) { STD_TORCH_CHECK(false, kernel, ": ", reason); }

// Memory is what an allocation lacks, if torch does not say otherwise: its message is there from torch 2.13 on.
void allocation_failed(const std::string& size, const std::string& reason) {
  using Function = const char* (*)();
  static const auto told = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const std::string why = told != nullptr ? told() : "";
  const bool lacking = why.empty() || why.find("out of memory") != why.npos || why.find("allocate memory") != why.npos;
  if (!lacking) throw std::runtime_error(why + " (" + reason + ")");
  throw OutOfMemory("out of memory: could not allocate " + size + (why.empty() ? "" : ": " + why));
}

#if !defined(UDML_CUDA_HOST)

int multiprocessors(int device) {
  static std::array<std::atomic<int>, 64> known{};
  int count = device >= 0 && device < 64 ? known[static_cast<size_t>(device)].load() : 0;
  if (count > 0) return count;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) fail("cudaDeviceGetAttribute", cudaGetErrorString(error));
  if (device >= 0 && device < 64) known[static_cast<size_t>(device)] = count;
  return count;
}

// The shim lives in libtorch_cuda.so, which a CPU-only torch lacks: found when it is needed, and never linked.
void* current_stream(int device) {
  using Function = int32_t (*)(int32_t, void**);
  static const Function shim = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (torch_cuda == nullptr) fail("current stream", "this torch has no CUDA (libtorch_cuda.so is not loaded)");
    const auto found = reinterpret_cast<Function>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
    if (found == nullptr) fail("current stream", "libtorch_cuda.so lacks aoti_torch_get_current_cuda_stream");
    return found;
  }();
  void* stream = nullptr;
  if (shim(device, &stream) != 0) fail("current stream", "torch could not tell it");
  return stream;
}

#else

// A small device: blocks loop, as they do where there is more work than a GPU holds.
int multiprocessors(int) { return 1; }
void* current_stream(int) { return nullptr; }

#endif

}  // namespace udml

#if !defined(UDML_CUDA_HOST)
// Set or, with null, clear the listener of this process.
extern "C" __attribute__((visibility("default"))) void udml_cuda_listen(udml::Listener heard) {
  udml::listener() = heard;
}
#endif
