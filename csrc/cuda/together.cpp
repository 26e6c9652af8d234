// The start of kernels, at once or together with those of other calls.
#include "together.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "launch.h"

namespace udml {
namespace {

// What a thread collects: the launches of each call, and the tensors that they use.
struct Collection {
  bool active = false;
  int device = 0;
  std::vector<std::vector<Waiting>> calls;
  std::vector<Tensor> tensors;
};

Collection& collection() {
  static thread_local Collection value;
  return value;
}

// Starts launches of one kernel as one launch.
void start_together(const std::vector<const Waiting*>& launches, int device) {
  const Waiting& first = *launches[0];
  const size_t size = first.arguments.size();
  static thread_local std::vector<std::byte> arguments;
  arguments.assign(size * MOST_TOGETHER, std::byte{});
  Planned plan = first.plan;
  plan.kernel = first.together;
  for (size_t i = 0; i < launches.size(); ++i) {
    std::memcpy(arguments.data() + i * size, launches[i]->arguments.data(), size);
    plan.across = std::max(plan.across, launches[i]->plan.across);
    plan.groups = std::max(plan.groups, launches[i]->plan.groups);
    plan.grid_x = std::max(plan.grid_x, launches[i]->plan.grid_x);
    plan.grid_y = std::max(plan.grid_y, launches[i]->plan.grid_y);
  }
  void* pointer = arguments.data();
  start(plan, &pointer, static_cast<unsigned>(launches.size()), device);
}

// Starts the launches of one step of all calls.
void start_step(std::vector<const Waiting*> step, int device) {
  while (!step.empty()) {
    std::vector<const Waiting*> equal, rest;
    for (const Waiting* launch : step) {
      const bool same = equal.empty() || (launch->together != nullptr && launch->together == equal[0]->together &&
                                          equal.size() < MOST_TOGETHER);
      (same ? equal : rest).push_back(launch);
    }
    if (equal.size() == 1) equal[0]->alone();
    else start_together(equal, device);
    step = std::move(rest);
  }
}

void start_all(const Collection& found) {
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (launch_hook() == nullptr) guard.emplace(found.device);
  size_t steps = 0;
  for (const auto& call : found.calls) steps = std::max(steps, call.size());
  for (size_t i = 0; i < steps; ++i) {
    std::vector<const Waiting*> step;
    for (const auto& call : found.calls)
      if (i < call.size()) step.push_back(&call[i]);
    start_step(std::move(step), found.device);
  }
}

}  // namespace

bool collects() { return collection().active; }

void begin_call(int device) {
  collection().device = device;
  collection().calls.emplace_back();
}

void wait(Waiting launch) { collection().calls.back().push_back(std::move(launch)); }

Tensor kept(Tensor t) {
  if (collects()) collection().tensors.push_back(t);
  return t;
}

void start(const Planned& plan, void** arguments, unsigned grid_z, int device) {
  if (launch_hook() != nullptr) {
    const Launch launched{plan.name,   plan.kernel, plan.across,  plan.groups, plan.grid_x,
                          plan.grid_y, grid_z,      plan.threads, arguments};
    if (const char* error = launch_hook()(&launched)) fail(plan.name, error);
    return;
  }
  const cudaError_t error = cudaLaunchKernel(plan.kernel, dim3(plan.grid_x, plan.grid_y, grid_z), dim3(plan.threads),
                                             arguments, 0, static_cast<cudaStream_t>(current_stream(device)));
  // cudaGetLastError clears the error, so that later calls do not report it again.
  if (error != cudaSuccess) fail(plan.name, cudaGetErrorString(cudaGetLastError()));
}

}  // namespace udml

// From here on, the launches of this thread wait.
extern "C" __attribute__((visibility("default"))) void udml_cuda_collect() {
  udml::collection() = {};
  udml::collection().active = true;
}

// Ends the collection. If `run` is true, starts the collected launches, otherwise drops them. Returns null, or an error
// message that is valid until this thread's next call.
extern "C" __attribute__((visibility("default"))) const char* udml_cuda_launch(bool run) {
  static thread_local std::string message;
  const udml::Collection found = std::exchange(udml::collection(), {});
  try {
    if (run) udml::start_all(found);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
