// Launches that run together. An op that gets a list of modalities is a call for each of them. Between
// udml_cuda_collect and udml_cuda_launch the launches of these calls wait; then the calls' first launches run, their
// second ones, and so on, and those of one kernel as one launch: block z of its grid takes the arguments of call z.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "launch_hook.h"

namespace udml {

// The number of calls that one launch serves. All of their arguments are passed to it.
inline constexpr unsigned MOST_TOGETHER = 4;

// The arguments of several calls of a kernel.
template <class Arguments>
struct Together {
  Arguments of[MOST_TOGETHER];
#ifdef __CUDACC__
  __device__ __forceinline__ const Arguments& mine() const { return of[blockIdx.z]; }
#endif
};

// A planned launch of a kernel.
struct Planned {
  const char* name;
  const void* kernel;
  int64_t across, groups;
  unsigned grid_x, grid_y, threads;
};

// A launch that has not started. `alone` starts it by itself. If the kernel has a version for several calls, `together`
// is that version, and `arguments` are the arguments of this call.
struct Waiting {
  Planned plan;
  std::function<void()> alone;
  const void* together = nullptr;
  std::vector<std::byte> arguments;
};

// together.cpp defines these functions. Whether this thread collects launches:
bool collects();
// An op's call begins: its launches depend on each other, and on no other call.
void begin_call(int device);
void wait(Waiting launch);
void start(const Planned& plan, void** arguments, unsigned grid_z, int device);

}  // namespace udml
