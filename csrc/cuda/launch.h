// Launching: on the tensors' device and the current stream, with a grid sized from the device. Every kernel of
// this column is started by `launch`; the host build of the tests runs the same kernels on the CPU through it.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

// Static shared memory of a block, aligned for vectors. The host build keeps its arrays where they can be watched.
#if !defined(UDML_CUDA_HOST)
#define UDML_SHARED(type, name, size) __shared__ __align__(16) type name[size]
#endif

namespace udml {

using torch::stable::Tensor;

// The work of a launch: blocks loop over `across` x `groups` items, whose number may exceed the grid's limits:
//   for (int64_t group = blockIdx.y; group < groups; group += gridDim.y)
//     for (int64_t tile = blockIdx.x; tile < across; tile += gridDim.x)
struct Work {
  int64_t across, groups;
  int threads;
  int64_t items() const { return across * groups; }
};

// Hears of launches in their place (`python -m udml_kernels aot --backend cuda`): empty_gradient runs.
using Listener = void (*)(const char* name, const void* kernel, int64_t across, int64_t groups, int threads);

// In device.cpp.
Listener& listener();
int multiprocessors(int device);
void* current_stream(int device);
void fail(const char* kernel, const char* reason);
[[noreturn]] void allocation_failed(const std::string& size, const std::string& reason);

// Some waves of blocks that fill the device: enough for its schedulers to even out, few enough to spare the
// device the starting of blocks that do next to empty_gradient.
inline dim3 grid_of(const Work& work, int device) {
  constexpr int64_t WAVES = 4, THREADS = 2048, MAX_Y = 65535;
  const int64_t wanted = std::max<int64_t>(1, WAVES * THREADS / work.threads * multiprocessors(device));
  const int64_t x = std::min(work.across, wanted);
  const int64_t y = std::min({work.groups, (wanted + x - 1) / x, MAX_Y});
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), 1);
}

// The device of an op's tensors while its kernels are launched.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : index_(t.get_device_index()) {
#if !defined(UDML_CUDA_HOST)
    if (listener() == nullptr) guard_.emplace(index_);
#endif
  }
  int index() const { return index_; }

 private:
  int index_;
#if !defined(UDML_CUDA_HOST)
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
};

// Run a kernel on `work`; empty_gradient where there is none.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const OnDevice& device, const Work& work, A&&... args) {
  if (work.items() <= 0) return;
  std::tuple<P...> parameters{std::forward<A>(args)...};
#if !defined(UDML_CUDA_HOST)
  if (listener() != nullptr) {
    listener()(name, reinterpret_cast<const void*>(kernel), work.across, work.groups, work.threads);
    return;
  }
  std::apply(
      [&](auto&... values) {
        void* pointers[] = {static_cast<void*>(&values)...};
        const cudaError_t error = cudaLaunchKernel(
            reinterpret_cast<const void*>(kernel), grid_of(work, device.index()),
            dim3(static_cast<unsigned>(work.threads)), pointers, 0,
            static_cast<cudaStream_t>(current_stream(device.index())));
        // The error is also kept as the thread's last one: taken, so that it is not reported again elsewhere.
        if (error != cudaSuccess) fail(name, cudaGetErrorString(cudaGetLastError()));
      },
      parameters);
#else
  udml_host::launch(name, grid_of(work, device.index()), dim3(static_cast<unsigned>(work.threads)), 0,
                    [&] { std::apply(kernel, parameters); });
#endif
}

}  // namespace udml
