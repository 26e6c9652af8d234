// The weights of a block of positions: w_m = total * softmax_m(x), where x_m is 1 / (s_m alpha_m tau) or, for g =
// "inverse", -ln(s_m alpha_m) / tau. s is the uncertainty, alpha the dependency, tau the temperature. A position is a
// sample or, if the weights are per location, a location of a sample. A modality's share is its softmax probability.
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

  Weighting(const Tensor& uncertainty, int64_t g, double temperature, std::optional<double> total)
      : modalities(uncertainty.size(1)),
        rows(uncertainty.size(0)),
        locations(row_size_of(uncertainty, 2)),
        inverse(g == 1),
        tempered(temperature != 1),
        temperature(split<double>(temperature)),
        total(total) {
    expect(modalities >= 1 && modalities <= MAX_MODALITIES, "uncertainty: expected 1 to 16 modalities");
  }

  bool per_location() const { return locations != 1; }
};

// Positions that are processed together: `count` samples from `row` on, or `count` locations of one sample.
struct Block {
  int64_t row, location, count;
};

template <class C>
class WeightBlock {
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
    for (int64_t i = 0; i < lanes; i += W) softmax(weighting, i);
  }

  // Replaces dL/dw in `grad` by dL/duncertainty, and fills `dependency_gradient`. Lanes past the end of the block hold
  // garbage.
  void backward(const Weighting& weighting, int64_t count, C (*grad)[SIZE], C (*dependency_gradient)[SIZE]) const {
    for (int64_t i = 0; i < count; i += W) {
      // Differences of gradients this large can overflow; differences of a quarter of them cannot.
      const auto is_huge = largest_gradient(weighting, i, grad) >= std::numeric_limits<C>::max() / 4;
      const V downscale = select(is_huge, V{} + C(0.25), V{} + C(1)),
              missing_exponent = select(is_huge, V{} + C(2), V{});
      for (int64_t m = 0; m < weighting.modalities; ++m) {
        // The code computes g_m - sum_j p_j g_j as sum_j p_j (g_m - g_j), which is exactly 0 if all g are equal. It
        // skips the term j = m, because inf - inf is NaN.
        V difference{};
        for (int64_t j = 0; j < weighting.modalities; ++j) {
          if (j == m) continue;
          const V term = load(share_[j] + i) * (load(grad[m] + i) * downscale - load(grad[j] + i) * downscale);
          difference += select(load(present[j] + i) != C(0), term, V{});
        }
        store(dependency_gradient[m] + i, difference);
      }
      const bool recompute = sizeof(C) == sizeof(float) && may_lose_digits(weighting, i);
      alignas(64) C weight_gradient[MAX_MODALITIES][W];
      for (int64_t m = 0; m < weighting.modalities; ++m) {
        store(weight_gradient[m], load(grad[m] + i));
        input_gradients(weighting, m, i, missing_exponent, grad[m] + i, dependency_gradient[m] + i);
      }
      for (int64_t lane = 0; recompute && lane < W; ++lane)
        recompute_in_double(weighting, i, lane, weight_gradient, grad, dependency_gradient);
    }
  }

  // The sum of a modality's dL/ddependency in double. It uses that dL/ddependency * dependency equals
  // dL/duncertainty * uncertainty.
  double dependency_sum(int64_t m, int64_t count, const C (*grad_uncertainty)[SIZE]) const {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i)
      if (present[m][i] != C(0))
        sum += static_cast<double>(grad_uncertainty[m][i]) * uncertainty_[m][i] / dependency_[m][i];
    return sum;
  }

 private:
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

  // Splits x, or NaN unless x is positive: the weights are based on the logarithm of x.
  UDML_FN static Scaled<V> split_positive(const C* x) {
    const V value = load(x);
    return split<C>(select(value > C(0), value, V{} + C(NAN)));
  }

  // Computes 1 / (s alpha) = share_ 2^power_ with share_ in (1/4, 1]. If it is 0, the power is below all others.
  // Returns the highest power of the modalities present.
  UDML_FN V invert(const Weighting& weighting, int64_t i, V& count) {
    const V lowest = V{} - C(1e4);
    V highest = lowest;
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const Scaled<V> s = split_positive(uncertainty_[m] + i), alpha = split_positive(dependency_[m] + i);
      const auto is_present = load(present[m] + i) != C(0);
      const V inverse = C(1) / (s.mantissa * alpha.mantissa);
      const V power = select(inverse == C(0), lowest, -(s.exponent + alpha.exponent));
      store(share_[m] + i, inverse);
      store(power_[m] + i, power);
      highest = select(is_present & (power > highest), power, highest);
      count += select(is_present, V{} + C(1), V{});
    }
    return highest;
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
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      const V e = select(is_present, relative_share(weighting, m, i, top, highest), V{});
      store(share_[m] + i, e);
      sum += e;
    }
    const V total = weighting.total ? V{} + static_cast<C>(*weighting.total) : count;
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      const V share = select(is_present, load(share_[m] + i) / sum, V{});
      store(share_[m] + i, share);
      store(weight[m] + i, share * total);
    }
  }

  // Whether float32 may be too coarse for the gradients. A subnormal share has few digits, and the product of a small
  // share with a small gradient underflows, but the factor 1 / (s alpha) can make both significant.
  UDML_FN bool may_lose_digits(const Weighting& weighting, int64_t i) const {
    constexpr C TINY = 0x1p-80;
    V found{};
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      const auto small = (load(uncertainty_[m] + i) < TINY) | (load(dependency_[m] + i) < TINY);
      found += select(is_present & (small | (load(share_[m] + i) < Format<C>::SMALLEST_NORMAL)), V{} + C(1), V{});
    }
    return sum_of_lanes(found) > 0;
  }

  // Recomputes the gradients of one position in double, where each share is a normal number.
  void recompute_in_double(const Weighting& weighting, int64_t i, int64_t lane, const C (*weight_gradient)[W],
                           C (*uncertainty_gradient)[SIZE], C (*dependency_gradient)[SIZE]) const {
    const int64_t at = i + lane;
    const double temperature =
        std::ldexp(weighting.temperature.mantissa, static_cast<int>(weighting.temperature.exponent));
    double share[MAX_MODALITIES], top = -INFINITY, sum = 0, count = 0;
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      if (present[m][at] == C(0)) continue;
      if (!(uncertainty_[m][at] > C(0) && dependency_[m][at] > C(0))) return;
      const double product = static_cast<double>(uncertainty_[m][at]) * static_cast<double>(dependency_[m][at]);
      share[m] = (weighting.inverse ? -std::log(product) : 1 / product) / temperature;
      top = std::max(top, share[m]), count += 1;
    }
    for (int64_t m = 0; m < weighting.modalities; ++m)
      if (present[m][at] != C(0)) sum += share[m] = std::exp(share[m] - top);
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      if (present[m][at] == C(0)) continue;
      double difference = 0;
      for (int64_t j = 0; j < weighting.modalities; ++j)
        if (j != m && present[j][at] != C(0))
          difference += share[j] / sum * (static_cast<double>(weight_gradient[m][lane]) - weight_gradient[j][lane]);
      const double s = uncertainty_[m][at], alpha = dependency_[m][at];
      double log_gradient = -weighting.total.value_or(count) * (share[m] / sum) * difference / temperature;
      if (!weighting.inverse) log_gradient /= s * alpha;
      uncertainty_gradient[m][at] = static_cast<C>(log_gradient / s),
      dependency_gradient[m][at] = static_cast<C>(log_gradient / alpha);
    }
  }

  // The largest absolute gradient of the modalities present.
  UDML_FN V largest_gradient(const Weighting& weighting, int64_t i, const C (*grad)[SIZE]) const {
    V found{};
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const V g = load(grad[m] + i), size = select(g < C(0), -g, g);
      found = select((load(present[m] + i) != C(0)) & (size > found), size, found);
    }
    return found;
  }

  // `dependency_gradient` holds sum_j p_j (g_m - g_j) / 2^missing_exponent. The function computes both gradients from
  // it.
  UDML_FN void input_gradients(const Weighting& weighting, int64_t m, int64_t i, V missing_exponent,
                               C* uncertainty_gradient, C* dependency_gradient) const {
    const auto is_present = load(present[m] + i) != C(0);
    const Scaled<V> s = split_positive(uncertainty_[m] + i), alpha = split_positive(dependency_[m] + i);
    const Scaled<V> share = split<C>(load(weight[m] + i)), difference = split<C>(load(dependency_gradient));
    V log_gradient = share.mantissa * difference.mantissa * static_cast<C>(-1 / weighting.temperature.mantissa);
    V exponent =
        share.exponent + difference.exponent + (missing_exponent - static_cast<C>(weighting.temperature.exponent));
    if (!weighting.inverse) {
      log_gradient /= s.mantissa * alpha.mantissa;
      exponent -= s.exponent + alpha.exponent;
    }
    store(uncertainty_gradient, select(is_present, scale<C>(log_gradient / s.mantissa, exponent - s.exponent), V{}));
    store(dependency_gradient,
          select(is_present, scale<C>(log_gradient / alpha.mantissa, exponent - alpha.exponent), V{}));
  }

  alignas(64) C uncertainty_[MAX_MODALITIES][SIZE];
  alignas(64) C dependency_[MAX_MODALITIES][SIZE];
  alignas(64) C power_[MAX_MODALITIES][SIZE];
  alignas(64) C share_[MAX_MODALITIES][SIZE];
};

}  // namespace udml
