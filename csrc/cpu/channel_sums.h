// The sums over the locations of channels that reparameterize with pooling needs.
#pragma once

#include "reparameterize_pooled.h"

namespace udml {

// Sums over locations of a channel.
struct ChannelSums {
  double mu = 0, std = 0, squares = 0;

  void operator+=(const ChannelSums& other) { mu += other.mu, std += other.std, squares += other.squares; }
};

// Sums over runs of consecutive locations of one channel, computed in C.
template <class C>
UDML_FN ChannelSums sums_of_run(const C* mu, const C* std, int64_t n) {
  lanes_of<C> mu_sum{}, std_sum{}, squares{};
  for_each_vector(n, [&](int64_t i, auto lanes) {
    const lanes_of<C> value = load_lanes(std + i, lanes);
    mu_sum += load_lanes(mu + i, lanes), std_sum += value, squares += value * value;
  });
  return {sum_of_lanes(mu_sum), sum_of_lanes(std_sum), sum_of_lanes(squares)};
}

template <class C>
bool is_accurate(double squares) {
  return std::is_same_v<C, double> || (squares > SMALLEST_SQUARES && squares < LARGEST_SQUARES);
}

// The sums of a block of channels. Sums in C are added to sums in double after CHAIN locations, which limits their
// rounding error.
template <class C>
class BlockSums {
  using V = lanes_of<C>;

 public:
  static constexpr int64_t CHAIN = 64, TOGETHER = 4;

  // Rows of mu and logvar: the channels of one location each.
  struct Rows {
    const C *mu[TOGETHER], *logvar[TOGETHER];
  };

  // Adds COUNT locations, and returns their KL divergences, times 2.
  template <int COUNT>
  double add(const Rows& rows, int64_t width, const Clip<C>& clip, const Divergence<C>& kl_of) {
    const V logvar_max = V{} + clip.logvar_max, std_max = V{} + clip.std_max;
    V terms{};
    for_each_vector(width, [&](int64_t i, auto lanes) {
      V mu_sum = load_lanes(mu_ + i, lanes), std_sum = load_lanes(std_ + i, lanes);
      V squares = load_lanes(squares_ + i, lanes);
#pragma GCC unroll 4
      for (int l = 0; l < COUNT; ++l) {
        const V mu = load_lanes(rows.mu[l] + i, lanes);
        const V logvar = at_most(load_lanes(rows.logvar[l] + i, lanes), logvar_max);
        const V std = at_most(exponential(logvar * C(0.5)), std_max);
        mu_sum += mu, std_sum += std, squares += std * std;
        terms += keep_lanes(kl_of.terms(mu, logvar, std), lanes);
      }
      store_lanes(mu_ + i, mu_sum, lanes);
      store_lanes(std_ + i, std_sum, lanes);
      store_lanes(squares_ + i, squares, lanes);
    });
    const double sum = sum_of_lanes(terms);
    if (std::isfinite(sum)) return sum;
    double again = 0;
    for (int l = 0; l < COUNT; ++l) again += kl_of.sum_in_double(rows.mu[l], rows.logvar[l], width);
    return again;
  }

  // Ends a chain. again(channel) returns the chain's sum of squares, added in double.
  template <class Again>
  void end_chain(int64_t width, const Again& again) {
    for (int64_t i = 0; i < width; ++i) {
      total_[i] += {mu_[i], std_[i], is_accurate<C>(squares_[i]) ? static_cast<double>(squares_[i]) : again(i)};
      mu_[i] = std_[i] = squares_[i] = 0;
    }
  }

  const ChannelSums* total() const { return total_; }

 private:
  alignas(64) C mu_[ChannelBlocks::WIDTH] = {};
  alignas(64) C std_[ChannelBlocks::WIDTH] = {};
  alignas(64) C squares_[ChannelBlocks::WIDTH] = {};
  ChannelSums total_[ChannelBlocks::WIDTH];
};

}  // namespace udml
