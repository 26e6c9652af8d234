// The elementary functions of the ops in float32. The SIMD levels and CUDA share this code. F is float or a vector of
// floats; Lane<F> names the matching integer types; select, bits, from_bits, to_float, square_root and scale_by_power
// are overloaded for both.
//
// The polynomials are the minimax polynomials of the Cephes library (Moshier).
#pragma once

#include "lane.h"

namespace udml {

// Splits exp(x) = 2^n (1 + r + r^2 p). x is clamped to [-104, 89]; a NaN passes through.
template <class F>
UDML_FN void reduce_exponential(F x, F& n, F& r, F& p) {
  x = select(x > 89.0f, F{} + 89.0f, x);
  x = select(x < -104.0f, F{} - 104.0f, x);
  const F round = F{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  n = (x * 1.44269504088896341f + round) - round;
  r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
}

// exp(x) with an error of at most 2 ulp. It overflows to infinity, underflows gradually to 0 and propagates NaN.
template <class F>
UDML_FN F exponential(F x) {
  F n, r, p;
  reduce_exponential(x, n, r, p);
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

// log(1 + x), accurate also for small x: the rounding error of 1 + x is added back to the fraction.
template <class F>
UDML_FN F log_one_plus(F x) {
  const F u = x + 1.0f, lost = x - (u - 1.0f);
  const auto shifted = to_signed(to_word(bits(u)) - 0x3f3504f3u);
  const auto exponent = shifted >> 23;
  const F fraction = from_bits((shifted & 0x7fffff) + 0x3f3504f3) - 1.0f;
  const F scale = from_bits(to_signed(to_word(127 - exponent) << 23));
  const F y = log1p_reduced(fraction + lost * scale) + to_float(exponent) * 0.693147180559945309f;
  const F bounded = select(u == 0.0f, F{} - INFINITY, select(u < 0.0f, F{} + NAN, y));
  return select(x < INFINITY, bounded, x);
}

// exp(x) - 1, accurate also for small x.
template <class F>
UDML_FN F exp_minus_one(F x) {
  F n, r, p;
  reduce_exponential(x, n, r, p);
  // The code uses half of 2^n, because 2^128 overflows float while the result may not.
  const F half = scale_by_power(F{} + 0.5f, n);
  const F y = (((p * r) * r + r) * half + (half - 0.5f)) * 2.0f;
  return select(x > 88.7228394f, F{} + INFINITY, y);
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
