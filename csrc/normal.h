// Converts Philox words to the normal and uniform numbers that docs/ops.md specifies.
#pragma once

#include "math.h"

namespace udml {

// (w >> 8) * 2^-24, in [0, 1).
template <class F, class U>
UDML_FN F uniform_from_word(U word) {
  return to_float(to_signed(word >> 8)) * 0x1p-24f;
}

// Returns -2 ln u for u = (2 (w >> 8) + 1) * 2^-25. Above sqrt(1/2) the odd numerator has 25 bits, one more than a
// float holds, and ln u needs u - 1 with full relative accuracy. The integer numerator gives u - 1 exactly.
template <class F, class U>
UDML_FN F minus_two_log_uniform(U word) {
  const auto numerator = to_signed((word >> 8) * 2u + 1u);
  const auto upper = numerator >= 23726567;
  const F scaled = to_float(select(upper, numerator - 33554432, numerator)) * 0x1p-25f;
  F exponent, fraction;
  split_exponent(scaled, exponent, fraction);
  fraction = select(upper, scaled, fraction);
  exponent = select(upper, F{}, exponent);
  return log1p_reduced(fraction) * -2.0f + exponent * -1.38629436111989062f;
}

// The Box-Muller transform. The quadrant of the angle 2 pi w1 / 2^32 comes from the integer, so the polynomials only
// see angles within an eighth of a turn.
template <class F, class U>
UDML_FN void normals_from_words(U radius_word, U angle_word, F& n0, F& n1) {
  const F radius = square_root(minus_two_log_uniform<F>(radius_word));
  const U turned = angle_word + 0x20000000u;
  const F angle = to_float(to_signed(turned & 0x3fffffffu) - 0x20000000) * 1.46291807926715968e-9f;
  F sine, cosine;
  sincos_reduced(angle, sine, cosine);
  const auto odd = (turned & 0x40000000u) != 0u;
  const auto cosine_sign = to_signed((turned + 0x40000000u) & 0x80000000u);
  const auto sine_sign = to_signed(turned & 0x80000000u);
  n0 = radius * from_bits(bits(select(odd, sine, cosine)) ^ cosine_sign);
  n1 = radius * from_bits(bits(select(odd, cosine, sine)) ^ sine_sign);
}

// The double version, which evaluates the same integers.
UDML_FN void normals_from_words(uint32_t radius_word, uint32_t angle_word, double& n0, double& n1) {
  const double u = static_cast<double>(2 * (radius_word >> 8) + 1) * 0x1p-25;
  const double radius = sqrt(-2.0 * log(u));
  const uint32_t turned = angle_word + 0x20000000u;
  const double angle = (static_cast<int32_t>(turned & 0x3fffffffu) - 0x20000000) * 1.46291807926715957e-9;
  double sine, cosine;
  sincos_reduced(angle, sine, cosine);
  const bool odd = (turned & 0x40000000u) != 0;
  const double n0_size = odd ? sine : cosine, n1_size = odd ? cosine : sine;
  n0 = radius * ((turned + 0x40000000u) & 0x80000000u ? -n0_size : n0_size);
  n1 = radius * (turned & 0x80000000u ? -n1_size : n1_size);
}

}  // namespace udml
