// Conversion of contiguous runs between a storage dtype and the arithmetic type.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Half.h>

#include "simd.h"

namespace udml {

using torch::headeronly::ScalarType;

// The intrinsics convert a full vector at once. The compiler's own code converts uint16 in two halves and bytes lane by
// lane.
UDML_FN u32 words_from(const uint16_t* p) {
#if defined(__AVX512F__)
  return (u32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (u32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  Vector<uint16_t, W> v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, u32);
#endif
}

UDML_FN u32 words_from(const uint8_t* p) {
#if defined(__AVX512F__)
  return (u32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (u32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  Vector<uint8_t, W> v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, u32);
#endif
}

UDML_FN f32 floats_from_bfloat16(const uint16_t* p) { return (f32)(words_from(p) << 16); }

// 16-bit numbers from two float vectors, which fill one register.
using Halves = Vector<uint16_t, 2 * W>;

// Returns the upper 16 bits of every word of a, then of b.
UDML_FN Halves upper_halves(u32 a, u32 b) {
#if defined(__AVX512F__)
  alignas(64) static constexpr uint16_t ODD[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                   33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return (Halves)_mm512_permutex2var_epi16((__m512i)a, _mm512_load_si512(ODD), (__m512i)b);
#elif defined(__AVX2__)
  const __m256i mixed = _mm256_packs_epi32(_mm256_srai_epi32((__m256i)a, 16), _mm256_srai_epi32((__m256i)b, 16));
  return (Halves)_mm256_permute4x64_epi64(mixed, 0xD8);
#elif defined(__SSE2__)
  return (Halves)_mm_packs_epi32(_mm_srai_epi32((__m128i)a, 16), _mm_srai_epi32((__m128i)b, 16));
#else
  Halves result;
  const Vector<uint16_t, W> first = __builtin_convertvector(a >> 16, Vector<uint16_t, W>);
  const Vector<uint16_t, W> second = __builtin_convertvector(b >> 16, Vector<uint16_t, W>);
  memcpy(&result, &first, sizeof first);
  memcpy(reinterpret_cast<char*>(&result) + sizeof first, &second, sizeof second);
  return result;
#endif
}

// Rounds to bfloat16 (nearest even) in the upper 16 bits. A NaN stays a NaN.
UDML_FN u32 rounded_to_bfloat16(f32 x) {
#if defined(__AVX512F__)
  // Replaces quiet and signaling NaNs by the indefinite NaN, whose payload survives the rounding; other numbers stay
  // unchanged.
  const __m512i u = (__m512i)_mm512_fixupimm_ps((__m512)x, (__m512)x, _mm512_set1_epi32(0x33), 0);
  const __m512i up = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
  const __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
  return (u32)_mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
#else
  const u32 u = (u32)x, rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return (u32)select(x == x, (i32)rounded, (i32)(u | 0x400000u));
#endif
}

UDML_FN Halves bfloat16_from_floats(f32 a, f32 b) {
  return upper_halves(rounded_to_bfloat16(a), rounded_to_bfloat16(b));
}

UDML_FN f32 floats_from_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (f32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (f32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  f32 v;
  for (int i = 0; i < W; ++i) v[i] = c10::detail::fp16_ieee_to_fp32_value(p[i]);
  return v;
#endif
}

UDML_FN Halves half_from_floats(f32 a, f32 b) {
#if defined(__AVX512F__)
  const __m256i first = _mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT);
  const __m256i second = _mm512_cvtps_ph((__m512)b, _MM_FROUND_TO_NEAREST_INT);
  return (Halves)_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
#elif defined(__F16C__)
  const __m128i first = _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT);
  const __m128i second = _mm256_cvtps_ph((__m256)b, _MM_FROUND_TO_NEAREST_INT);
  return (Halves)_mm256_set_m128i(second, first);
#else
  Halves v;
  for (int i = 0; i < W; ++i) v[i] = c10::detail::fp16_ieee_from_fp32_value(a[i]);
  for (int i = 0; i < W; ++i) v[W + i] = c10::detail::fp16_ieee_from_fp32_value(b[i]);
  return v;
#endif
}

UDML_FN f32 floats_from_bytes(const uint8_t* p) { return to_float(to_signed(words_from(p))); }

// The conversions are lambdas, each with its own type, so that the compiler inlines them. It would not inline function
// pointers.
template <class S, class Convert>
inline void widen(const S* in, float* out, int64_t n, Convert convert) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, convert(in + i));
  if (i < n) {
    S rest[W] = {};
    memcpy(rest, in + i, static_cast<size_t>(n - i) * sizeof(S));
    store_first(out + i, convert(rest), n - i);
  }
}

template <class Convert>
inline void narrow(const float* in, uint16_t* out, int64_t n, bool nontemporal, Convert convert) {
  int64_t i = 0;
  if (nontemporal && can_store_nontemporal(out)) {
    for (; i + 2 * W <= n; i += 2 * W) store_nontemporal(out + i, convert(load(in + i), load(in + i + W)));
  }
  for (; i + 2 * W <= n; i += 2 * W) {
    const Halves v = convert(load(in + i), load(in + i + W));
    memcpy(out + i, &v, sizeof v);
  }
  if (i < n) {
    const int64_t rest = n - i, first = rest < W ? rest : W;
    const Halves v = convert(load_first(in + i, first), load_first(in + i + first, rest - first));
    memcpy(out + i, &v, static_cast<size_t>(rest) * sizeof(uint16_t));
  }
}

inline void convert_run(const void* in, ScalarType dtype, float* out, int64_t n) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return widen(static_cast<const uint16_t*>(in), out, n, [](const uint16_t* p) { return floats_from_bfloat16(p); });
    case ScalarType::Half:
      return widen(static_cast<const uint16_t*>(in), out, n, [](const uint16_t* p) { return floats_from_half(p); });
    case ScalarType::Byte:
      return widen(static_cast<const uint8_t*>(in), out, n, [](const uint8_t* p) { return floats_from_bytes(p); });
    case ScalarType::Double:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<const double*>(in)[i]);
      return;
    default:
      if (n > 0) memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
  }
}

inline void convert_run(const float* in, ScalarType dtype, void* out, int64_t n, bool nontemporal = false) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return narrow(in, static_cast<uint16_t*>(out), n, nontemporal,
                    [](f32 a, f32 b) { return bfloat16_from_floats(a, b); });
    case ScalarType::Half:
      return narrow(in, static_cast<uint16_t*>(out), n, nontemporal,
                    [](f32 a, f32 b) { return half_from_floats(a, b); });
    case ScalarType::Double:
      for (int64_t i = 0; i < n; ++i) static_cast<double*>(out)[i] = in[i];
      return;
    default:
      if (n > 0) memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
  }
}

// Double arithmetic has float64 inputs, but its results may have another dtype.
inline void convert_run(const void* in, ScalarType dtype, double* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float x;
    if (dtype == ScalarType::Double) {
      out[i] = static_cast<const double*>(in)[i];
    } else {
      convert_run(static_cast<const char*>(in) + i * (dtype == ScalarType::Float  ? 4
                                                      : dtype == ScalarType::Byte ? 1
                                                                                  : 2),
                  dtype, &x, 1);
      out[i] = x;
    }
  }
}

inline void convert_run(const double* in, ScalarType dtype, void* out, int64_t n, bool = false) {
  if (dtype == ScalarType::Double) {
    if (n > 0) memcpy(out, in, static_cast<size_t>(n) * sizeof(double));
    return;
  }
  const int64_t size = dtype == ScalarType::Float ? 4 : 2;
  for (int64_t i = 0; i < n; ++i) {
    const float x = static_cast<float>(in[i]);
    convert_run(&x, dtype, static_cast<char*>(out) + i * size, 1);
  }
}

}  // namespace udml
