// IEEE half precision, as CUDA's header of this name has it: rounded to nearest even, NaN is 0x7fff.
#pragma once

#include <cuda_runtime.h>

struct __half_raw {
  unsigned short x;
};

struct __half {
  unsigned short bits;

  __half() = default;
  __half(__half_raw raw) : bits(raw.x) {}
  __half(float x) : bits(from(x)) {}
  operator float() const {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 1023u;
    if (exponent == 0) {
      const float size = static_cast<float>(fraction) * 0x1p-24f;
      return sign != 0 ? -size : size;
    }
    const unsigned high = exponent == 31 ? 255u << 23 : (exponent + 112u) << 23;
    return __uint_as_float(sign | high | fraction << 13);
  }
  operator __half_raw() const { return {bits}; }

 private:
  static unsigned short from(float x) {
    const unsigned word = __float_as_uint(x), sign = (word >> 16) & 0x8000u, size = word & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    // From 65520 on it is infinity.
    if (size >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);
    // Adding 0.5 leaves a subnormal's fraction, rounded, in the low bits.
    if (size < 0x38800000u) {
      const float sum = __uint_as_float(size) + 0.5f;
      return static_cast<unsigned short>(sign | (__float_as_uint(sum) - 0x3f000000u));
    }
    const unsigned rounded = size - (112u << 23) + 0xfffu + ((size >> 13) & 1u);
    return static_cast<unsigned short>(sign | rounded >> 13);
  }
};

struct __attribute__((aligned(4))) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline __half __float2half_rn(float x) { return __half(x); }
inline __half __float2half(float x) { return __half(x); }
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return static_cast<float>(v.x); }
inline float __high2float(__half2 v) { return static_cast<float>(v.y); }
inline float2 __half22float2(__half2 v) { return {static_cast<float>(v.x), static_cast<float>(v.y)}; }
inline __half __ushort_as_half(unsigned short x) { return __half(__half_raw{x}); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
