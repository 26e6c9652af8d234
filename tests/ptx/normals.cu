// The normals of given Philox words, as the kernels compute them: tests/test_cuda_kernels.py sweeps every radius.
#include "cuda/lanes.h"

extern "C" __global__ void normal_pairs(const uint32_t* radius, const uint32_t* angle, float* n0, float* n1,
                                        int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) udml::normal_pair(radius[i], angle[i], n0[i], n1[i]);
}
