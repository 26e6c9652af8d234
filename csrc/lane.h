// Scalar versions of the primitive operations. csrc/cpu/simd.h overloads them for vectors; philox.h, math.h and
// normal.h are written once and work with both.
//
// Argument-dependent lookup does not find overloads for builtin vector types, so they must be declared before those
// functions. Therefore SIMD files include simd.h, which includes those headers last.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define UDML_FN __host__ __device__ __forceinline__
#else
#define UDML_FN inline __attribute__((always_inline))
#endif

namespace udml {

template <class F>
struct Lane;

template <>
struct Lane<float> {
  using Int = int32_t;
  using Word = uint32_t;
};

UDML_FN float select(bool condition, float a, float b) { return condition ? a : b; }
UDML_FN int32_t select(bool condition, int32_t a, int32_t b) { return condition ? a : b; }
UDML_FN int64_t select(bool condition, int64_t a, int64_t b) { return condition ? a : b; }
UDML_FN double select(bool condition, double a, double b) { return condition ? a : b; }
UDML_FN float to_float(int32_t x) { return static_cast<float>(x); }
UDML_FN int32_t to_signed(uint32_t x) { return static_cast<int32_t>(x); }
UDML_FN uint32_t to_word(int32_t x) { return static_cast<uint32_t>(x); }

UDML_FN int32_t bits(float x) {
  int32_t i;
  memcpy(&i, &x, sizeof i);
  return i;
}

UDML_FN float from_bits(int32_t i) {
  float x;
  memcpy(&x, &i, sizeof x);
  return x;
}

UDML_FN int64_t bits(double x) {
  int64_t i;
  memcpy(&i, &x, sizeof i);
  return i;
}

UDML_FN double from_bits(int64_t i) {
  double x;
  memcpy(&x, &i, sizeof x);
  return x;
}

// Conversions between a floating-point number and the integer of the same width.
UDML_FN float as_number(int32_t x) { return static_cast<float>(x); }
UDML_FN double as_number(int64_t x) { return static_cast<double>(x); }
UDML_FN int32_t as_integer(float x) { return static_cast<int32_t>(x); }
UDML_FN int64_t as_integer(double x) { return static_cast<int64_t>(x); }

UDML_FN float square_root(float x) { return sqrtf(x); }

// Returns p * 2^n for an integer n in [-252, 254].
UDML_FN float scale_by_power(float p, float n) { return ldexpf(p, static_cast<int>(n)); }

UDML_FN uint64_t multiply(uint32_t x, uint32_t y) { return static_cast<uint64_t>(x) * y; }
UDML_FN uint32_t high(uint64_t product) {
#if defined(__CUDA_ARCH__)
  // This takes the upper register of the pair. For a shift, ptxas would emit an addition of 0.
  uint32_t word;
  asm("{ .reg .u32 low; mov.b64 {low, %0}, %1; }" : "=r"(word) : "l"(product));
  return word;
#else
  return static_cast<uint32_t>(product >> 32);
#endif
}
UDML_FN uint32_t low(uint64_t product) { return static_cast<uint32_t>(product); }

}  // namespace udml
