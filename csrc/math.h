// The elementary functions of the ops in float32. The SIMD levels and CUDA share this code. F is float or a vector of
// floats; Lane<F> names the matching integer types; select, bits, from_bits, to_float, square_root and scale_by_power
// are overloaded for both.
//
// The polynomials are the minimax polynomials of the Cephes library (Moshier).
#pragma once

#include "lane.h"

namespace udml {

// exp(x) = 2^n (1 + r + r^2 p) with an error of at most 2 ulp. It overflows to infinity, underflows gradually to 0 and
// propagates NaN.
template <class F>
UDML_FN F exponential(F x) {
  x = select(x > 89.0f, F{} + 89.0f, x);
  x = select(x < -104.0f, F{} - 104.0f, x);
  const F round = F{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const F n = (x * 1.44269504088896341f + round) - round;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return scale_by_power((p * r) * r + (r + 1.0f), n);
}

// log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1] with a relative error of 1e-7, also near 0.
template <class F>
UDML_FN F log1p_reduced(F f) {
  const F z = f * f;
  F p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  return f + z * (p * f - 0.5f);
}

// Splits x = 2^exponent * (1 + fraction) with 1 + fraction in [sqrt(1/2), sqrt(2)). x must be positive and normal.
template <class F>
UDML_FN void split_exponent(F x, F& exponent, F& fraction) {
  // The subtraction is unsigned, so that it may wrap: some lanes may hold an x outside the domain.
  const auto shifted = to_signed(to_word(bits(x)) - 0x3f3504f3u);
  exponent = to_float(shifted >> 23);
  fraction = from_bits((shifted & 0x7fffff) + 0x3f3504f3) - 1.0f;
}

// Natural logarithm of any float, including subnormal numbers: -inf at 0 and NaN below 0.
template <class F>
UDML_FN F logarithm(F x) {
  const auto subnormal = x < 1.17549435e-38f;
  F exponent, fraction;
  split_exponent(select(subnormal, x * 33554432.0f, x), exponent, fraction);
  exponent = exponent - select(subnormal, F{} + 25.0f, F{});
  F y = log1p_reduced(fraction) + exponent * 0.693147180559945309f;
  y = select(x == 0.0f, F{} - INFINITY, y);
  y = select(x < 0.0f, F{} + NAN, y);
  // Infinity and NaN are returned unchanged.
  return select(x < INFINITY, y, x);
}

// The cumulative distribution function of the standard normal distribution, with a relative error of 1e-6 down to its
// underflow. With z = |x| / sqrt(2) and t = 1 / (1 + 0.4 z), a Chebyshev fit approximates erfc(z) exp(z^2) / t by a
// polynomial in t with an error below 2e-8.
template <class F>
UDML_FN F normal_cdf(F x) {
  const F size = select(x < 0.0f, -x, x), t = 1.0f / (size * 0.282842712f + 1.0f);
  F p = t * -0.0334144535f + 0.218501768f;
  p = p * t - 0.546335723f;
  p = p * t + 0.609876438f;
  p = p * t - 0.335468827f;
  p = p * t + 0.299025116f;
  p = p * t + 0.120529798f;
  p = p * t + 0.216842462f;
  p = p * t + 0.224725066f;
  p = p * t + 0.225718357f;
  const F tail = p * t * 0.5f * exponential(x * x * -0.5f);
  return select(x < 0.0f, tail, 1.0f - tail);
}

// Sine and cosine of an angle in [-pi/4, pi/4].
template <class F>
UDML_FN void sincos_reduced(F a, F& sine, F& cosine) {
  const F z = a * a;
  const F s = (z * -1.9515295891e-4f + 8.3321608736e-3f) * z - 1.6666654611e-1f;
  const F c = (z * 2.443315711809948e-5f - 1.388731625493765e-3f) * z + 4.166664568298827e-2f;
  sine = a + a * (z * s);
  cosine = (c * z - 0.5f) * z + 1.0f;
}

// The double version, with the polynomials of fdlibm (Sun Microsystems).
UDML_FN void sincos_reduced(double a, double& sine, double& cosine) {
  const double z = a * a;
  double s = z * 1.58969099521155010221e-10 - 2.50507602534068634195e-8,
         c = z * -1.13596475577881948265e-11 + 2.08757232129817482790e-9;
  s = z * s + 2.75573137070700676789e-6;
  s = z * s - 1.98412698298579493134e-4;
  s = z * s + 8.33333333332248946124e-3;
  s = z * s - 1.66666666666666324348e-1;
  c = z * c - 2.75573143513906633035e-7;
  c = z * c + 2.48015872894767294178e-5;
  c = z * c - 1.38888888888741095749e-3;
  c = z * c + 4.16666666666666019037e-2;
  sine = a + a * (z * s);
  cosine = (c * z - 0.5) * z + 1.0;
}

}  // namespace udml
