// What the Dirichlet losses need of the gamma function. With psi its logarithmic derivative,
//
//   KL(Dir(w) || Dir(1)) = sum_k r(w_k) - r(S) + (K - 1) psi(S) - ln Gamma(K),   S = sum_k w_k
//   r(x) = (x - 1) psi(x) - ln Gamma(x) - x
//
// r grows like ln x, where the terms of the textbook form grow like S ln S and cancel.
// Asymptotic series (Abramowitz & Stegun 6.1.41, 6.3.18, 6.4.12), after a shift of the argument.
#pragma once

#include "math.h"

namespace udml {

// (x - 1) psi(x) - ln Gamma(x) - x for x > 0, within 2e-6.
template <class F>
UDML_FN F dirichlet_term(F x) {
  const auto small = x < 8.0f;
  const F y = select(small, x + 6.0f, x), v = 1.0f / y, log_y = logarithm(y);
  F series = v * 3.968254e-3f - 4.7619048e-3f;
  series = series * v - 8.3333333e-3f;
  series = series * v + 1.1111111e-2f;
  series = series * v + 8.3333333e-2f;
  series = series * v + 3.3333333e-1f;
  const F at_y = series * v - (log_y * 0.5f + 1.4189385f);
  const F v2 = v * v;
  const F psi = log_y - (v * 0.5f + v2 * (8.3333333e-2f - v2 * (8.3333333e-3f - v2 * 3.968254e-3f)));
  // x (x+1) .. (x+5) from the pairs x (x+5), (x+1)(x+4), (x+2)(x+3).
  const F t = x * (x + 5.0f), product = t * (t + 4.0f) * (t + 6.0f);
  const F reciprocals = (x + x + 5.0f) * ((t * 3.0f + 20.0f) * t + 24.0f) / product;
  const F shifted = at_y + 6.0f - psi * 6.0f - (x - 1.0f) * reciprocals + logarithm(product);
  return select(small, shifted, at_y);
}

// (x - 1) psi'(x) for x > 0, within 1e-6.
template <class F>
UDML_FN F dirichlet_slope(F x) {
  const auto small = x < 8.0f;
  const F y = select(small, x + 6.0f, x), v = 1.0f / y, v2 = v * v;
  const F series = 1.6666667e-1f - v2 * (3.3333333e-2f - v2 * 2.3809524e-2f);
  const F at_y = v + v2 * (v * series + 0.5f);
  const F t0 = x * (x + 5.0f), t1 = t0 + 4.0f, t2 = t0 + 6.0f, sum = x + x + 5.0f, square = sum * sum;
  const F r0 = 1.0f / t0, r1 = 1.0f / t1, r2 = 1.0f / t2;
  // 1/a^2 + 1/b^2 = ((a+b)^2 - 2ab) / (ab)^2 for each pair.
  const F squares = (square - t0 * 2.0f) * r0 * r0 + (square - t1 * 2.0f) * r1 * r1 + (square - t2 * 2.0f) * r2 * r2;
  return (x - 1.0f) * select(small, at_y + squares, at_y);
}

UDML_FN double digamma(double x) {
  if (!(x > 0)) return x == 0 ? -INFINITY : NAN;
  double shift = 0;
  for (; x < 10; x += 1) shift -= 1 / x;
  const double v = 1 / (x * x);
  const double series =
      v * (1.0 / 12 - v * (1.0 / 120 - v * (1.0 / 252 - v * (1.0 / 240 - v * (1.0 / 132 - v * (691.0 / 32760 - v / 12))))));
  return shift + log(x) - 0.5 / x - series;
}

UDML_FN double trigamma(double x) {
  if (!(x > 0)) return x == 0 ? INFINITY : NAN;
  double shift = 0;
  for (; x < 10; x += 1) shift += 1 / (x * x);
  const double r = 1 / x, v = r * r;
  const double series =
      1.0 / 6 - v * (1.0 / 30 - v * (1.0 / 42 - v * (1.0 / 30 - v * (5.0 / 66 - v * (691.0 / 2730 - v * 7.0 / 6)))));
  return shift + r * (1 + r * (0.5 + r * series));
}

UDML_FN double dirichlet_term(double x) { return (x - 1) * digamma(x) - lgamma(x) - x; }
UDML_FN double dirichlet_slope(double x) { return (x - 1) * trigamma(x); }

}  // namespace udml
