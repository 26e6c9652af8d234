// The weights of a block of positions: w_m = total * softmax_m of 1/(s_m alpha_m)/tau or of its logarithm.
// A position is a sample, or a location of one when the weights are per location.
//
// s alpha and its inverse may leave the range of a float where the weights are ordinary numbers: they are kept as mantissa
// and exponent (../scaled.h), and exponents are taken relative to the highest one of a position.
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
        locations(product(shape_of(uncertainty), 2, static_cast<size_t>(uncertainty.dim()))),
        inverse(g == 1),
        tempered(temperature != 1),
        temperature(split<double>(temperature)),
        total(total) {
    expect(modalities >= 1 && modalities <= MAX_MODALITIES, "uncertainty: expected 1 to 16 modalities");
  }

  bool per_location() const { return locations != 1; }
};

// Positions handled together: `count` samples from `row` on, or `count` locations of one sample.
struct Block {
  int64_t row, location, count;
};

template <class C>
class WeightBlock {
 public:
  static constexpr int64_t SIZE = 256;

  alignas(64) C weight[MAX_MODALITIES][SIZE];
  alignas(64) C present[MAX_MODALITIES][SIZE];

  void compute(const Weighting& weighting, const Block& block, const Reader<C>& s, const Reader<C>& alpha,
               int64_t alpha_step, const Reader<C>& mask, bool mask_per_location) {
    // Whole vectors only: a sample's weights must not depend on where in its batch it stands.
    const int64_t lanes = whole_vectors(block.count);
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      std::fill(s_[m] + block.count, s_[m] + lanes, C(1));
      std::fill(alpha_[m] + block.count, alpha_[m] + lanes, C(1));
      std::fill(present[m] + block.count, present[m] + lanes, C(1));
      read(s, weighting, block, m, weighting.per_location(), 1, s_[m]);
      if (mask) {
        read(mask, weighting, block, m, mask_per_location, 1, present[m]);
      } else {
        std::fill_n(present[m], block.count, C(1));
      }
      if (alpha) {
        read(alpha, weighting, block, m, false, alpha_step, alpha_[m]);
      } else {
        std::fill_n(alpha_[m], block.count, C(1));
      }
    }
    for (int64_t i = 0; i < lanes; i += W) softmax(weighting, i);
  }

  // From dL/dw in `grad` to dL/ds and dL/dalpha, which take its place and `by_alpha`'s; lanes past the
  // block's end hold nothing of use.
  void backward(const Weighting& weighting, int64_t count, C (*grad)[SIZE], C (*by_alpha)[SIZE]) const {
    for (int64_t i = 0; i < count; i += W) {
      // Differences of gradients as large as these would overflow: of quarters they do not.
      const auto huge = largest(weighting, i, grad) >= std::numeric_limits<C>::max() / 4;
      const V down = select(huge, V{} + C(0.25), V{} + C(1)), missing = select(huge, V{} + C(2), V{});
      for (int64_t m = 0; m < weighting.modalities; ++m) {
        // g_m - sum_j p_j g_j is computed as sum_j p_j (g_m - g_j), which is exactly 0 if all g are equal. The term j = m
        // is skipped, because inf - inf is NaN.
        V difference{};
        for (int64_t j = 0; j < weighting.modalities; ++j) {
          if (j == m) continue;
          const V term = load(share_[j] + i) * (load(grad[m] + i) * down - load(grad[j] + i) * down);
          difference += select(load(present[j] + i) != C(0), term, V{});
        }
        store(by_alpha[m] + i, difference);
      }
      const bool lost = sizeof(C) == sizeof(float) && may_lose_digits(weighting, i);
      alignas(64) C given[MAX_MODALITIES][W];
      for (int64_t m = 0; m < weighting.modalities; ++m) {
        store(given[m], load(grad[m] + i));
        log_gradient(weighting, m, i, missing, grad[m] + i, by_alpha[m] + i);
      }
      for (int64_t lane = 0; lost && lane < W; ++lane) repair(weighting, i, lane, given, grad, by_alpha);
    }
  }

 private:
  using V = lanes_of<C>;

  // One modality's values of a (B, M) or (B, M, L) tensor at the block's positions; step 0 for an (M,) one.
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

  // Only positive numbers have a logarithm, which is what the weights are made of.
  UDML_FN static Scaled<V> checked(const C* x) {
    const V value = load(x);
    return split<C>(select(value > C(0), value, V{} + C(NAN)));
  }

  // Of a modality 1 / (s alpha) = inverse_ 2^power_, with inverse_ in (1/4, 1]; of one that is 0 the power is below all
  // others. Returns the highest power of those present.
  UDML_FN V invert(const Weighting& weighting, int64_t i, V& count) {
    const V lowest = V{} - C(1e4);
    V highest = lowest;
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const Scaled<V> s = checked(s_[m] + i), alpha = checked(alpha_[m] + i);
      const auto here = load(present[m] + i) != C(0);
      const V inverse = C(1) / (s.mantissa * alpha.mantissa);
      const V power = select(inverse == C(0), lowest, -(s.exponent + alpha.exponent));
      store(share_[m] + i, inverse);
      store(power_[m] + i, power);
      highest = select(here & (power > highest), power, highest);
      count += select(here, V{} + C(1), V{});
    }
    return highest;
  }

  // A modality's share relative to another one's, of about the largest. That of g = "inverse" is a ratio of the inverses
  // themselves: exact where logarithms of 1e-30 and 1e30 have lost seven bits.
  UDML_FN V relative_share(const Weighting& weighting, int64_t m, int64_t i, V top, V highest) const {
    const V inverse = load(share_[m] + i), power = load(power_[m] + i) - highest;
    const C mantissa = static_cast<C>(1 / weighting.temperature.mantissa);
    const V exponent = V{} - static_cast<C>(weighting.temperature.exponent);
    if (!weighting.inverse) return exponential(scale<C>((scale<C>(inverse, power) - top) * mantissa, highest + exponent));
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
      const auto here = load(present[m] + i) != C(0);
      const V e = select(here, relative_share(weighting, m, i, top, highest), V{});
      store(share_[m] + i, e);
      sum += e;
    }
    const V total = weighting.total ? V{} + static_cast<C>(*weighting.total) : count;
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto here = load(present[m] + i) != C(0);
      const V share = select(here, load(share_[m] + i) / sum, V{});
      store(share_[m] + i, share);
      store(weight[m] + i, share * total);
    }
  }

  // Whether float32 may be too coarse for the gradients: a subnormal share has few digits, and a small share times a small
  // gradient underflows, while the factor 1 / (s alpha) can make both matter.
  UDML_FN bool may_lose_digits(const Weighting& weighting, int64_t i) const {
    constexpr C TINY = 0x1p-80;
    V found{};
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto here = load(present[m] + i) != C(0);
      const auto small = (load(s_[m] + i) < TINY) | (load(alpha_[m] + i) < TINY);
      found += select(here & (small | (load(share_[m] + i) < Format<C>::SMALLEST_NORMAL)), V{} + C(1), V{});
    }
    return sum_of_lanes(found) > 0;
  }

  // The gradients of one position again, in double, where each share is a normal number.
  void repair(const Weighting& weighting, int64_t i, int64_t lane, const C (*given)[W], C (*by_s)[SIZE],
              C (*by_alpha)[SIZE]) const {
    const int64_t at = i + lane;
    const double temperature = std::ldexp(weighting.temperature.mantissa, static_cast<int>(weighting.temperature.exponent));
    double share[MAX_MODALITIES], top = -INFINITY, sum = 0, count = 0;
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      if (present[m][at] == C(0)) continue;
      if (!(s_[m][at] > C(0) && alpha_[m][at] > C(0))) return;
      const double product = static_cast<double>(s_[m][at]) * static_cast<double>(alpha_[m][at]);
      share[m] = (weighting.inverse ? -std::log(product) : 1 / product) / temperature;
      top = std::max(top, share[m]), count += 1;
    }
    for (int64_t m = 0; m < weighting.modalities; ++m)
      if (present[m][at] != C(0)) sum += share[m] = std::exp(share[m] - top);
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      if (present[m][at] == C(0)) continue;
      double difference = 0;
      for (int64_t j = 0; j < weighting.modalities; ++j)
        if (j != m && present[j][at] != C(0)) difference += share[j] / sum * (static_cast<double>(given[m][lane]) - given[j][lane]);
      const double s = s_[m][at], alpha = alpha_[m][at];
      double by_log = -weighting.total.value_or(count) * (share[m] / sum) * difference / temperature;
      if (!weighting.inverse) by_log /= s * alpha;
      by_s[m][at] = static_cast<C>(by_log / s), by_alpha[m][at] = static_cast<C>(by_log / alpha);
    }
  }

  // The largest size of the gradients of the modalities present.
  UDML_FN V largest(const Weighting& weighting, int64_t i, const C (*grad)[SIZE]) const {
    V found{};
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const V g = load(grad[m] + i), size = select(g < C(0), -g, g);
      found = select((load(present[m] + i) != C(0)) & (size > found), size, found);
    }
    return found;
  }

  // dL/ds from sum_j p_j (g_m - g_j) / 2^missing, which is in `by_alpha`, and dL/dalpha in its place.
  UDML_FN void log_gradient(const Weighting& weighting, int64_t m, int64_t i, V missing, C* by_s, C* by_alpha) const {
    const auto here = load(present[m] + i) != C(0);
    const Scaled<V> s = checked(s_[m] + i), alpha = checked(alpha_[m] + i);
    const Scaled<V> share = split<C>(load(weight[m] + i)), difference = split<C>(load(by_alpha));
    V by_log = share.mantissa * difference.mantissa * static_cast<C>(-1 / weighting.temperature.mantissa);
    V exponent = share.exponent + difference.exponent + (missing - static_cast<C>(weighting.temperature.exponent));
    if (!weighting.inverse) {
      by_log /= s.mantissa * alpha.mantissa;
      exponent -= s.exponent + alpha.exponent;
    }
    store(by_s, select(here, scale<C>(by_log / s.mantissa, exponent - s.exponent), V{}));
    store(by_alpha, select(here, scale<C>(by_log / alpha.mantissa, exponent - alpha.exponent), V{}));
  }

  alignas(64) C s_[MAX_MODALITIES][SIZE];
  alignas(64) C alpha_[MAX_MODALITIES][SIZE];
  alignas(64) C power_[MAX_MODALITIES][SIZE];
  alignas(64) C share_[MAX_MODALITIES][SIZE];
};

// How the positions are cut into blocks: by the tensors' shape alone.
struct Blocks {
  int64_t each, per_row, count;

  // `cost` elements are handled at every position.
  Blocks(const Weighting& weighting, int64_t cost) {
    const int64_t longest = weighting.per_location() ? weighting.locations : weighting.rows;
    each = std::clamp<int64_t>(16384 / std::max<int64_t>(cost, 1), 1, WeightBlock<float>::SIZE);
    // Runs of a channel are then as long as a block: short ones cost more to begin than to compute.
    if (weighting.per_location()) each = WeightBlock<float>::SIZE;
    per_row = (longest + each - 1) / each;
    count = weighting.per_location() ? weighting.rows * per_row : per_row;
  }

  Block at(const Weighting& weighting, int64_t index) const {
    if (weighting.per_location()) {
      const int64_t begin = index % per_row * each;
      return {index / per_row, begin, std::min(each, weighting.locations - begin)};
    }
    return {index * each, 0, std::min(each, weighting.rows - index * each)};
  }
};

// dL/dalpha, (M,) or (B, M), from the sums that the blocks leave, added in their order.
template <class C>
class DependencyGradient {
 public:
  DependencyGradient(const Weighting& weighting, const Blocks& blocks, bool wanted, int64_t alpha_step)
      : weighting_(weighting), blocks_(blocks), wanted_(wanted), step_(alpha_step) {
    if (!wanted) return;
    const bool rowwise = step_ != 0 && !weighting.per_location();
    partial_.resize(static_cast<size_t>((rowwise ? weighting.rows : blocks.count) * weighting.modalities));
  }

  void add(int64_t index, const Block& block, const C (*by_alpha)[WeightBlock<C>::SIZE]) {
    if (!wanted_) return;
    const int64_t modalities = weighting_.modalities;
    for (int64_t m = 0; m < modalities; ++m) {
      if (step_ != 0 && !weighting_.per_location()) {
        for (int64_t i = 0; i < block.count; ++i) at((block.row + i) * modalities + m) = by_alpha[m][i];
      } else {
        // In double: over the batch these terms largely cancel.
        double sum = 0;
        for (int64_t i = 0; i < block.count; ++i) sum += by_alpha[m][i];
        at(index * modalities + m) = sum;
      }
    }
  }

  Tensor result(const std::optional<Tensor>& alpha) {
    if (!wanted_) return nothing(scalar_type_of<C>);
    const Tensor out = allocate_like(*alpha);
    std::vector<double> sum(static_cast<size_t>(out.numel()));
    const int64_t modalities = weighting_.modalities, entries = static_cast<int64_t>(partial_.size()) / modalities;
    const int64_t entries_per_row = step_ == 0 || !weighting_.per_location() ? 1 : blocks_.per_row;
    for (int64_t e = 0; e < entries; ++e)
      for (int64_t m = 0; m < modalities; ++m)
        sum[static_cast<size_t>(e / entries_per_row * step_ * modalities + m)] += at(e * modalities + m);
    for (size_t i = 0; i < sum.size(); ++i) results_of<C>(out)[i] = static_cast<C>(sum[i]);
    return out;
  }

 private:
  double& at(int64_t i) { return partial_[static_cast<size_t>(i)]; }

  const Weighting& weighting_;
  const Blocks& blocks_;
  bool wanted_;
  int64_t step_;
  std::vector<double> partial_;
};

}  // namespace udml
