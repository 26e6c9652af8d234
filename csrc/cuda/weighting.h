// The weights of a position: w_m = total * softmax_m(x), where x_m is 1 / (s_m alpha_m tau) or, for g = "inverse",
// -ln(s_m alpha_m) / tau. s is the uncertainty, alpha the dependency, tau the temperature. A position is a sample or,
// if the weights are per location, a location of a sample. A modality's share is its softmax probability.
//
// s alpha and its inverse may leave the range of float although the weights are ordinary numbers. They are stored as
// mantissa and exponent (../scaled.h), and exponents are relative to the largest exponent of the position.
#pragma once

#include "../scaled.h"
#include "lanes.h"
#include "inputs.h"

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
  Scaled<C> s, alpha;
  C inverse, power;
};

template <class C>
struct Weighting {
  Entries<C> uncertainty, dependency;
  Entries<uint8_t> mask;
  int64_t rows, locations;
  int modalities;
  // A sample has 2^log2_lanes lanes, at least the number of modalities.
  unsigned log2_lanes;
  bool inverse, tempered, has_total;
  // 1 / temperature
  Scaled<C> inverse_temperature;
  C total;

  // From a shift the compiler knows that this is a power of 2, so it divides by shifts.
  __device__ __forceinline__ unsigned lanes() const { return 1u << log2_lanes; }

  __device__ __forceinline__ bool has(int64_t row, int m, int64_t location) const {
    return mask.data == nullptr || mask.at(row, m, location) != 0;
  }

  // Splits x, or NaN unless x is positive: the weights are based on the logarithm of x.
  static __device__ __forceinline__ Scaled<C> split_positive(C x) { return split<C>(x > C(0) ? x : C(NAN)); }

  __device__ __forceinline__ Term<C> term(int64_t row, int m, int64_t location) const {
    const Scaled<C> s = split_positive(uncertainty.at(row, m, location));
    const Scaled<C> alpha =
        dependency.data == nullptr ? Scaled<C>{1, 0} : split_positive(dependency.at(row, m, location));
    const C inverse = C(1) / (s.mantissa * alpha.mantissa);
    return {s, alpha, inverse, inverse == C(0) ? C(-1e4) : -(s.exponent + alpha.exponent)};
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
};

// ---- `lanes` neighboring lanes of a warp process a row, one modality per lane. All lanes of the warp call these
// functions.

template <class C>
__device__ __forceinline__ C sum_over_modalities(C value, unsigned lanes) {
#pragma unroll
  for (unsigned offset = MAX_MODALITIES / 2; offset > 0; offset /= 2)
    if (offset < lanes) value += __shfl_xor_sync(0xffffffffu, value, static_cast<int>(offset));
  return value;
}

// This maximum ignores NaN.
template <class C>
__device__ __forceinline__ C maximum_over_modalities(C value, unsigned lanes) {
#pragma unroll
  for (unsigned offset = MAX_MODALITIES / 2; offset > 0; offset /= 2) {
    if (offset >= lanes) continue;
    const C other = __shfl_xor_sync(0xffffffffu, value, static_cast<int>(offset));
    value = other > value ? other : value;
  }
  return value;
}

template <class C>
struct ModalityWeight {
  Term<C> term;
  C share, weight;
  bool present, only_modality;
};

template <class C>
__device__ __forceinline__ ModalityWeight<C> compute_modality_weight(const Weighting<C>& weighting, int64_t row,
                                                                     bool exists) {
  const unsigned lanes = weighting.lanes();
  const int m = static_cast<int>(threadIdx.x % lanes);
  ModalityWeight<C> at{{{1, 0}, {1, 0}, 1, 0}, 0, 0, exists && m < weighting.modalities, false};
  if (at.present) at.present = weighting.has(row, m, 0);
  if (at.present) at.term = weighting.term(row, m, 0);
  const C highest = maximum_over_modalities(at.present ? at.term.power : C(-1e4), lanes),
          count = sum_over_modalities(C(at.present), lanes);
  const C top = maximum_over_modalities(at.present ? weighting.score(at.term, highest) : C(0), lanes);
  const C share = at.present ? weighting.relative_share(at.term, top, highest) : C(0),
          sum = sum_over_modalities(share, lanes);
  at.only_modality = count == C(1);
  at.share = at.present ? share / sum : C(0);
  at.weight = weighting.weight(at.share, count);
  return at;
}

// ---- One thread processes a location. Its passes over the modalities store intermediate values in the result.

// Computes the shares of the modalities in out[m * locations + location], and returns the number of modalities present.
template <class C>
__device__ __forceinline__ C share_location(const Weighting<C>& weighting, int64_t row, int64_t location, C* out) {
  C top = 0, highest = C(-1e4), sum = 0, count = 0;
#pragma unroll 1
  for (int m = 0; m < weighting.modalities; ++m) {
    if (!weighting.has(row, m, location)) continue;
    const Term<C> term = weighting.term(row, m, location);
    const C above = term.power > highest ? term.power : highest, score = weighting.score(term, above);
    top = scale<C>(top, highest - above);
    top = score > top ? score : top;
    highest = above;
    count += 1;
  }
  C* entry = out + location;
#pragma unroll 1
  for (int m = 0; m < weighting.modalities; ++m, entry += weighting.locations) {
    C share = 0;
    if (weighting.has(row, m, location))
      share = weighting.relative_share(weighting.term(row, m, location), top, highest);
    *entry = share;
    sum += share;
  }
  entry = out + location;
#pragma unroll 1
  for (int m = 0; m < weighting.modalities; ++m, entry += weighting.locations)
    *entry = weighting.has(row, m, location) ? *entry / sum : C(0);
  return count;
}

// ---- The factors of features: the weight or, in residual mode, 1 + weight. The factor of an absent modality is -0;
// kernels then treat the product with its features as 0, even if they are NaN.

template <class C>
__device__ __forceinline__ C factor_of(C weight, bool present, bool residual) {
  return residual ? 1 + weight : present ? weight : -C(0);
}
__device__ __forceinline__ bool is_absent(float factor) { return __float_as_int(factor) == INT32_MIN; }
__device__ __forceinline__ bool is_absent(double factor) { return __double_as_longlong(factor) == INT64_MIN; }

// ---- Host code.

// Returns the stride with which the dimensions from `first` on can be traversed as one, if there is one.
inline std::optional<int64_t> common_stride(const Tensor& t, int64_t first) {
  int64_t stride = 0, size = 1;
  for (int64_t d = t.dim() - 1; d >= first; --d) {
    if (t.size(d) == 1) continue;
    if (size == 1) stride = t.stride(d);
    if (t.stride(d) != size * stride) return std::nullopt;
    size *= t.size(d);
  }
  return stride;
}

// Describes a tensor as Entries. It copies the tensor if necessary and keeps the copy until the launch.
template <class T>
class EntryInput {
 public:
  EntryInput() = default;
  explicit EntryInput(const std::optional<Tensor>& t) : tensor_(t) {
    if (!t) return;
    auto stride = common_stride(*tensor_, 2);
    if (!stride) {
      tensor_ = torch::stable::contiguous(*t);
      stride = common_stride(*tensor_, 2);
    }
    entries_.data = static_cast<const T*>(tensor_->const_data_ptr());
    if (t->dim() > 1) entries_.row_stride = tensor_->stride(0);
    entries_.stride = tensor_->stride(t->dim() > 1 ? 1 : 0);
    entries_.location_stride = stride.value_or(0);
  }
  const Entries<T>& entries() const { return entries_; }

 private:
  std::optional<Tensor> tensor_;
  Entries<T> entries_;
};

template <class C>
class WeightInputs {
 public:
  WeightInputs(const Tensor& uncertainty, const std::optional<Tensor>& dependency, const std::optional<Tensor>& present,
               int64_t g, double temperature, std::optional<double> total)
      : uncertainty_(uncertainty),
        dependency_(dependency),
        mask_(present),
        per_sample_(dependency && dependency->dim() == 2) {
    const int64_t rows = uncertainty.size(0), modalities = uncertainty.size(1), locations = row_size_of(uncertainty, 2);
    expect(modalities >= 1 && modalities <= MAX_MODALITIES, "uncertainty: expected 1 to 16 modalities");
    expect(uncertainty.scalar_type() == scalar_type_of<C>, "uncertainty: expected the arithmetic dtype");
    if (dependency) check_dependency(*dependency, rows, modalities);
    if (present) check_mask(*present, rows, modalities, locations);
    unsigned log2_lanes = 0;
    while (1 << log2_lanes < modalities) ++log2_lanes;
    weighting_ = {uncertainty_.entries(),
                  dependency_.entries(),
                  mask_.entries(),
                  rows,
                  locations,
                  static_cast<int>(modalities),
                  log2_lanes,
                  g == 1,
                  temperature != 1,
                  total.has_value(),
                  inverse_of(split<double>(temperature)),
                  static_cast<C>(total.value_or(0))};
  }

  const Weighting<C>& weighting() const { return weighting_; }
  bool per_location() const { return weighting_.locations != 1; }
  // Whether every sample has its own dependency.
  bool per_sample() const { return per_sample_; }

 private:
  static Scaled<C> inverse_of(const Scaled<double>& x) {
    return {static_cast<C>(1 / x.mantissa), static_cast<C>(-x.exponent)};
  }
  static void check_dependency(const Tensor& t, int64_t rows, int64_t modalities) {
    expect(t.dim() >= 1 && t.dim() <= 2 && t.size(t.dim() - 1) == modalities && (t.dim() == 1 || t.size(0) == rows),
           "dependency: expected (M,) or (B, M)");
    expect(t.scalar_type() == scalar_type_of<C>, "dependency: expected the arithmetic dtype");
  }
  static void check_mask(const Tensor& t, int64_t rows, int64_t modalities, int64_t locations) {
    expect(t.dim() >= 2 && t.size(0) == rows && t.size(1) == modalities &&
               (t.dim() == 2 || row_size_of(t, 2) == locations),
           "mask: expected (B, M) or uncertainty's shape");
    expect(t.scalar_type() == ScalarType::Bool, "mask: expected a bool tensor");
  }

  EntryInput<C> uncertainty_, dependency_;
  EntryInput<uint8_t> mask_;
  bool per_sample_;
  Weighting<C> weighting_;
};

}  // namespace udml
