// Vectors of W lanes, based on the vector types of GCC and Clang. These types support operators and comparisons, so
// kernels read like scalar code and are compiled once per ISA level. Intrinsics provide only what the language lacks.
#pragma once

#include <array>
#include <utility>

#include "../lane.h"

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace udml {

#if defined(__AVX512F__)
inline constexpr int W = 16;
#elif defined(__AVX2__)
inline constexpr int W = 8;
#else
inline constexpr int W = 4;
#endif

template <class T, int N>
using Vector __attribute__((vector_size(N * sizeof(T)))) = T;

using f32 = Vector<float, W>;
using i32 = Vector<int32_t, W>;
using u32 = Vector<uint32_t, W>;
using u64 = Vector<uint64_t, W / 2>;
// float64 vectors have as many lanes as float32 vectors (in two registers), so that all index computations agree.
using f64 = Vector<double, W>;
using i64 = Vector<int64_t, W>;

template <>
struct Lane<f32> {
  using Int = i32;
  using Word = u32;
};

// C is float or double: the arithmetic type.
template <class C>
using lanes_of = std::conditional_t<std::is_same_v<C, double>, f64, f32>;

UDML_FN f32 select(i32 condition, f32 a, f32 b) { return condition ? a : b; }
UDML_FN i32 select(i32 condition, i32 a, i32 b) { return condition ? a : b; }
UDML_FN f64 select(i64 condition, f64 a, f64 b) { return condition ? a : b; }
UDML_FN i64 select(i64 condition, i64 a, i64 b) { return condition ? a : b; }
UDML_FN f32 to_float(i32 x) { return __builtin_convertvector(x, f32); }
UDML_FN i32 to_signed(u32 x) { return (i32)x; }
UDML_FN u32 to_word(i32 x) { return (u32)x; }
UDML_FN i32 bits(f32 x) { return (i32)x; }
UDML_FN f32 from_bits(i32 i) { return (f32)i; }
UDML_FN i64 bits(f64 x) { return (i64)x; }
UDML_FN f64 from_bits(i64 i) { return (f64)i; }
UDML_FN f32 as_number(i32 x) { return __builtin_convertvector(x, f32); }
UDML_FN f64 as_number(i64 x) { return __builtin_convertvector(x, f64); }
UDML_FN i32 as_integer(f32 x) { return __builtin_convertvector(x, i32); }
UDML_FN i64 as_integer(f64 x) { return __builtin_convertvector(x, i64); }

UDML_FN f32 square_root(f32 x) {
#if defined(__AVX512F__)
  return (f32)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (f32)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (f32)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < W; ++i) x[i] = sqrtf(x[i]);
  return x;
#endif
}

UDML_FN f32 scale_by_power(f32 p, f32 n) {
#if defined(__AVX512F__)
  return (f32)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // Two multiplications, so that subnormal results are rounded correctly.
  const i32 exponent = __builtin_convertvector(n, i32), half = exponent >> 1;
  return p * from_bits((half + 127) << 23) * from_bits((exponent - half + 127) << 23);
#endif
}

// Philox keeps each 32-bit word in the low half of a 64-bit lane. A product then leaves both of its halves in its own
// lane, and the rounds need no blends. The multiplication ignores the high halves of its operands, so they may hold any
// bits.
UDML_FN u64 multiply(u64 x, uint32_t y) {
#if defined(__AVX512F__)
  return (u64)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(y));
#elif defined(__AVX2__)
  return (u64)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(y));
#elif defined(__SSE2__)
  return (u64)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(y));
#else
  return (x & 0xffffffffu) * y;
#endif
}

UDML_FN u64 high(u64 product) {
#if defined(__AVX512F__)
  // Three execution ports can shuffle, but only two can shift.
  return (u64)_mm512_shuffle_epi32((__m512i)product, (_MM_PERM_ENUM)0xF5);
#else
  return product >> 32;
#endif
}

UDML_FN u64 low(u64 product) { return product; }

// Transposes the 4x4 matrix that w0..w3 form in every group of four lanes: lane 4i+q of w_j moves to lane 4i+j of w_q.
UDML_FN void transpose_in_fours(u32& w0, u32& w1, u32& w2, u32& w3) {
#if defined(__AVX512F__)
#define UDML_OP(name, a, b) (u32) _mm512_##name((__m512i)(a), (__m512i)(b))
#elif defined(__AVX2__)
#define UDML_OP(name, a, b) (u32) _mm256_##name((__m256i)(a), (__m256i)(b))
#elif defined(__SSE2__)
#define UDML_OP(name, a, b) (u32) _mm_##name((__m128i)(a), (__m128i)(b))
#endif
#if defined(UDML_OP)
  const u32 a = UDML_OP(unpacklo_epi32, w0, w1), b = UDML_OP(unpackhi_epi32, w0, w1);
  const u32 c = UDML_OP(unpacklo_epi32, w2, w3), d = UDML_OP(unpackhi_epi32, w2, w3);
  w0 = UDML_OP(unpacklo_epi64, a, c);
  w1 = UDML_OP(unpackhi_epi64, a, c);
  w2 = UDML_OP(unpacklo_epi64, b, d);
  w3 = UDML_OP(unpackhi_epi64, b, d);
#undef UDML_OP
#else
  const u32 in[4] = {w0, w1, w2, w3};
  u32* const out[4] = {&w0, &w1, &w2, &w3};
  for (int q = 0; q < 4; ++q)
    for (int j = 0; j < 4; ++j) (*out[q])[j] = in[j][q];
#endif
}

template <class C>
UDML_FN lanes_of<C> load(const C* p) {
  lanes_of<C> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class C>
UDML_FN void store(C* p, lanes_of<C> v) {
  memcpy(p, &v, sizeof v);
}

// A nontemporal store bypasses the caches, for results too large to stay there; it avoids reading the cache line first.
// It needs a vector-aligned address, and a `fence` before another thread reads.
UDML_FN void store_nontemporal(float* p, f32 v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

UDML_FN void store_nontemporal(double* p, f64 v) { store(p, v); }

UDML_FN void store_nontemporal(uint16_t* p, Vector<uint16_t, 2 * W> v) {
#if defined(__SSE2__)
  store_nontemporal(reinterpret_cast<float*>(p), (f32)v);
#else
  memcpy(p, &v, sizeof v);
#endif
}

UDML_FN void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline bool can_store_nontemporal(const void* p) { return reinterpret_cast<uintptr_t>(p) % (W * sizeof(float)) == 0; }

UDML_FN i32 lane_index() {
  i32 index;
  for (int i = 0; i < W; ++i) index[i] = i;
  return index;
}

UDML_FN i32 first_lanes(int64_t n) { return lane_index() < static_cast<int32_t>(n); }

// Loads the first n lanes and sets the others to 0.
template <class C>
UDML_FN lanes_of<C> load_first(const C* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) return (f32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4) return (f32)_mm256_maskload_ps((const float*)p, (__m256i)first_lanes(n));
#endif
  lanes_of<C> v{};
  memcpy(&v, p, static_cast<size_t>(n) * sizeof(C));
  return v;
}

template <class C>
UDML_FN void store_first(C* p, lanes_of<C> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4) return _mm256_maskstore_ps((float*)p, (__m256i)first_lanes(n), (__m256)v);
#endif
  memcpy(p, &v, static_cast<size_t>(n) * sizeof(C));
}

// float64 calls the C library for each lane.
template <class Function>
UDML_FN f64 each_lane(f64 x, const Function& function) {
  for (int i = 0; i < W; ++i) x[i] = function(x[i]);
  return x;
}

UDML_FN f64 exponential(f64 x) {
  return each_lane(x, [](double v) { return exp(v); });
}
UDML_FN f64 logarithm(f64 x) {
  return each_lane(x, [](double v) { return log(v); });
}
UDML_FN f64 normal_cdf(f64 x) {
  return each_lane(x, [](double v) { return 0.5 * erfc(v * -0.70710678118654752); });
}

// Minimum and maximum that propagate a NaN in x, as torch.clamp does.
template <class V>
UDML_FN V at_least(V x, V low) {
  return select(x < low, low, x);
}

template <class V>
UDML_FN V at_most(V x, V high) {
  return select(x > high, high, x);
}

// Adds the upper half of the lanes to the lower half until one lane is left. This order is fixed.
UDML_FN float sum_of_lanes(f32 v) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#elif defined(__AVX2__)
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#elif defined(__SSE2__)
  const __m128 four = (__m128)v;
#else
  const f32 four = v;
#endif
#if defined(__SSE2__)
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

UDML_FN double sum_of_lanes(f64 v) {
  double lane[W];
  memcpy(lane, &v, sizeof v);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

}  // namespace udml

#include "../normal.h"
#include "../philox.h"
#include "../scaled.h"
