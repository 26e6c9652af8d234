// Numbers stored as mantissa * 2^exponent. They serve products and quotients whose result lies in the range of C
// although intermediate results do not. C is float or double; F is C or a vector of C. csrc/cpu/simd.h overloads
// select, bits, from_bits, as_number and as_integer for vectors.
#pragma once

#include "lane.h"

namespace udml {

template <class C>
struct Format;
template <>
struct Format<float> {
  using Int = int32_t;
  static constexpr Int BITS = 23, BIAS = 127;
  static constexpr float SMALLEST_NORMAL = 0x1p-126f;
};
template <>
struct Format<double> {
  using Int = int64_t;
  static constexpr Int BITS = 52, BIAS = 1023;
  static constexpr double SMALLEST_NORMAL = 0x1p-1022;
};

// reparameterize multiplies std and mu by 2^-SQUARE_SHIFT / sqrt(prior variance), rounded to a power of 2, before it
// squares them, because the squares alone may overflow. SQUARE_SCALE restores the sum of the squares. Squares that
// underflow are less than 2^-30 of the 1 that they are compared with. udml_kernels/triton/_reparameterize.py has the
// same constants.
inline constexpr int SQUARE_SHIFT = 48;
inline constexpr double SQUARE_SCALE = 0x1p96;  // 2^(2 SQUARE_SHIFT)

template <class F>
struct Scaled {
  F mantissa, exponent;
};

// Splits x into a mantissa in [1, 2) with the sign of x, and an exponent; subnormal x are normalized. For 0, infinity
// and NaN the mantissa is x and the exponent 0.
template <class C, class F>
UDML_FN Scaled<F> split(F x) {
  using Layout = Format<C>;
  using Int = typename Layout::Int;
  constexpr Int ONES = 2 * Layout::BIAS + 1;
  const auto subnormal = select(x < C(0), -x, x) < Layout::SMALLEST_NORMAL;
  const auto word = bits(select(subnormal, x * C(Int(1) << Layout::BITS), x));
  const auto field = (word >> Layout::BITS) & ONES;
  const auto is_special = (field == Int(0)) | (field == ONES);
  const F mantissa = from_bits((word & ~(ONES << Layout::BITS)) | (Layout::BIAS << Layout::BITS));
  const F exponent = as_number(field - Layout::BIAS) - select(subnormal, F{} + C(Layout::BITS), F{});
  return {select(is_special, x, mantissa), select(is_special, F{}, exponent)};
}

// Returns x * 2^exponent for an integer exponent and |x| near 1. It multiplies in two steps, so that both factors are
// representable and a subnormal result is rounded correctly. Exponents are clamped where the result is infinite or 0
// anyway.
template <class C, class F>
UDML_FN F scale(F x, F exponent) {
  using Layout = Format<C>;
  constexpr C HIGHEST = 2 * Layout::BIAS, LOWEST = 2 - 2 * Layout::BIAS;
  exponent = select(exponent > HIGHEST, F{} + HIGHEST, exponent);
  exponent = select(exponent < LOWEST, F{} + LOWEST, exponent);
  const auto whole = as_integer(exponent), half = whole >> 1;
  return x * from_bits((half + Layout::BIAS) << Layout::BITS) *
         from_bits((whole - half + Layout::BIAS) << Layout::BITS);
}

// Stands for the exponent of 0. It is below the exponent of any other number.
inline constexpr int LOWEST_EXPONENT = -10000;

// Returns x^2 + y for y >= 0. The caller gives a y of 0 the exponent LOWEST_EXPONENT.
template <class C, class F>
UDML_FN Scaled<F> square_plus(Scaled<F> x, Scaled<F> y) {
  const F squared = select(x.mantissa == C(0), F{} + C(LOWEST_EXPONENT), x.exponent + x.exponent);
  const F base = select(squared > y.exponent, squared, y.exponent);
  const Scaled<F> sum =
      split<C>(scale<C>(x.mantissa * x.mantissa, squared - base) + scale<C>(y.mantissa, y.exponent - base));
  return {sum.mantissa, sum.exponent + base};
}

// Splits a / b, which may leave the range of C, into two factors near the square root of |a / b|. For x and y of
// similar size, no intermediate result of (x * first) * (y * second) overflows or underflows unless the whole product
// does.
template <class C>
UDML_FN void split_quotient(C a, C b, C& first, C& second) {
  const Scaled<C> numerator = split<C>(a), denominator = split<C>(b);
  // If a is 0, the second factor must be 1: x times a large power of 2 could overflow, and 0 * inf is NaN.
  const C exponent = a == C(0) ? C(0) : numerator.exponent - denominator.exponent,
          half = as_number(as_integer(exponent) >> 1);
  first = scale<C>(numerator.mantissa / denominator.mantissa, half);
  second = scale<C>(C(1), exponent - half);
}

}  // namespace udml
