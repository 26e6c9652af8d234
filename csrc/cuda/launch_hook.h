// The hook that takes launches in the driver's place. This header needs neither CUDA nor torch.
#pragma once

#include <cstdint>

namespace udml {

// A launch as the hook receives it: the host function of the kernel, its work and grid, and pointers to its arguments.
// udml_kernels/tools/aot_cuda.py has the same layout.
struct Launch {
  const char* name;
  const void* kernel;
  int64_t across, groups;
  unsigned grid_x, grid_y, grid_z, threads;
  void** arguments;
};

// `launch` calls the hook instead of starting the kernel. `python -m udml_kernels aot` uses it for a dry run, the tests
// to execute the compiled kernels on the CPU. The hook returns an error message or null.
using LaunchHook = const char* (*)(const Launch*);

}  // namespace udml
