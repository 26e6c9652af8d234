// What the forward and the backward pass of reparameterize share.
#pragma once

#include <cmath>
#include <limits>

#include "random.h"

namespace udml {

// The number of elements per step. The buffers of a full TILE and its inputs would not fit the L1 cache together.
inline constexpr int64_t STEP = TILE / 2;

// Divides a row of C channels of S locations into work items: several whole channels if they are short, else equal
// parts of one channel or, of maps with the channels last, of COLUMNS channels. The division depends on the shape and
// the layout alone. Each item has its own sums, which are added in order, so results depend neither on the number of
// threads nor on the batch size.
struct Items {
  static constexpr int64_t SIZE = 16384, COLUMNS = 32;
  bool channels_last;
  int64_t channels, locations, channels_each, part_size = SIZE, parts, count;

  Items(int64_t channels, int64_t locations, bool channels_last = false)
      : channels_last(channels_last), channels(channels), locations(locations) {
    if (channels_last) part_size = SIZE / COLUMNS;
    parts = parts_of(part_size);
    if (channels_last && parts > 1) {
      // Similar parts of whole cache lines.
      part_size = ((locations + parts - 1) / parts + 15) / 16 * 16;
      parts = parts_of(part_size);
    }
    // Sixteen channels end at a whole vector for any number of locations.
    const int64_t unit = channels_last ? COLUMNS : 16;
    channels_each = std::max<int64_t>(1, SIZE / std::max<int64_t>(locations, 1));
    if (channels_each > unit) channels_each -= channels_each % unit;
    if (parts > 1) channels_each = channels_last ? COLUMNS : 1;
    count = (channels + channels_each - 1) / channels_each * parts;
  }

  int64_t begin(int64_t item) const { return channel(item) * locations + location(item); }

  int64_t end(int64_t item) const {
    return (channel(item) + width(item) - 1) * locations + location(item) + length(item);
  }

  // The channels and locations of an item.
  int64_t channel(int64_t item) const { return item / parts * channels_each; }
  int64_t width(int64_t item) const { return std::min(channels_each, channels - channel(item)); }
  int64_t location(int64_t item) const { return item % parts * part_size; }
  int64_t length(int64_t item) const { return std::min(part_size, locations - location(item)); }

  int64_t cost() const { return std::min(channels_each * locations, SIZE); }

  // Calls body(begin, n, at) for every STEP elements [begin, begin + n) of the row that belong to an item. `at` is the
  // number of its elements before them.
  template <class Body>
  UDML_FN void for_each_step(int64_t item, const Body& body) const {
    const int64_t runs = parts > 1 ? width(item) : 1, size = parts > 1 ? length(item) : width(item) * locations;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t first = begin(item) + run * locations;
      for (int64_t done = 0; done < size; done += STEP)
        body(first + done, std::min(STEP, size - done), run * size + done);
    }
  }

 private:
  int64_t parts_of(int64_t size) const { return std::max<int64_t>(1, (locations + size - 1) / size); }
};

struct Shape {
  int64_t rows, channels, locations;
  explicit Shape(const Tensor& mu) : rows(mu.size(0)), channels(mu.size(1)), locations(row_size_of(mu, 2)) {}
  int64_t row_size() const { return channels * locations; }
};

template <class C>
struct Clip {
  bool limited;
  C std_max = INFINITY, logvar_max = INFINITY;
  explicit Clip(std::optional<double> limit) : limited(limit.has_value()) {
    if (limit) {
      std_max = static_cast<C>(*limit);
      logvar_max = static_cast<C>(2 * std::log(*limit));
    }
  }
};

// The factors for sums of squares of std and mu (see SQUARE_SHIFT): std and mu are multiplied by scale_down before they
// are squared, and the sum by `factor` afterwards, which also divides it by the prior variance.
template <class C>
struct SquareScale {
  C scale_down;
  double factor;

  explicit SquareScale(C variance) {
    const Scaled<C> prior = split<C>(variance);
    const C half = as_number(as_integer(prior.exponent) >> 1);
    scale_down = scale<C>(C(1), -half - C(SQUARE_SHIFT));
    factor = SQUARE_SCALE / static_cast<double>(scale<C>(C(1), prior.exponent - half - half) * prior.mantissa);
  }
};

template <class C>
double std_in_double(C logvar, const Clip<C>& clip) {
  return std::min(std::exp(0.5 * std::min(logvar, clip.logvar_max)), static_cast<double>(clip.std_max));
}

// Computes the sum of scaled squares in double, for tiles where it overflows float.
template <class C>
double sum_of_squares(const C* mu, const C* logvar, int64_t n, const Clip<C>& clip, C scale_down) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double scaled_std = std_in_double(logvar[i], clip) * scale_down,
                 scaled_mu = static_cast<double>(mu[i]) * scale_down;
    sum += scaled_std * scaled_std + scaled_mu * scaled_mu;
  }
  return sum;
}

// Computes the KL divergence of a run of elements from the prior, times 2.
template <class C>
class Divergence {
  using V = lanes_of<C>;

 public:
  Divergence(C prior_variance, const Clip<C>& clip)
      : scale_(prior_variance),
        offset_(std::log(static_cast<double>(prior_variance)) - 1),
        clip_(clip),
        scale_down_(V{} + scale_.scale_down),
        factor_(V{} + static_cast<C>(scale_.factor)),
        shift_(V{} + static_cast<C>(offset_)) {}

  // The terms of elements whose logvar is already clipped. They are small differences; separate sums of squares and
  // logvars would lose more digits to rounding.
  V terms(V mu, V logvar, V std) const { return squares(mu, std) * factor_ + (shift_ - logvar); }

  // The sum of the terms of a run. It is added again in double if it is not finite: a term, or the sum of a few
  // logvars, can overflow float32.
  double sum(V terms, const C* mu, const C* logvar, int64_t n) const {
    const double sum = sum_of_lanes(terms);
    return std::isfinite(sum) ? sum : sum_in_double(mu, logvar, n);
  }

  double sum_in_double(const C* mu, const C* logvar, int64_t n) const {
    double sum = sum_of_squares(mu, logvar, n, clip_, scale_.scale_down) * scale_.factor;
    for (int64_t i = 0; i < n; ++i) sum += offset_ - std::min(logvar[i], clip_.logvar_max);
    return sum;
  }

  // The terms (std^2 + mu^2) / prior - 1 of the derivative by the prior's logarithm, which is -1/2 of their sum.
  V prior_terms(V mu, V std) const { return squares(mu, std) * factor_ - C(1); }

  // Their sum. Where it is infinite in C, a tiny gradient of kl can still give a finite gradient.
  long double prior_sum(V terms, const C* mu, const C* logvar, int64_t n) const {
    const double sum = sum_of_lanes(terms);
    if (std::isfinite(sum)) return sum;
    const long double squares = sum_of_squares(mu, logvar, n, clip_, scale_.scale_down);
    return squares * scale_.factor - static_cast<long double>(n);
  }

 private:
  V squares(V mu, V std) const {
    const V scaled_std = std * scale_down_, scaled_mu = mu * scale_down_;
    return scaled_std * scaled_std + scaled_mu * scaled_mu;
  }

  SquareScale<C> scale_;
  double offset_;
  const Clip<C>& clip_;
  V scale_down_, factor_, shift_;
};

// Writes each sample's KL divergence. `partial` has the sums of `Divergence::terms` for each sample.
template <class C>
void write_divergence(const Tensor& kl, int64_t rows, const std::vector<double>& partial) {
  const int64_t count = rows > 0 ? static_cast<int64_t>(partial.size()) / rows : 0;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int64_t item = 0; item < count; ++item) sum += partial[static_cast<size_t>(row * count + item)];
    results_of<C>(kl)[row] = static_cast<C>(0.5 * sum);
  }
}

// std, but the largest number of C where std overflows although logvar is finite: a zero gradient times an infinite std
// must be 0, not NaN.
template <class C>
UDML_FN lanes_of<C> bounded_std(lanes_of<C> logvar, lanes_of<C> std) {
  const lanes_of<C> largest = lanes_of<C>{} + std::numeric_limits<C>::max();
  return select(logvar < C(INFINITY), at_most(std, largest), std);
}

// The gradients of a sample's KL divergence, times the incoming gradient of kl.
template <class C>
class DivergenceGradient {
  using V = lanes_of<C>;

 public:
  DivergenceGradient(C kl_gradient, C prior_variance) : is_zero_(kl_gradient == C(0)) {
    // kl_gradient / prior = factor1 * factor2: the quotient may overflow although its product with mu or std^2 does
    // not.
    C factor1 = 0, factor2 = 0;
    split_quotient(kl_gradient, prior_variance, factor1, factor2);
    // If kl_gradient is near the largest number of C, the first term of std^2 / prior - 1 alone might overflow in the
    // product, so the code computes a quarter of it.
    const C downscale = std::abs(kl_gradient) < std::numeric_limits<C>::max() / 8 ? C(1) : C(0.25);
    factor1_ = V{} + factor1, factor2_ = V{} + factor2;
    half_factor1_ = V{} + factor1 * (C(0.5) * downscale), half_gradient_ = V{} + kl_gradient * (C(0.5) * downscale);
    upscale_ = V{} + 1 / downscale;
  }

  V of_mu(V mu) const { return mu * factor1_ * factor2_; }

  V of_logvar(V std, V bounded) const {
    const V kl_std = is_zero_ ? bounded : std;
    return ((kl_std * half_factor1_) * (kl_std * factor2_) - half_gradient_) * upscale_;
  }

 private:
  bool is_zero_;
  V factor1_, factor2_, half_factor1_, half_gradient_, upscale_;
};

// Writes dL/dprior_var. `partial` has the sums of `Divergence::prior_terms` for each sample, and is empty without a
// gradient of kl.
template <class C>
void write_prior_gradient(const Tensor& grad_prior, const Reader<C>& grad_kl, const C* prior, const Shape& shape,
                          const std::vector<long double>& partial) {
  std::fill_n(results_of<C>(grad_prior), grad_prior.numel(), C(0));
  if (shape.rows == 0 || shape.row_size() == 0 || partial.empty()) return;
  const int64_t step = grad_prior.numel() > 1, count = static_cast<int64_t>(partial.size()) / shape.rows;
  std::vector<double> gradient(static_cast<size_t>(grad_prior.numel()));
  for (int64_t row = 0; row < shape.rows; ++row) {
    long double sum = 0;
    for (int64_t item = 0; item < count; ++item) sum += partial[static_cast<size_t>(row * count + item)];
    gradient[static_cast<size_t>(row * step)] -=
        static_cast<double>(0.5L * grad_kl.at(row, 0) * (sum / prior[row * step]));
  }
  for (size_t i = 0; i < gradient.size(); ++i) results_of<C>(grad_prior)[i] = static_cast<C>(gradient[i]);
}

}  // namespace udml
