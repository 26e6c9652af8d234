// The Box-Muller transform for AVX-512, which has instructions for exponent and mantissa. Other levels use ../normal.h.
#pragma once

#include "simd.h"

#if defined(__AVX512F__)

namespace udml {

// Returns -2 ln u for u = (2 (w >> 8) + 1) * 2^-25. Let u = 2^e m and let t near 1 / m be the table entry for the first
// four bits of m. Then r = m t - 1 lies within 1/32 and -2 ln u = -2 e ln 2 + 2 ln t - 2 ln(1 + r). Just below u = 1, t
// is 1/2, so that the first two terms cancel exactly.
UDML_FN f32 minus_two_log_uniform(u32 word) {
  const f32 t = {0.969696999f, 0.914285719f, 0.864864886f, 0.820512831f, 0.780487776f, 0.744186044f,
                 0.711111128f, 0.680851042f, 0.653061211f, 0.627451003f, 0.603773594f, 0.581818163f,
                 0.561403513f, 0.542372882f, 0.524590135f, 0.5f};
  const f32 two_log_t = {-0.0615432577f, -0.179224306f, -0.290363971f, -0.395651461f, -0.495672402f, -0.590928433f,
                         -0.681853126f,  -0.768823461f, -0.852168832f, -0.932179389f, -1.00911199f,  -1.08319463f,
                         -1.15463072f,   -1.22360308f,  -1.29027603f,  -1.38629436f};
  // The sum is rounded down: only the last of the 25 bits of the odd numerator, 2^-25, may be lost. The code adds it to
  // r, where it matters just below u = 1; for smaller u it is negligible.
  const __m512 u = _mm512_fmadd_round_ps((__m512)to_float(to_signed(word >> 8)), _mm512_set1_ps(0x1p-24f),
                                         _mm512_set1_ps(0x1p-25f), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  const f32 e = (f32)_mm512_getexp_ps(u), m = (f32)_mm512_getmant_ps(u, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  const __m512i first_bits = (__m512i)((u32)u >> 19);  // the permutation reads the lowest four bits
  const f32 r = (m * (f32)_mm512_permutexvar_ps(first_bits, (__m512)t) - 1.0f) + 0x1p-25f;
  const f32 rest = e * -1.38629436111989062f + (f32)_mm512_permutexvar_ps(first_bits, (__m512)two_log_t);
  return r * (((r * 0.5f - 0.666666667f) * r + 1.0f) * r - 2.0f) + rest;
}

// The formula of ../normal.h in fewer instructions.
UDML_FN void normals_from_words(u32 radius_word, u32 angle_word, f32& n0, f32& n1) {
  const f32 radius = (f32)_mm512_sqrt_ps((__m512)minus_two_log_uniform(radius_word));
  // The last 30 bits as a signed number: an angle within an eighth of a turn.
  const f32 angle = to_float(to_signed(angle_word << 2)) * 3.65729519816917920e-10f;
  f32 sine, cosine;
  sincos_reduced(angle, sine, cosine);
  const u32 turned = angle_word + 0x20000000u;
  const __mmask16 odd = _mm512_test_epi32_mask((__m512i)turned, _mm512_set1_epi32(0x40000000));
  const f32 size0 = (f32)_mm512_mask_blend_ps(odd, (__m512)cosine, (__m512)sine);
  const f32 size1 = (f32)_mm512_mask_blend_ps(odd, (__m512)sine, (__m512)cosine);
  n0 = radius * (f32)((u32)size0 ^ ((turned + 0x40000000u) & 0x80000000u));
  n1 = radius * (f32)((u32)size1 ^ (turned & 0x80000000u));
}

}  // namespace udml

#endif
