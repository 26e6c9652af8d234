// One lane of a GPU: the functions of math.h, normal.h and gamma.h on a single number, with NVIDIA's approximate
// instructions where they are known to be good enough. What they lose is bounded where it is said so; the host
// build computes the same expressions with the C library.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "../gamma.h"
#include "../normal.h"
#include "../philox.h"

namespace udml {

#if defined(UDML_CUDA_HOST)
UDML_FN float log2_approximate(float x) { return log2f(x); }
UDML_FN float exp2_approximate(float x) { return exp2f(x); }
UDML_FN float sqrt_approximate(float x) { return sqrtf(x); }
UDML_FN float sin_approximate(float x) { return sinf(x); }
UDML_FN float cos_approximate(float x) { return cosf(x); }
// The smaller and the larger of two numbers; a NaN if one is.
UDML_FN float minimum(float x, float y) { return x != x || x < y ? x : y; }
UDML_FN float maximum(float x, float y) { return x != x || x > y ? x : y; }
#else
#define UDML_APPROXIMATE(name, instruction)                 \
  __device__ __forceinline__ float name(float x) {          \
    float y;                                                \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x));         \
    return y;                                               \
  }
// Off by at most 2^-22 for x in (1/2, 2), by two units in the last place elsewhere.
UDML_APPROXIMATE(log2_approximate, "lg2.approx.ftz.f32")
// Relative error 2^-22; subnormal results are 0.
UDML_APPROXIMATE(exp2_approximate, "ex2.approx.ftz.f32")
UDML_APPROXIMATE(sqrt_approximate, "sqrt.approx.ftz.f32")
// Off by at most 2^-20.5 for x in [-pi, pi] (CUDA C++ Programming Guide: 2^-21.19 and 2^-21.41).
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
#endif

__device__ __forceinline__ double minimum(double x, double y) { return x != x || x < y ? x : y; }
__device__ __forceinline__ double maximum(double x, double y) { return x != x || x > y ? x : y; }

// a * b + c, rounded once on a GPU.
template <class C>
__device__ __forceinline__ C multiply_add(C a, C b, C c) {
#if defined(UDML_CUDA_HOST)
  return a * b + c;
#else
  return fma(a, b, c);
#endif
}

// exp(x / 2) within 7e-7, as the square of 2^t with t = x log2(e) / 4: t alone never leaves the range of floats,
// and the square rounds to the right subnormal number. Then a factor for the digits that t has lost.
template <class T>
__device__ __forceinline__ float exponential_of_half(float x) {
  const float t = x * 0.36067375540733337f, root = exp2_approximate(t);
  // log2(e) / 4 is that number + 4.8149e-9; times 2 ln 2. The bounds hold where the power is a number; beyond, they turn
  // the NaN of inf - inf into one.
  const float rest = fmaf(x, 0.36067375540733337f, -t) * 1.3862943611f + multiply_add(x, 6.6749e-9f, 1.0f);
  return root * root * fminf(fmaxf(rest, 0.999f), 1.001f);
}

// Of the eight digits of a bfloat16 the sixteen of 0.360671997 make an exact product, so that what is lost is known
// beforehand: x 1.7632e-06 2 ln 2. It is halved and saturated, as infinities leave no number, nor more than 1, there.
template <>
__device__ __forceinline__ float exponential_of_half<__nv_bfloat16>(float x) {
  const float root = exp2_approximate(x * 0.3606719970703125f);
  return root * __saturatef(multiply_add(x, 1.2221238e-06f, 0.5f)) * (root + root);
}
template <class T>
__device__ __forceinline__ double exponential_of_half(double x) { return exp(0.5 * x); }

// The double overloads that the CPU column has for its vectors.
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ double normal_cdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }

// sqrt(-2 ln u) of u = (w >> 8) 2^-24 + 2^-25, within 3e-6 everywhere. The approximate logarithm is off by 2^-22
// near u = 1, where ln u itself is as small: below v = 1 - u = 2^-9 the series v + v^2/2 + v^3/3 (relative error
// 2e-9) takes its place, and above it the radius is at least 0.06.
__device__ __forceinline__ float radius_from_word(uint32_t word) {
  const float i = static_cast<float>(static_cast<int32_t>(word >> 8));
  const float u = fmaf(i, 0x1p-24f, 0x1p-25f), v = fmaf(i, -0x1p-24f, 1.0f) - 0x1p-25f;
  const float series = v * fmaf(v, fmaf(v, 0.66666667f, 1.0f), 2.0f);
  return sqrt_approximate(v < 0x1p-9f ? series : log2_approximate(u) * -1.38629436111989062f);
}

// Box-Muller with the whole angle in [-pi, pi): with its rounding, and times the radius, off by 4e-6 at most.
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
