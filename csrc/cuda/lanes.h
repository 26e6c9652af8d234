// The scalar functions of math.h, normal.h and gamma.h on a GPU, with NVIDIA's approximate instructions where they are
// accurate enough; the comments state their errors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "../gamma.h"
#include "../normal.h"
#include "../philox.h"

namespace udml {

#define UDML_APPROXIMATE(name, instruction)         \
  __device__ __forceinline__ float name(float x) {  \
    float y;                                        \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                       \
  }
// The error is at most 2^-22 for x in (1/2, 2) and two units in the last place elsewhere.
UDML_APPROXIMATE(log2_approximate, "lg2.approx.ftz.f32")
// The relative error is 2^-22; subnormal results are flushed to 0.
UDML_APPROXIMATE(exp2_approximate, "ex2.approx.ftz.f32")
UDML_APPROXIMATE(sqrt_approximate, "sqrt.approx.ftz.f32")
// The error is at most 2^-20.5 for x in [-pi, pi] (CUDA C++ Programming Guide: 2^-21.19 and 2^-21.41).
UDML_APPROXIMATE(sin_approximate, "sin.approx.ftz.f32")
UDML_APPROXIMATE(cos_approximate, "cos.approx.ftz.f32")
#undef UDML_APPROXIMATE
__device__ __forceinline__ float minimum(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
__device__ __forceinline__ float maximum(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

__device__ __forceinline__ double minimum(double x, double y) { return x != x || x < y ? x : y; }
__device__ __forceinline__ double maximum(double x, double y) { return x != x || x > y ? x : y; }

// Returns a * b + c, on a GPU with a single rounding.
template <class C>
__device__ __forceinline__ C multiply_add(C a, C b, C c) {
  return fma(a, b, c);
}

// Returns exp(x / 2) with a relative error below 7e-7. It squares root = 2^t, t = x log2(e) / 4: root stays in the
// range of float, and the square rounds to the correct subnormal number. A factor then corrects the rounding error of
// t.
template <class T>
__device__ __forceinline__ float exponential_of_half(float x) {
  const float t = x * 0.36067375540733337f, root = exp2_approximate(t);
  // log2(e) / 4 is the constant + 4.8149e-9; the correction is multiplied by 2 ln 2. The clamp has no effect on finite
  // results; for infinite x it replaces the NaN of inf - inf by a number.
  const float rest = fmaf(x, 0.36067375540733337f, -t) * 1.3862943611f + multiply_add(x, 6.6749e-9f, 1.0f);
  return root * root * fminf(fmaxf(rest, 0.999f), 1.001f);
}

// For bfloat16, the product of x (eight digits) and 0.360671997 (sixteen digits) is exact. The error of the constant is
// therefore known: x 1.7632e-06 2 ln 2. The factor is halved and saturated to [0, 1], so that an infinite x does not
// produce a NaN.
template <>
__device__ __forceinline__ float exponential_of_half<__nv_bfloat16>(float x) {
  const float root = exp2_approximate(x * 0.3606719970703125f);
  return root * __saturatef(multiply_add(x, 1.2221238e-06f, 0.5f)) * (root + root);
}
template <class T>
__device__ __forceinline__ double exponential_of_half(double x) {
  return exp(0.5 * x);
}

// Double overloads of functions that csrc/cpu/simd.h has for vectors.
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ double normal_cdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }

// Returns sqrt(-2 ln u) for u = (w >> 8) 2^-24 + 2^-25 with an error below 3e-6. Near u = 1 the error of the
// approximate logarithm, 2^-22, is as large as ln u. For v = 1 - u below 2^-9 the series v + v^2/2 + v^3/3 (relative
// error 2e-9) replaces it. Above that, the radius is at least 0.06.
__device__ __forceinline__ float radius_from_word(uint32_t word) {
  const float i = static_cast<float>(static_cast<int32_t>(word >> 8));
  const float u = fmaf(i, 0x1p-24f, 0x1p-25f), v = fmaf(i, -0x1p-24f, 1.0f) - 0x1p-25f;
  const float series = v * fmaf(v, fmaf(v, 0.66666667f, 1.0f), 2.0f);
  return sqrt_approximate(v < 0x1p-9f ? series : log2_approximate(u) * -1.38629436111989062f);
}

// The Box-Muller transform with the whole angle in [-pi, pi). Including the rounding of the angle, and multiplied by
// the radius, its error is at most 4e-6.
__device__ __forceinline__ void normal_pair(uint32_t radius_word, uint32_t angle_word, float& n0, float& n1) {
  const float radius = radius_from_word(radius_word);
  const float angle = static_cast<float>(static_cast<int32_t>(angle_word)) * 1.4629180792671596e-9f;
  n0 = radius * cos_approximate(angle);
  n1 = radius * sin_approximate(angle);
}
__device__ __forceinline__ void normal_pair(uint32_t radius_word, uint32_t angle_word, double& n0, double& n1) {
  normals_from_words(radius_word, angle_word, n0, n1);
}

}  // namespace udml
