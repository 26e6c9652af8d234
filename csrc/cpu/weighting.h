// The weights of a block of positions: w_m = total * softmax_m(x), where x_m is 1 / (s_m alpha_m tau) or, for g =
// "inverse", -ln(s_m alpha_m) / tau. s is the uncertainty or, with a floor f, its square plus f^2; alpha is the
// dependency, tau the temperature. A position is a sample or, if the weights are per location, a location of a sample.
// A modality's share is its softmax probability. A reference takes part in the softmax as one more entry, with the mean
// alpha and with the exponential of its x times the number of modalities present.
//
// s alpha and its inverse may leave the range of float although the weights are ordinary numbers. They are stored as
// mantissa and exponent (../scaled.h), and exponents are relative to the largest exponent of the position.
#pragma once

#include <cmath>
#include <limits>

#include "tensor.h"

namespace udml {

struct Weighting {
  int64_t modalities, rows, locations;
  bool inverse, tempered;
  Scaled<double> temperature;
  std::optional<double> total;
  // f^2, and the reference's s
  std::optional<Scaled<double>> floor, reference;

  Weighting(const Tensor& uncertainty, int64_t g, double temperature, std::optional<double> total,
            std::optional<double> least, std::optional<double> against)
      : modalities(uncertainty.size(1)),
        rows(uncertainty.size(0)),
        locations(row_size_of(uncertainty, 2)),
        inverse(g == 1),
        tempered(temperature != 1),
        temperature(split<double>(temperature)),
        total(total) {
    expect(modalities >= 1 && modalities <= MAX_MODALITIES, "uncertainty: expected 1 to 16 modalities");
    if (least) floor = square_plus<double>(split<double>(*least), {0.0, double{LOWEST_EXPONENT}});
    if (against) reference = floor ? square_plus<double>(split<double>(*against), *floor) : split<double>(*against);
  }

  bool per_location() const { return locations != 1; }
};

inline double value_of(const Scaled<double>& x) { return std::ldexp(x.mantissa, static_cast<int>(x.exponent)); }

// Positions that are processed together: `count` samples from `row` on, or `count` locations of one sample.
struct Block {
  int64_t row, location, count;
};

// The weights of a block, without their gradient.
template <class C>
class BlockWeights {
 public:
  static constexpr int64_t SIZE = 256;

  alignas(64) C weight[MAX_MODALITIES][SIZE];
  alignas(64) C present[MAX_MODALITIES][SIZE];

  void compute(const Weighting& weighting, const Block& block, const Reader<C>& uncertainty,
               const Reader<C>& dependency, int64_t dependency_step, const Reader<C>& mask, bool mask_per_location) {
    // The loop processes whole vectors, so that the weights of a sample do not depend on its index in the batch.
    const int64_t lanes = whole_vectors(block.count);
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      std::fill(uncertainty_[m] + block.count, uncertainty_[m] + lanes, C(1));
      std::fill(dependency_[m] + block.count, dependency_[m] + lanes, C(1));
      std::fill(present[m] + block.count, present[m] + lanes, C(1));
      read(uncertainty, weighting, block, m, weighting.per_location(), 1, uncertainty_[m]);
      if (mask) {
        read(mask, weighting, block, m, mask_per_location, 1, present[m]);
      } else {
        std::fill_n(present[m], block.count, C(1));
      }
      if (dependency) {
        read(dependency, weighting, block, m, false, dependency_step, dependency_[m]);
      } else {
        std::fill_n(dependency_[m], block.count, C(1));
      }
    }
    if (weighting.reference) average_dependencies(weighting.modalities, lanes);
    for (int64_t i = 0; i < lanes; i += W) softmax(weighting, i);
  }

 protected:
  using V = lanes_of<C>;

  // Reads one modality of a (B, M) or (B, M, L) tensor at the block's positions, or with step 0 of an (M,) tensor.
  static void read(const Reader<C>& values, const Weighting& weighting, const Block& block, int64_t m,
                   bool per_location, int64_t step, C* out) {
    if (per_location) {
      const C* run = values.run(block.row, m * weighting.locations + block.location, block.count, out);
      if (run != out) memcpy(out, run, static_cast<size_t>(block.count) * sizeof(C));
    } else if (weighting.per_location() || step == 0) {
      std::fill_n(out, block.count, values.at(block.row * step, m));
    } else {
      for (int64_t i = 0; i < block.count; ++i) out[i] = values.at(block.row + i, m);
    }
  }

  static int64_t whole_vectors(int64_t n) { return (n + W - 1) / W * W; }

  // The index of the reference in share_ and power_.
  static constexpr int64_t REFERENCE = MAX_MODALITIES;

  static UDML_FN V or_nan(V x) { return select(x > C(0), x, V{} + C(NAN)); }

  // Splits x, or NaN unless x is positive: the weights are based on the logarithm of x.
  UDML_FN static Scaled<V> split_positive(const C* x) { return split<C>(or_nan(load(x))); }

  UDML_FN static Scaled<V> all_lanes(const Scaled<double>& x) {
    return {V{} + static_cast<C>(x.mantissa), V{} + static_cast<C>(x.exponent)};
  }

  UDML_FN Scaled<V> variance(const Weighting& weighting, int64_t m, int64_t i) const {
    if (!weighting.floor) return split_positive(uncertainty_[m] + i);
    const Scaled<V> s = square_plus<C>(split<C>(load(uncertainty_[m] + i)), all_lanes(*weighting.floor));
    return {or_nan(s.mantissa), s.exponent};
  }

  // Fills mean_mantissa_ and mean_exponent_ with the mean dependency of the modalities present at each position. The
  // sum is in double, because the sum of large numbers may overflow.
  void average_dependencies(int64_t modalities, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0, number = 0;
      for (int64_t m = 0; m < modalities; ++m)
        if (present[m][i] != C(0)) sum += dependency_[m][i], number += 1;
      const Scaled<double> mean = split<double>(sum > 0 ? sum / number : NAN);
      mean_mantissa_[i] = static_cast<C>(mean.mantissa), mean_exponent_[i] = static_cast<C>(mean.exponent);
    }
  }

  UDML_FN Scaled<V> mean_dependency(int64_t i) const { return {load(mean_mantissa_ + i), load(mean_exponent_ + i)}; }

  // Stores 1 / (s alpha) of an entry and returns its power.
  UDML_FN V store_inverse(int64_t entry, int64_t i, const Scaled<V>& s, const Scaled<V>& alpha) {
    const V inverse = C(1) / (s.mantissa * alpha.mantissa);
    const V power = select(inverse == C(0), V{} + C(LOWEST_EXPONENT), -(s.exponent + alpha.exponent));
    store(share_[entry] + i, inverse);
    store(power_[entry] + i, power);
    return power;
  }

  // Computes 1 / (s alpha) = share_ 2^power_ with share_ in (1/4, 1]. If it is 0, the power is below all others.
  // Returns the highest power of the reference and the modalities present.
  UDML_FN V invert(const Weighting& weighting, int64_t i, V& count) {
    V highest = V{} + C(LOWEST_EXPONENT);
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      const V power = store_inverse(m, i, variance(weighting, m, i), split_positive(dependency_[m] + i));
      highest = select(is_present & (power > highest), power, highest);
      count += select(is_present, V{} + C(1), V{});
    }
    if (!weighting.reference) return highest;
    const V power = store_inverse(REFERENCE, i, all_lanes(*weighting.reference), mean_dependency(i));
    return select(power > highest, power, highest);
  }

  // A modality's share relative to approximately the largest share. For g = "inverse" and temperature 1 it is a ratio
  // of the inverses: this is exact, while the logarithms of 1e-30 and 1e30 would lose seven bits.
  UDML_FN V relative_share(const Weighting& weighting, int64_t m, int64_t i, V top, V highest) const {
    const V inverse = load(share_[m] + i), power = load(power_[m] + i) - highest;
    const C mantissa = static_cast<C>(1 / weighting.temperature.mantissa);
    const V exponent = V{} - static_cast<C>(weighting.temperature.exponent);
    if (!weighting.inverse)
      return exponential(scale<C>((scale<C>(inverse, power) - top) * mantissa, highest + exponent));
    if (!weighting.tempered) return scale<C>(inverse, power);
    const V logarithmic = logarithm(inverse / top) + power * C(0.693147180559945309);
    return exponential(scale<C>(logarithmic * mantissa, exponent));
  }

  UDML_FN void softmax(const Weighting& weighting, int64_t i) {
    V top{}, sum{}, count{};
    const V highest = invert(weighting, i, count);
    for (int64_t m = 0; m < weighting.modalities && (weighting.tempered || !weighting.inverse); ++m) {
      const V score = scale<C>(load(share_[m] + i), load(power_[m] + i) - highest);
      top = select((load(present[m] + i) != C(0)) & (score > top), score, top);
    }
    if (weighting.reference) {
      const V score = scale<C>(load(share_[REFERENCE] + i), load(power_[REFERENCE] + i) - highest);
      top = select(score > top, score, top);
    }
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      const V e = select(is_present, relative_share(weighting, m, i, top, highest), V{});
      store(share_[m] + i, e);
      sum += e;
    }
    if (weighting.reference) {
      const V e = relative_share(weighting, REFERENCE, i, top, highest) * count;
      sum += e;
      store(share_[REFERENCE] + i, e / sum);
    }
    const V total = weighting.total ? V{} + static_cast<C>(*weighting.total) : count;
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      const V share = select(is_present, load(share_[m] + i) / sum, V{});
      store(share_[m] + i, share);
      store(weight[m] + i, share * total);
    }
  }

  alignas(64) C uncertainty_[MAX_MODALITIES][SIZE];
  alignas(64) C dependency_[MAX_MODALITIES][SIZE];
  alignas(64) C mean_mantissa_[SIZE], mean_exponent_[SIZE];
  alignas(64) C power_[MAX_MODALITIES + 1][SIZE];
  alignas(64) C share_[MAX_MODALITIES + 1][SIZE];
};

}  // namespace udml
