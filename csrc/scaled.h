// Numbers as mantissa * 2^exponent, for products and quotients whose factors' products leave the range of C on the way
// while the result lies within it. C is float or double, F is C or a vector of C; csrc/cpu/simd.h overloads select,
// bits, from_bits, as_number and as_integer for vectors.
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

template <class F>
struct Scaled {
  F mantissa, exponent;
};

// The mantissa's size is in [1, 2), subnormal x included. Of 0, infinity and NaN it is x itself, the exponent 0.
template <class C, class F>
UDML_FN Scaled<F> split(F x) {
  using Of = Format<C>;
  using Int = typename Of::Int;
  constexpr Int ONES = 2 * Of::BIAS + 1;
  const auto subnormal = select(x < C(0), -x, x) < Of::SMALLEST_NORMAL;
  const auto word = bits(select(subnormal, x * C(Int(1) << Of::BITS), x));
  const auto field = (word >> Of::BITS) & ONES;
  const auto special = (field == Int(0)) | (field == ONES);
  const F mantissa = from_bits((word & ~(ONES << Of::BITS)) | (Of::BIAS << Of::BITS));
  const F exponent = as_number(field - Of::BIAS) - select(subnormal, F{} + C(Of::BITS), F{});
  return {select(special, x, mantissa), select(special, F{}, exponent)};
}

// x * 2^exponent for any integral exponent and x of a size near 1, in two steps: neither factor nor a subnormal result
// is then wrong. Powers are cut to where the result is infinite or 0 anyway.
template <class C, class F>
UDML_FN F scale(F x, F exponent) {
  using Of = Format<C>;
  constexpr C HIGHEST = 2 * Of::BIAS, LOWEST = 2 - 2 * Of::BIAS;
  exponent = select(exponent > HIGHEST, F{} + HIGHEST, exponent);
  exponent = select(exponent < LOWEST, F{} + LOWEST, exponent);
  const auto whole = as_integer(exponent), half = whole >> 1;
  return x * from_bits((half + Of::BIAS) << Of::BITS) * from_bits((whole - half + Of::BIAS) << Of::BITS);
}

// Two factors near the square root of |a / b|, whose product a / b is: their quotient itself may leave the range. Of a
// product with x and y that is given (x * first) * (y * second), no part does where the whole does not.
template <class C>
UDML_FN void quotient_in_two(C a, C b, C& first, C& second) {
  const Scaled<C> over = split<C>(a), under = split<C>(b);
  // If a is 0, the second factor must be 1: x times a large power of 2 could overflow, and 0 * inf is NaN.
  const C exponent = a == C(0) ? C(0) : over.exponent - under.exponent, half = as_number(as_integer(exponent) >> 1);
  first = scale<C>(over.mantissa / under.mantissa, half);
  second = scale<C>(C(1), exponent - half);
}

}  // namespace udml
