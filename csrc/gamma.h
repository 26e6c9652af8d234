// What the Dirichlet losses need of the gamma function. With psi its logarithmic derivative,
//
//   KL(Dir(w) || Dir(1)) = sum_k r(w_k) - r(S) + (K - 1) psi(S) - ln Gamma(K),   S = sum_k w_k
//   r(x) = (x - 1) psi(x) - ln Gamma(x) - x
//
// r grows like ln x, where the terms of the textbook form grow like S ln S and cancel. What the loss takes from each other
// is likewise formed without what they have in common: psi(x) - ln x instead of psi(x), psi'(x) - 1/x instead of psi'(x),
// and of dr/dx + 1 = (x - 1) psi'(x), which approaches 1, the rest.
//
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

// (x - 1) psi'(x) - divergence at x = 1 + e > 0. Where x is large both are almost 1: `rest` is 1 - divergence.
template <class F>
UDML_FN F dirichlet_slope(F e, F divergence, F rest) {
  const F x = e + 1.0f;
  const auto small = x < 8.0f;
  const F y = select(small, x + 6.0f, x), v = 1.0f / y, v2 = v * v;
  const F series = 1.6666667e-1f - v2 * (3.3333333e-2f - v2 * 2.3809524e-2f);
  const F half = v * series + 0.5f;
  const F t0 = x * (x + 5.0f), t1 = t0 + 4.0f, t2 = t0 + 6.0f, sum = x + x + 5.0f, square = sum * sum;
  const F r0 = 1.0f / t0, r1 = 1.0f / t1, r2 = 1.0f / t2;
  // 1/a^2 + 1/b^2 = ((a+b)^2 - 2ab) / (ab)^2 for each pair.
  const F squares = (square - t0 * 2.0f) * r0 * r0 + (square - t1 * 2.0f) * r1 * r1 + (square - t2 * 2.0f) * r2 * r2;
  const F from_1 = v * (1.0f - (1.0f - v) * half);
  return select(small, e * (v + v2 * half + squares) - divergence, rest - from_1);
}

// psi(x) - ln x
UDML_FN double digamma_less_log(double x) {
  if (!(x >= 0)) return NAN;
  double shift = 0, y = x;
  for (; y < 10; y += 1) shift -= 1 / y;
  if (y > x) shift += log(y / x);
  const double r = 1 / y, v = r * r;
  const double series =
      v * (1.0 / 12 - v * (1.0 / 120 - v * (1.0 / 252 - v * (1.0 / 240 - v * (1.0 / 132 - v * (691.0 / 32760 - v / 12))))));
  return shift - 0.5 * r - series;
}

// (psi'(y) - 1 / y) y^2 for y = 1 / r >= 10
UDML_FN double trigamma_series(double r) {
  const double v = r * r;
  return 0.5 + r * (1.0 / 6 - v * (1.0 / 30 - v * (1.0 / 42 - v * (1.0 / 30 - v * (5.0 / 66 - v * (691.0 / 2730 - v * 7.0 / 6))))));
}

// psi'(x) - 1 / x
UDML_FN double trigamma_less_reciprocal(double x) {
  if (!(x >= 0)) return NAN;
  double shift = 0, y = x;
  for (; y < 10; y += 1) shift += 1 / (y * y);
  const double r = 1 / y;
  if (y > x) shift += r - 1 / x;
  return shift + r * r * trigamma_series(r);
}

UDML_FN double digamma(double x) { return log(x) + digamma_less_log(x); }
UDML_FN double trigamma(double x) { return 1 / x + trigamma_less_reciprocal(x); }

// 1 - (x - 1) psi'(x)
UDML_FN double slope_from_1(double x) {
  if (x < 10) return 1 / x - (x - 1) * trigamma_less_reciprocal(x);
  const double r = 1 / x;
  return r * (1 - (1 - r) * trigamma_series(r));
}

UDML_FN double dirichlet_slope(double e, double divergence, double rest) {
  const double x = e + 1;
  return x < 8 ? e * trigamma(x) - divergence : rest - slope_from_1(x);
}

UDML_FN double dirichlet_term(double x) {
  if (!(x > 0)) return NAN;
  // Exact, so that with one class there is no divergence.
  if (x == 1) return -1;
  double y = x, count = 0, product = 1, reciprocals = 0;
  for (; y < 10; y += 1) count += 1, product *= y, reciprocals += 1 / y;
  const double r = 1 / y, v = r * r, log_y = log(y);
  // y (ln y - psi(y)), and what ln Gamma(y) has beside Stirling's formula.
  const double gap =
      0.5 + r * (1.0 / 12 - v * (1.0 / 120 - v * (1.0 / 252 - v * (1.0 / 240 - v * (1.0 / 132 - v * (691.0 / 32760 - v / 12))))));
  const double stirling =
      r * (1.0 / 12 - v * (1.0 / 360 - v * (1.0 / 1260 - v * (1.0 / 1680 - v * (1.0 / 1188 - v * (691.0 / 360360 - v / 156))))));
  const double at_y = -0.5 * log_y - 0.91893853320467274 - (1 - r) * gap - stirling;
  if (count == 0) return at_y;
  return at_y + count * (1 - log_y + r * gap) - (x - 1) * reciprocals + log(product);
}

// The Dirichlet parameters of a row: the true class's, and the strength and the evidence of those in the divergence, in
// which the true class has parameter 1.
struct Strengths {
  double true_alpha, wrong, wrong_evidence;

  UDML_FN double all() const { return true_alpha + (wrong - 1); }
  // By which part of the true class's parameter the strength exceeds it.
  UDML_FN double ratio() const { return (wrong - 1) / true_alpha; }
};

// psi(all) - psi(true_alpha), from the two less their logarithms.
UDML_FN double cross_entropy(const Strengths& s, double all_less_log, double true_less_log) {
  return log1p(s.ratio()) + (all_less_log - true_less_log);
}

// psi'(all) - psi'(true_alpha), from the two less their reciprocals.
UDML_FN double cross_entropy_slope(const Strengths& s, double all_less_reciprocal, double true_less_reciprocal) {
  return (all_less_reciprocal - true_less_reciprocal) - s.ratio() / s.all();
}

// psi'(all). Where two kinds of evidence are infinite the loss is NaN, and so is its slope.
UDML_FN double common_slope(const Strengths& s, double all_less_reciprocal) {
  return s.ratio() == s.ratio() ? 1 / s.all() + all_less_reciprocal : NAN;
}

// What dirichlet_slope takes from every class's share, and 1 less that: sum_k (w_k - 1) psi'(S), S = sum_k w_k.
UDML_FN void divergence_slopes(const Strengths& s, int64_t classes, double slope, double& divergence, double& rest) {
  rest = slope_from_1(s.wrong) + static_cast<double>(classes - 1) * slope;
  divergence = s.wrong < 10 ? s.wrong_evidence * slope : 1 - rest;
}

}  // namespace udml
