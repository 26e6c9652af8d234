// The weights of a position: w_m = total * softmax_m(x), where x_m is 1 / (s_m alpha_m tau) or, for g = "inverse",
// -ln(s_m alpha_m) / tau. s is the uncertainty or, with a floor f, its square plus f^2; alpha is the dependency, tau
// the temperature. A position is a sample or, if the weights are per location, a location of a sample. A modality's
// share is its softmax probability.
//
// The reference takes part in the softmax as one more entry. It has the uncertainty of the reference, the mean
// dependency of the modalities present, and their number times the exponential of its x.
//
// s alpha and its inverse may leave the range of float although the weights are ordinary numbers. They are stored as
// mantissa and exponent (../scaled.h), and exponents are relative to the largest exponent of the position.
#pragma once

#include "../scaled.h"
#include "lanes.h"
#include "rows.h"

namespace udml {

// A tensor (modalities,), (rows, modalities) or (rows, modalities, locations) with any strides.
template <class T>
struct Entries {
  const T* data = nullptr;
  int64_t row_stride = 0, stride = 0, location_stride = 0;

  __device__ __forceinline__ T at(int64_t row, int m, int64_t location) const {
    return data[row * row_stride + m * stride + location * location_stride];
  }
};

// The inputs of one modality at a position. 1 / (s alpha) = inverse * 2^power with inverse in (1/4, 1]. If it is 0, the
// power is below all others.
template <class C>
struct Term {
  Scaled<C> s{1, 0}, alpha{1, 0};
  C inverse = 1, power = 0;
};

// Returns the larger number, or a if b is NaN.
template <class C>
__device__ __forceinline__ C larger(C a, C b) {
  return b > a ? b : a;
}

template <class C>
struct Weighting {
  Entries<C> uncertainty, dependency;
  Entries<uint8_t> mask;
  int64_t rows, locations;
  int modalities;
  // A sample has 2^log2_lanes lanes, at least the number of modalities and one for the reference.
  unsigned log2_lanes;
  bool inverse, tempered, has_total, has_floor, has_reference;
  // 1 / temperature
  Scaled<C> inverse_temperature;
  C total;
  // f^2, and the reference's s.
  Scaled<C> floor_squared, reference;

  // From a shift the compiler knows that this is a power of 2, so it divides by shifts.
  __device__ __forceinline__ unsigned lanes() const { return 1u << log2_lanes; }

  __device__ __forceinline__ bool has(int64_t row, int m, int64_t location) const {
    return mask.data == nullptr || mask.at(row, m, location) != 0;
  }

  // Splits x, or NaN unless x is positive: the weights are based on the logarithm of x.
  static __device__ __forceinline__ Scaled<C> split_positive(C x) { return split<C>(x > C(0) ? x : C(NAN)); }

  __device__ __forceinline__ Term<C> term(int64_t row, int m, int64_t location) const {
    Term<C> term;
    const C x = uncertainty.at(row, m, location);
    if (has_floor) {
      term.s = square_plus<C>(split<C>(x), floor_squared);
      // s is 0 if x and the floor are.
      if (!(term.s.mantissa > C(0))) term.s.mantissa = C(NAN);
    } else {
      term.s = split_positive(x);
    }
    if (dependency.data != nullptr) term.alpha = split_positive(dependency.at(row, m, location));
    invert(term);
    return term;
  }

  // The derivative of s with respect to the uncertainty.
  __device__ __forceinline__ Scaled<C> slope(int64_t row, int m, int64_t location) const {
    if (!has_floor) return {1, 0};
    const Scaled<C> deviation = split<C>(uncertainty.at(row, m, location));
    return {2 * deviation.mantissa, deviation.exponent};
  }

  // `alpha_sum` is the sum of the dependencies of the `count` modalities present.
  __device__ __forceinline__ Term<C> reference_term(const Scaled<C>& alpha_sum, C count) const {
    Term<C> term;
    term.s = reference;
    term.alpha = split_positive(alpha_sum.mantissa / count);
    term.alpha.exponent += alpha_sum.exponent;
    invert(term);
    return term;
  }

  static __device__ __forceinline__ void invert(Term<C>& term) {
    term.inverse = C(1) / (term.s.mantissa * term.alpha.mantissa);
    term.power = term.inverse == C(0) ? C(LOWEST_EXPONENT) : -(term.s.exponent + term.alpha.exponent);
  }

  static __device__ __forceinline__ C score(const Term<C>& term, C highest) {
    return scale<C>(term.inverse, term.power - highest);
  }

  // A modality's share relative to approximately the largest share; `top` is the largest score. For g = "inverse" and
  // temperature 1 it is a ratio of the inverses: this is exact, while the logarithms of 1e-30 and 1e30 would lose seven
  // bits.
  __device__ __forceinline__ C relative_share(const Term<C>& term, C top, C highest) const {
    C logarithmic = score(term, highest), exponent = inverse_temperature.exponent;
    if (inverse) {
      if (!tempered) return logarithmic;
      logarithmic = logarithm(term.inverse / top) + (term.power - highest) * C(0.693147180559945309);
    } else {
      logarithmic -= top;
      exponent += highest;
    }
    return exponential(scale<C>(logarithmic * inverse_temperature.mantissa, exponent));
  }

  // Adding 0 avoids -0, which marks an absent modality in factors.
  __device__ __forceinline__ C weight(C share, C count) const { return share * (has_total ? total : count) + C(0); }

  // Whether the weights do not depend on the inputs: there is only one modality, and no reference.
  __device__ __forceinline__ bool has_constant_weights(C count) const { return count == C(1) && !has_reference; }
};

// ---- `lanes` neighboring lanes of a warp process a row, one modality per lane; the lane after the last modality
// processes the reference. All lanes of the warp call these functions.

template <class C>
__device__ __forceinline__ C sum_over_modalities(C value, unsigned lanes) {
#pragma unroll
  for (unsigned offset = MAX_MODALITIES; offset > 0; offset /= 2)
    if (offset < lanes) value += __shfl_xor_sync(0xffffffffu, value, static_cast<int>(offset));
  return value;
}

// This maximum ignores NaN.
template <class C>
__device__ __forceinline__ C maximum_over_modalities(C value, unsigned lanes) {
#pragma unroll
  for (unsigned offset = MAX_MODALITIES; offset > 0; offset /= 2) {
    if (offset >= lanes) continue;
    value = larger(value, __shfl_xor_sync(0xffffffffu, value, static_cast<int>(offset)));
  }
  return value;
}

// Either the modality is present, or the lane has the reference, or neither takes part in the softmax.
template <class C>
struct ModalityWeight {
  Term<C> term;
  C share, weight, count;
  bool present, is_reference;

  __device__ __forceinline__ bool takes_part() const { return present || is_reference; }
};

// Returns the sum of the dependencies of the modalities present, relative to the largest exponent: it may leave the
// range of C.
template <class C>
__device__ __forceinline__ Scaled<C> sum_dependencies(const Scaled<C>& alpha, bool present, unsigned lanes) {
  const C highest = maximum_over_modalities(present ? alpha.exponent : C(LOWEST_EXPONENT), lanes);
  return {sum_over_modalities(present ? scale<C>(alpha.mantissa, alpha.exponent - highest) : C(0), lanes), highest};
}

template <class C>
__device__ __forceinline__ ModalityWeight<C> compute_modality_weight(const Weighting<C>& weighting, int64_t row,
                                                                     bool exists) {
  const unsigned lanes = weighting.lanes();
  const int m = static_cast<int>(threadIdx.x % lanes);
  ModalityWeight<C> at{{}, 0, 0, 0, exists && m < weighting.modalities, false};
  if (at.present) at.present = weighting.has(row, m, 0);
  if (at.present) at.term = weighting.term(row, m, 0);
  at.count = sum_over_modalities(C(at.present), lanes);
  if (weighting.has_reference) {
    const Scaled<C> alpha_sum = sum_dependencies(at.term.alpha, at.present, lanes);
    at.is_reference = m == weighting.modalities && at.count > C(0);
    if (at.is_reference) at.term = weighting.reference_term(alpha_sum, at.count);
  }
  const C highest = maximum_over_modalities(at.takes_part() ? at.term.power : C(LOWEST_EXPONENT), lanes);
  const C top = maximum_over_modalities(at.takes_part() ? weighting.score(at.term, highest) : C(0), lanes);
  C share = at.takes_part() ? weighting.relative_share(at.term, top, highest) : C(0);
  if (at.is_reference) share *= at.count;
  const C sum = sum_over_modalities(share, lanes);
  at.share = at.takes_part() ? share / sum : C(0);
  at.weight = weighting.weight(at.share, at.count);
  return at;
}

// ---- One thread processes a location. Its passes over the modalities store intermediate values in the result.

// The number of modalities present at a location, and the reference's share; without a reference it is 0.
template <class C>
struct Position {
  C count = 0, reference_share = 0;
};

template <class C>
__device__ __forceinline__ Term<C> reference_term_at(const Weighting<C>& weighting, int64_t row, int64_t location,
                                                     C count) {
  if (weighting.dependency.data == nullptr) return weighting.reference_term({count, 0}, count);
  // The sum is in double because it may leave the range of float.
  double alpha_sum = 0;
#pragma unroll 1
  for (int m = 0; m < weighting.modalities; ++m)
    if (weighting.has(row, m, location)) alpha_sum += static_cast<double>(weighting.dependency.at(row, m, location));
  const Scaled<double> sum = split<double>(alpha_sum);
  return weighting.reference_term({static_cast<C>(sum.mantissa), static_cast<C>(sum.exponent)}, count);
}

// The largest score of the terms so far, relative to the largest exponent.
template <class C>
struct TopScore {
  C top = 0, highest = LOWEST_EXPONENT;

  __device__ __forceinline__ void include(const Term<C>& term) {
    const C above = larger(highest, term.power);
    top = larger(scale<C>(top, highest - above), Weighting<C>::score(term, above));
    highest = above;
  }
};

// Computes the shares of the modalities in out[m * locations + location].
template <class C>
__device__ __forceinline__ Position<C> share_location(const Weighting<C>& weighting, int64_t row, int64_t location,
                                                      C* out) {
  TopScore<C> best;
  Position<C> position;
#pragma unroll 1
  for (int m = 0; m < weighting.modalities; ++m) {
    if (!weighting.has(row, m, location)) continue;
    best.include(weighting.term(row, m, location));
    position.count += 1;
  }
  if (weighting.has_reference) {
    const Term<C> reference = reference_term_at(weighting, row, location, position.count);
    best.include(reference);
    position.reference_share = position.count * weighting.relative_share(reference, best.top, best.highest);
  }
  C sum = position.reference_share;
  C* entry = out + location;
#pragma unroll 1
  for (int m = 0; m < weighting.modalities; ++m, entry += weighting.locations) {
    C share = 0;
    if (weighting.has(row, m, location))
      share = weighting.relative_share(weighting.term(row, m, location), best.top, best.highest);
    *entry = share;
    sum += share;
  }
  if (weighting.has_reference) position.reference_share /= sum;
  entry = out + location;
#pragma unroll 1
  for (int m = 0; m < weighting.modalities; ++m, entry += weighting.locations)
    *entry = weighting.has(row, m, location) ? *entry / sum : C(0);
  return position;
}

// ---- The factors of features: the weight or, in residual mode, 1 + weight. The factor of an absent modality is -0;
// kernels then treat the product with its features as 0, even if they are NaN.

template <class C>
__device__ __forceinline__ C factor_of(C weight, bool present, bool residual) {
  return residual ? 1 + weight : present ? weight : -C(0);
}
__device__ __forceinline__ bool is_absent(float factor) { return __float_as_int(factor) == INT32_MIN; }
__device__ __forceinline__ bool is_absent(double factor) { return __double_as_longlong(factor) == INT64_MIN; }

}  // namespace udml
