// The functions related to the gamma function that the Dirichlet losses use. psi is the derivative of ln Gamma.
//
//   KL(Dir(w) || Dir(1)) = sum_k r(w_k) - r(S) + (K - 1) psi(S) - ln Gamma(K),   S = sum_k w_k
//   r(x) = (x - 1) psi(x) - ln Gamma(x) - x
//
// r grows like ln x, while the terms of the textbook formula grow like S ln S and cancel. The losses subtract such
// functions from each other, so each function here omits the part that would cancel: psi(x) - ln x replaces psi(x),
// psi'(x) - 1/x replaces psi'(x), and 1 - (x - 1) psi'(x) replaces dr/dx + 1 = (x - 1) psi'(x), which approaches 1.
//
// The functions shift small arguments up and evaluate asymptotic series (Abramowitz & Stegun 6.1.41, 6.3.18, 6.4.12).
#pragma once

#include "math.h"

namespace udml {

// Returns (x - 1) psi(x) - ln Gamma(x) - x for x > 0 with an absolute error below 2e-6.
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
  // The products and reciprocals of x, x+1, ..., x+5 come from the pairs x (x+5), (x+1)(x+4), (x+2)(x+3).
  const F t = x * (x + 5.0f), product = t * (t + 4.0f) * (t + 6.0f);
  const F reciprocals = (x + x + 5.0f) * ((t * 3.0f + 20.0f) * t + 24.0f) / product;
  const F shifted = at_y + 6.0f - psi * 6.0f - (x - 1.0f) * reciprocals + logarithm(product);
  return select(small, shifted, at_y);
}

// Returns (x - 1) psi'(x) - offset at x = 1 + e > 0. For large x both terms approach 1, so the result is then computed
// from `one_minus_offset` = 1 - offset.
template <class F>
UDML_FN F dirichlet_slope(F e, F offset, F one_minus_offset) {
  const F x = e + 1.0f;
  const auto small = x < 8.0f;
  const F y = select(small, x + 6.0f, x), v = 1.0f / y, v2 = v * v;
  const F series = 1.6666667e-1f - v2 * (3.3333333e-2f - v2 * 2.3809524e-2f);
  const F half = v * series + 0.5f;
  const F t0 = x * (x + 5.0f), t1 = t0 + 4.0f, t2 = t0 + 6.0f, sum = x + x + 5.0f, square = sum * sum;
  const F r0 = 1.0f / t0, r1 = 1.0f / t1, r2 = 1.0f / t2;
  // 1/a^2 + 1/b^2 = ((a+b)^2 - 2ab) / (ab)^2 for each pair.
  const F squares = (square - t0 * 2.0f) * r0 * r0 + (square - t1 * 2.0f) * r1 * r1 + (square - t2 * 2.0f) * r2 * r2;
  const F one_minus_slope = v * (1.0f - (1.0f - v) * half);
  return select(small, e * (v + v2 * half + squares) - offset, one_minus_offset - one_minus_slope);
}

// The double versions shift x < 10 by ten, to y = x + 10. Pairs of the factors x, x+1, ..., x+9 have the products t,
// t+8, t+14, t+18, t+20 with t = x (x+9), and every pair has the sum 2 x + 9. With P(t) the product of all,
//   sum_i 1 / (x+i) = (2 x + 9) P'/P,  sum_i 1 / (x+i)^2 = (2 x + 9)^2 (P'^2 - P P'')/P^2 - 2 P'/P.
struct TenFactors {
  double pair_sum, product, first, second;  // 2 x + 9, P, P', P''

  UDML_FN explicit TenFactors(double x) : pair_sum(x + x + 9) {
    const double t = x * (x + 9);
    product = ((((t + 60) * t + 1308) * t + 12176) * t + 40320) * t;
    first = (((t * 5 + 240) * t + 3924) * t + 24352) * t + 40320;
    second = ((t * 20 + 720) * t + 7848) * t + 24352;
  }
  UDML_FN double sum_of_reciprocals() const { return pair_sum * first / product; }
  UDML_FN double sum_of_squared_reciprocals() const {
    const double inverse = 1 / product, sum = first * inverse;
    return pair_sum * pair_sum * (sum * sum - second * inverse) - 2 * sum;
  }
};

// psi(x) - ln x
UDML_FN double digamma_less_log(double x) {
  if (!(x >= 0)) return NAN;
  const bool small = x < 10;
  const double y = small ? x + 10 : x;
  const double shift = small ? log(y / x) - TenFactors(x).sum_of_reciprocals() : 0;
  const double r = 1 / y, v = r * r;
  const double series =
      v *
      (1.0 / 12 - v * (1.0 / 120 - v * (1.0 / 252 - v * (1.0 / 240 - v * (1.0 / 132 - v * (691.0 / 32760 - v / 12))))));
  return shift - 0.5 * r - series;
}

// (psi'(y) - 1 / y) y^2 for y = 1 / r >= 10
UDML_FN double trigamma_series(double r) {
  const double v = r * r;
  return 0.5 +
         r * (1.0 / 6 -
              v * (1.0 / 30 - v * (1.0 / 42 - v * (1.0 / 30 - v * (5.0 / 66 - v * (691.0 / 2730 - v * 7.0 / 6))))));
}

// psi'(x) - 1 / x
UDML_FN double trigamma_less_reciprocal(double x) {
  if (!(x >= 0)) return NAN;
  const bool small = x < 10;
  const double r = 1 / (small ? x + 10 : x);
  const double shift = small ? TenFactors(x).sum_of_squared_reciprocals() + (r - 1 / x) : 0;
  return shift + r * r * trigamma_series(r);
}

UDML_FN double digamma(double x) { return log(x) + digamma_less_log(x); }
UDML_FN double trigamma(double x) { return 1 / x + trigamma_less_reciprocal(x); }

// Returns 1 - (x - 1) psi'(x).
UDML_FN double one_minus_dirichlet_slope(double x) {
  if (x < 10) return 1 / x - (x - 1) * trigamma_less_reciprocal(x);
  const double r = 1 / x;
  return r * (1 - (1 - r) * trigamma_series(r));
}

UDML_FN double dirichlet_slope(double e, double offset, double one_minus_offset) {
  const double x = e + 1;
  return x < 8 ? e * trigamma(x) - offset : one_minus_offset - one_minus_dirichlet_slope(x);
}

UDML_FN double dirichlet_term(double x) {
  if (!(x > 0)) return NAN;
  // This value is exact, so that the divergence of a single class is exactly 0.
  if (x == 1) return -1;
  const bool small = x < 10;
  const double y = small ? x + 10 : x, r = 1 / y, v = r * r, log_y = log(y);
  // gap = y (ln y - psi(y)); stirling = ln Gamma(y) minus Stirling's formula.
  const double gap =
      0.5 + r * (1.0 / 12 -
                 v * (1.0 / 120 - v * (1.0 / 252 - v * (1.0 / 240 - v * (1.0 / 132 - v * (691.0 / 32760 - v / 12))))));
  const double stirling =
      r * (1.0 / 12 -
           v * (1.0 / 360 - v * (1.0 / 1260 - v * (1.0 / 1680 - v * (1.0 / 1188 - v * (691.0 / 360360 - v / 156))))));
  const double at_y = -0.5 * log_y - 0.91893853320467274 - (1 - r) * gap - stirling;
  if (!small) return at_y;
  const TenFactors factors(x);
  return at_y + 10 * (1 - log_y + r * gap) - (x - 1) * factors.sum_of_reciprocals() + log(factors.product);
}

// The Dirichlet parameters of a row. true_alpha is the parameter of the true class. The KL term sets that parameter to
// 1: kl_strength is the strength (the sum of all parameters) of the resulting distribution, wrong_evidence its total
// evidence.
struct Strengths {
  double true_alpha, kl_strength, wrong_evidence;

  UDML_FN double strength() const { return true_alpha + (kl_strength - 1); }
  // Returns strength() / true_alpha - 1.
  UDML_FN double excess_ratio() const { return (kl_strength - 1) / true_alpha; }
};

// Returns psi(strength) - psi(true_alpha). The arguments are psi(x) - ln x of both.
UDML_FN double cross_entropy(const Strengths& s, double strength_less_log, double true_less_log) {
  return log1p(s.excess_ratio()) + (strength_less_log - true_less_log);
}

// Returns psi'(strength) - psi'(true_alpha). The arguments are psi'(x) - 1/x of both.
UDML_FN double cross_entropy_slope(const Strengths& s, double strength_less_reciprocal, double true_less_reciprocal) {
  return (strength_less_reciprocal - true_less_reciprocal) - s.excess_ratio() / s.strength();
}

// Returns psi'(strength). If the evidence for two classes is infinite, the loss is NaN, and so is this derivative.
UDML_FN double common_slope(const Strengths& s, double strength_less_reciprocal) {
  return s.excess_ratio() == s.excess_ratio() ? 1 / s.strength() + strength_less_reciprocal : NAN;
}

// Computes offset = sum_k (w_k - 1) psi'(S), which dirichlet_slope subtracts for every class, and 1 - offset. `slope`
// is psi'(S) with S = kl_strength.
UDML_FN void divergence_offset(const Strengths& s, int64_t classes, double slope, double& offset,
                               double& one_minus_offset) {
  one_minus_offset = one_minus_dirichlet_slope(s.kl_strength) + static_cast<double>(classes - 1) * slope;
  offset = s.kl_strength < 10 ? s.wrong_evidence * slope : 1 - one_minus_offset;
}

}  // namespace udml
