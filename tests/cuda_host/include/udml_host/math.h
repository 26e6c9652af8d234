// CUDA's intrinsics. Approximate ones are computed in double and rounded.
#pragma once

#include <limits>

// Rounded here: no later addition may fuse with what produced the value.
template <class T>
__forceinline__ T udml_host_rounded(T value) {
  __asm__("" : "+m"(value));
  return value;
}

__forceinline__ float __fadd_rn(float a, float b) { return udml_host_rounded(a + b); }
__forceinline__ float __fsub_rn(float a, float b) { return udml_host_rounded(a - b); }
__forceinline__ float __fmul_rn(float a, float b) { return udml_host_rounded(a * b); }
__forceinline__ float __fdiv_rn(float a, float b) { return udml_host_rounded(a / b); }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
__forceinline__ float __frcp_rn(float a) { return udml_host_rounded(1.0f / a); }
__forceinline__ float __fsqrt_rn(float a) { return sqrtf(a); }
__forceinline__ float __frsqrt_rn(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
__forceinline__ double __dadd_rn(double a, double b) { return udml_host_rounded(a + b); }
__forceinline__ double __dsub_rn(double a, double b) { return udml_host_rounded(a - b); }
__forceinline__ double __dmul_rn(double a, double b) { return udml_host_rounded(a * b); }
__forceinline__ double __ddiv_rn(double a, double b) { return udml_host_rounded(a / b); }
__forceinline__ double __drcp_rn(double a) { return udml_host_rounded(1.0 / a); }
__forceinline__ double __dsqrt_rn(double a) { return sqrt(a); }
__forceinline__ double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }

// glibc declares functions of some of these names.
namespace udml_host {
__forceinline__ void fast_sincos(float x, float* s, float* c) {
  *s = static_cast<float>(sin(static_cast<double>(x)));
  *c = static_cast<float>(cos(static_cast<double>(x)));
}
}  // namespace udml_host
#define __sinf(x) static_cast<float>(sin(static_cast<double>(x)))
#define __cosf(x) static_cast<float>(cos(static_cast<double>(x)))
#define __tanf(x) static_cast<float>(tan(static_cast<double>(x)))
#define __expf(x) static_cast<float>(exp(static_cast<double>(x)))
#define __logf(x) static_cast<float>(log(static_cast<double>(x)))
#define __log2f(x) static_cast<float>(log2(static_cast<double>(x)))
#define __log10f(x) static_cast<float>(log10(static_cast<double>(x)))
#define __powf(x, y) static_cast<float>(pow(static_cast<double>(x), static_cast<double>(y)))
#define __sincosf(x, s, c) udml_host::fast_sincos(x, s, c)

#if !defined(__GLIBC__) || !__GLIBC_PREREQ(2, 42)
__forceinline__ float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
__forceinline__ double rsqrt(double x) { return 1.0 / sqrt(x); }
#endif
__forceinline__ float normcdff(float x) { return static_cast<float>(0.5 * erfc(-static_cast<double>(x) * M_SQRT1_2)); }
__forceinline__ double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }

template <class To, class From>
__forceinline__ To udml_host_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
__forceinline__ int __float_as_int(float x) { return udml_host_bits<int>(x); }
__forceinline__ unsigned __float_as_uint(float x) { return udml_host_bits<unsigned>(x); }
__forceinline__ float __int_as_float(int x) { return udml_host_bits<float>(x); }
__forceinline__ float __uint_as_float(unsigned x) { return udml_host_bits<float>(x); }
__forceinline__ long long __double_as_longlong(double x) { return udml_host_bits<long long>(x); }
__forceinline__ double __longlong_as_double(long long x) { return udml_host_bits<double>(x); }

// To an integer: NaN is 0, what is out of range its nearest end.
template <class To, class From>
__forceinline__ To udml_host_integer(From x) {
  if (x != x) return 0;
  if (x >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  if (x <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  return static_cast<To>(x);
}
__forceinline__ int __float2int_rn(float x) { return udml_host_integer<int>(nearbyintf(x)); }
__forceinline__ int __float2int_rz(float x) { return udml_host_integer<int>(truncf(x)); }
__forceinline__ int __float2int_rd(float x) { return udml_host_integer<int>(floorf(x)); }
__forceinline__ int __float2int_ru(float x) { return udml_host_integer<int>(ceilf(x)); }
__forceinline__ unsigned __float2uint_rn(float x) { return udml_host_integer<unsigned>(nearbyintf(x)); }
__forceinline__ unsigned __float2uint_rz(float x) { return udml_host_integer<unsigned>(truncf(x)); }
__forceinline__ int __double2int_rn(double x) { return udml_host_integer<int>(nearbyint(x)); }
__forceinline__ long long __double2ll_rn(double x) { return udml_host_integer<long long>(nearbyint(x)); }
__forceinline__ float __double2float_rn(double x) { return static_cast<float>(x); }
__forceinline__ float __int2float_rn(int x) { return static_cast<float>(x); }
__forceinline__ float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
__forceinline__ float __ll2float_rn(long long x) { return static_cast<float>(x); }
__forceinline__ double __int2double_rn(int x) { return x; }
__forceinline__ double __ll2double_rn(long long x) { return static_cast<double>(x); }

__forceinline__ unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
__forceinline__ int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
__forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
__forceinline__ unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((((static_cast<uint64_t>(high) << 32) | low) << (shift & 31u)) >> 32);
}
__forceinline__ unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31u));
}
__forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
__forceinline__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

// Caching hints.
template <class T>
__forceinline__ T __ldg(const T* at) { return *at; }
template <class T>
__forceinline__ T __ldcs(const T* at) { return *at; }
template <class T>
__forceinline__ T __ldcg(const T* at) { return *at; }
template <class T>
__forceinline__ T __ldca(const T* at) { return *at; }
template <class T>
__forceinline__ void __stcs(T* at, T value) { *at = value; }
template <class T>
__forceinline__ void __stcg(T* at, T value) { *at = value; }
template <class T>
__forceinline__ void __stwb(T* at, T value) { *at = value; }

#define UDML_MIN_MAX(T)                                              \
  __forceinline__ constexpr T min(T a, T b) { return b < a ? b : a; } \
  __forceinline__ constexpr T max(T a, T b) { return a < b ? b : a; }
UDML_MIN_MAX(int)
UDML_MIN_MAX(unsigned)
UDML_MIN_MAX(long)
UDML_MIN_MAX(unsigned long)
UDML_MIN_MAX(long long)
UDML_MIN_MAX(unsigned long long)
#undef UDML_MIN_MAX
// A NaN gives way to a number.
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }
__forceinline__ double min(double a, double b) { return fmin(a, b); }
__forceinline__ double max(double a, double b) { return fmax(a, b); }
