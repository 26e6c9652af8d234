// CUDA's language on the host: what the kernels in csrc/cuda use of it, compiled by a C++ compiler and run by
// scheduler.cpp with a fiber for every thread. Included ahead of every source (-include).
//
// Shared memory is declared by UDML_SHARED; plain __shared__ compiles too, but nothing watches or refills it, and
// across blocks the race check takes it for global memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#include "udml_host/vectors.h"

#include "udml_host/launch.h"

#include "udml_host/device.h"
#include "udml_host/math.h"

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error"; }
