// Device properties and torch functions that launches need.
#include <dlfcn.h>

#include <array>
#include <atomic>

#include "../out_of_memory.h"
#include "launch.h"

namespace udml {

LaunchHook& launch_hook() {
  static LaunchHook hook = nullptr;
  return hook;
}

void fail(const char* kernel, const char* reason) { STD_TORCH_CHECK(false, kernel, ": ", reason); }

// torch provides the error message from version 2.13 on. Without a message, the function assumes that memory ran out.
void allocation_failed(const std::string& size, const std::string& reason) {
  using Function = const char* (*)();
  static const auto get_what =
      reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const std::string message = get_what != nullptr ? get_what() : "";
  const bool out_of_memory = message.empty() || message.find("out of memory") != message.npos ||
                             message.find("allocate memory") != message.npos;
  if (!out_of_memory) throw std::runtime_error(message + " (" + reason + ")");
  throw OutOfMemory("out of memory: could not allocate " + size + (message.empty() ? "" : ": " + message));
}

static int hook_multiprocessors = 0;

int multiprocessors(int device) {
  if (launch_hook() != nullptr) return hook_multiprocessors;
  static std::array<std::atomic<int>, 64> cached_counts{};
  int count = device >= 0 && device < 64 ? cached_counts[static_cast<size_t>(device)].load() : 0;
  if (count > 0) return count;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) fail("cudaDeviceGetAttribute", cudaGetErrorString(error));
  if (device >= 0 && device < 64) cached_counts[static_cast<size_t>(device)] = count;
  return count;
}

// The function lives in libtorch_cuda.so, which a CPU-only torch does not have. Therefore the code looks it up at run
// time.
void* current_stream(int device) {
  using Function = int32_t (*)(int32_t, void**);
  static const Function get_stream = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (torch_cuda == nullptr) fail("current stream", "this torch has no CUDA (libtorch_cuda.so is not loaded)");
    const auto found = reinterpret_cast<Function>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
    if (found == nullptr) fail("current stream", "libtorch_cuda.so lacks aoti_torch_get_current_cuda_stream");
    return found;
  }();
  void* stream = nullptr;
  if (get_stream(device, &stream) != 0) fail("current stream", "torch could not tell it");
  return stream;
}

}  // namespace udml

// Sets the launch hook of this process and the number of multiprocessors that grids are planned for, or clears the hook
// with null.
extern "C" __attribute__((visibility("default"))) void udml_cuda_hook(udml::LaunchHook hook, int multiprocessors) {
  udml::launch_hook() = hook;
  udml::hook_multiprocessors = multiprocessors;
}
