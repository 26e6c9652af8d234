// What the forward and the backward pass of reparameterize share.
#pragma once

#include <cmath>
#include <limits>

#include "random.h"

namespace udml {

// The number of elements per step. The buffers of a full TILE and its inputs would not fit the L1 cache together.
inline constexpr int64_t STEP = TILE / 2;

// Divides a row of C channels of S locations into work items: several whole channels if they are short, else equal
// parts of one channel. The division depends on the shape alone. Each item has its own sums, which are added in order,
// so results depend neither on the number of threads nor on the batch size.
struct Items {
  static constexpr int64_t SIZE = 16384;
  int64_t channels, locations, channels_each, parts, count;

  Items(int64_t channels, int64_t locations) : channels(channels), locations(locations) {
    parts = std::max<int64_t>(1, (locations + SIZE - 1) / SIZE);
    channels_each = parts > 1 ? 1 : std::max<int64_t>(1, SIZE / std::max<int64_t>(locations, 1));
    // Sixteen channels end at a whole vector for any number of locations.
    if (channels_each > 16) channels_each -= channels_each % 16;
    count = parts > 1 ? channels * parts : (channels + channels_each - 1) / channels_each;
  }

  int64_t begin(int64_t item) const {
    return parts > 1 ? item / parts * locations + std::min(item % parts * SIZE, locations)
                     : item * channels_each * locations;
  }

  int64_t end(int64_t item) const {
    return parts > 1 ? item / parts * locations + std::min((item % parts + 1) * SIZE, locations)
                     : std::min((item + 1) * channels_each, channels) * locations;
  }

  int64_t cost() const { return std::min(channels_each * locations, SIZE); }
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

// Computes the sum of scaled squares in double, for tiles where it overflows float.
template <class C>
double sum_of_squares(const C* mu, const C* logvar, int64_t n, const Clip<C>& clip, C scale_down) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double std =
        std::min(std::exp(0.5 * std::min(logvar[i], clip.logvar_max)), static_cast<double>(clip.std_max));
    const double scaled_std = std * scale_down, scaled_mu = static_cast<double>(mu[i]) * scale_down;
    sum += scaled_std * scaled_std + scaled_mu * scaled_mu;
  }
  return sum;
}

}  // namespace udml
