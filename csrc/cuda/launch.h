// Kernel launches on the device of the tensors and the current stream. The grid depends on the device. Every kernel of
// the CUDA backend starts through `launch`.
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

#include "together.h"

// Declares static shared memory that is aligned for vectors.
#define UDML_SHARED(type, name, size) __shared__ __align__(16) type name[size]

namespace udml {

using torch::stable::Tensor;

// The work of a launch. Its `across` x `groups` items may exceed the limits of the grid, so blocks loop over them:
//   for (int64_t group = blockIdx.y; group < groups; group += gridDim.y)
//     for (int64_t tile = blockIdx.x; tile < across; tile += gridDim.x)
struct Work {
  int64_t across, groups;
  int threads;
  int64_t items() const { return across * groups; }
};

// device.cpp defines these functions.
LaunchHook& launch_hook();
// Keeps a tensor that waiting launches use. Returns it.
Tensor kept(Tensor t);
int multiprocessors(int device);
void* current_stream(int device);
void fail(const char* kernel, const char* reason);
[[noreturn]] void allocation_failed(const std::string& size, const std::string& reason);

// Returns a grid of several waves of blocks: enough for the schedulers to balance the load, few enough that starting
// blocks costs little.
inline dim3 grid_of(const Work& work, int device) {
  constexpr int64_t WAVES = 4, THREADS = 2048, MAX_Y = 65535;
  const int64_t wanted = std::max<int64_t>(1, WAVES * THREADS / work.threads * multiprocessors(device));
  const int64_t x = std::min(work.across, wanted);
  const int64_t y = std::min({work.groups, (wanted + x - 1) / x, MAX_Y});
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), 1);
}

// Makes the device of an op's tensors current while the op launches its kernels. Each call of an op has one.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : index_(t.get_device_index()) {
    if (launch_hook() == nullptr) guard_.emplace(index_);
    if (collects()) begin_call(index_);
  }
  int index() const { return index_; }

 private:
  int index_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

inline Planned planned(const char* name, const void* kernel, const OnDevice& device, const Work& work) {
  const dim3 grid = grid_of(work, device.index());
  return {name, kernel, work.across, work.groups, grid.x, grid.y, static_cast<unsigned>(work.threads)};
}

// Runs a kernel on `work`, or does nothing if there is no work.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const OnDevice& device, const Work& work, A&&... args) {
  if (work.items() <= 0) return;
  const Planned plan = planned(name, reinterpret_cast<const void*>(kernel), device, work);
  auto run = [plan, parameters = std::tuple<P...>{std::forward<A>(args)...}, index = device.index()]() mutable {
    std::apply([&](auto&... values) {
      void* pointers[] = {static_cast<void*>(&values)...};
      start(plan, pointers, 1, index);
    }, parameters);
  };
  if (collects()) wait({plan, run, nullptr, {}});
  else run();
}

// The same for a kernel that has a version for several calls, or null instead of it.
template <class Arguments>
void launch(const char* name, void (*kernel)(Arguments), std::common_type_t<void (*)(Together<Arguments>)> together,
            const OnDevice& device, const Work& work, const std::common_type_t<Arguments>& arguments) {
  if (work.items() <= 0) return;
  const Planned plan = planned(name, reinterpret_cast<const void*>(kernel), device, work);
  auto run = [plan, own = arguments, index = device.index()]() mutable {
    void* pointer = &own;
    start(plan, &pointer, 1, index);
  };
  if (!collects()) return run();
  // Where blocks loop, starting the kernel takes a small part of its time, and its own version has more blocks in
  // flight.
  const bool loops = work.items() > int64_t{plan.grid_x} * plan.grid_y;
  const auto* bytes = reinterpret_cast<const std::byte*>(&arguments);
  wait({plan, run, loops ? nullptr : reinterpret_cast<const void*>(together), {bytes, bytes + sizeof(Arguments)}});
}

}  // namespace udml
