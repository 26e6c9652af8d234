// Contiguous runs between a storage dtype and the type arithmetic is done in.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Half.h>

#include "simd.h"

namespace udml {

using torch::headeronly::ScalarType;

// The compiler's own conversion of a vector goes by halves, that of bytes lane by lane.
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

// Round to nearest even; a NaN stays one.
UDML_FN Vector<uint16_t, W> bfloat16_from_floats(f32 x) {
#if defined(__AVX512F__)
  const __m512i u = (__m512i)x, up = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
  const __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  return (Vector<uint16_t, W>)_mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#else
  const u32 u = (u32)x, rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return __builtin_convertvector((u32)select(x == x, (i32)rounded, (i32)(u | 0x400000u)) >> 16, Vector<uint16_t, W>);
#endif
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

UDML_FN Vector<uint16_t, W> half_from_floats(f32 x) {
#if defined(__AVX512F__)
  return (Vector<uint16_t, W>)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (Vector<uint16_t, W>)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
  Vector<uint16_t, W> v;
  for (int i = 0; i < W; ++i) v[i] = c10::detail::fp16_ieee_from_fp32_value(x[i]);
  return v;
#endif
}

UDML_FN f32 floats_from_bytes(const uint8_t* p) { return to_float(to_signed(words_from(p))); }

// The conversions come as lambdas, each a type of its own: a function pointer would be called, not inlined.
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
inline void narrow(const float* in, uint16_t* out, int64_t n, bool stream, Convert convert) {
  int64_t i = 0;
  if (stream && can_stream(out)) {
    for (; i + W <= n; i += W) store_streaming(out + i, convert(load(in + i)));
  }
  for (; i + W <= n; i += W) {
    const auto v = convert(load(in + i));
    memcpy(out + i, &v, sizeof v);
  }
  if (i < n) {
    const auto v = convert(load_first(in + i, n - i));
    memcpy(out + i, &v, static_cast<size_t>(n - i) * sizeof(uint16_t));
  }
}

inline void convert_run(const void* in, ScalarType dtype, float* out, int64_t n) {
  switch (dtype) {
    case ScalarType::BFloat16: return widen(static_cast<const uint16_t*>(in), out, n, [](const uint16_t* p) { return floats_from_bfloat16(p); });
    case ScalarType::Half: return widen(static_cast<const uint16_t*>(in), out, n, [](const uint16_t* p) { return floats_from_half(p); });
    case ScalarType::Byte: return widen(static_cast<const uint8_t*>(in), out, n, [](const uint8_t* p) { return floats_from_bytes(p); });
    case ScalarType::Double:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<const double*>(in)[i]);
      return;
    default:
      if (n > 0) memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
  }
}

inline void convert_run(const float* in, ScalarType dtype, void* out, int64_t n, bool stream = false) {
  switch (dtype) {
    case ScalarType::BFloat16: return narrow(in, static_cast<uint16_t*>(out), n, stream, [](f32 x) { return bfloat16_from_floats(x); });
    case ScalarType::Half: return narrow(in, static_cast<uint16_t*>(out), n, stream, [](f32 x) { return half_from_floats(x); });
    case ScalarType::Double:
      for (int64_t i = 0; i < n; ++i) static_cast<double*>(out)[i] = in[i];
      return;
    default:
      if (n > 0) memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
  }
}

// Arithmetic in double has float64 inputs; its results may still leave in another dtype.
inline void convert_run(const void* in, ScalarType dtype, double* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float x;
    if (dtype == ScalarType::Double) {
      out[i] = static_cast<const double*>(in)[i];
    } else {
      convert_run(static_cast<const char*>(in) + i * (dtype == ScalarType::Float ? 4 : dtype == ScalarType::Byte ? 1 : 2),
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
