// The gradient of the weights of a block of positions.
#pragma once

#include "weighting.h"

namespace udml {

template <class C>
class WeightBlock : public BlockWeights<C> {
  using Base = BlockWeights<C>;
  using V = typename Base::V;

 public:
  using Base::present, Base::SIZE, Base::weight;

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
        if (weighting.reference) difference += load(share_[REFERENCE] + i) * (load(grad[m] + i) * downscale);
        store(dependency_gradient[m] + i, difference);
      }
      const bool recompute = sizeof(C) == sizeof(float) && may_lose_digits(weighting, i);
      alignas(64) C weight_gradient[MAX_MODALITIES][W];
      for (int64_t m = 0; m < weighting.modalities; ++m) {
        store(weight_gradient[m], load(grad[m] + i));
        input_gradients(weighting, m, i, missing_exponent, grad[m] + i, dependency_gradient[m] + i);
      }
      if (weighting.reference)
        add_reference_gradient(weighting, i, weight_gradient, downscale, missing_exponent, dependency_gradient);
      for (int64_t lane = 0; recompute && lane < W; ++lane)
        recompute_in_double(weighting, i, lane, weight_gradient, grad, dependency_gradient);
    }
  }

  // The sum of a modality's dL/ddependency in double, without floor and reference. It uses that dL/ddependency *
  // dependency equals dL/duncertainty * uncertainty.
  double dependency_sum(int64_t m, int64_t count, const C (*grad_uncertainty)[SIZE]) const {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i)
      if (present[m][i] != C(0))
        sum += static_cast<double>(grad_uncertainty[m][i]) * uncertainty_[m][i] / dependency_[m][i];
    return sum;
  }

 private:
  using Base::all_lanes, Base::dependency_, Base::mean_dependency, Base::power_, Base::REFERENCE, Base::share_,
      Base::split_positive, Base::uncertainty_, Base::variance;

  // Whether float32 may be too coarse for the gradients. A subnormal share has few digits, and the product of a small
  // share with a small gradient underflows, but the factor 1 / (s alpha) can make both significant.
  UDML_FN bool may_lose_digits(const Weighting& weighting, int64_t i) const {
    constexpr C TINY = 0x1p-80;
    V found{};
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      const V d = load(uncertainty_[m] + i);
      const V s = weighting.floor ? d * d + static_cast<C>(value_of(*weighting.floor)) : d;
      const auto small = (s < TINY) | (load(dependency_[m] + i) < TINY);
      found += select(is_present & (small | (load(share_[m] + i) < Format<C>::SMALLEST_NORMAL)), V{} + C(1), V{});
    }
    return sum_of_lanes(found) > 0;
  }

  // Recomputes the gradients of one position in double, where each share is a normal number. The reference is the last
  // entry.
  void recompute_in_double(const Weighting& weighting, int64_t i, int64_t lane, const C (*weight_gradient)[W],
                           C (*uncertainty_gradient)[SIZE], C (*dependency_gradient)[SIZE]) const {
    const int64_t at = i + lane, modalities = weighting.modalities, entries = modalities + bool(weighting.reference);
    const double temperature = value_of(weighting.temperature);
    double s[MAX_MODALITIES + 1], alpha[MAX_MODALITIES + 1], slope[MAX_MODALITIES + 1], share[MAX_MODALITIES + 1];
    double top = -INFINITY, sum = 0, count = 0, alphas = 0, of_mean = 0;
    for (int64_t m = 0; m < modalities; ++m) {
      if (present[m][at] == C(0)) continue;
      const double d = uncertainty_[m][at];
      s[m] = weighting.floor ? d * d + value_of(*weighting.floor) : d;
      alpha[m] = dependency_[m][at], slope[m] = weight_gradient[m][lane];
      if (!(s[m] > 0 && alpha[m] > 0)) return;
      count += 1, alphas += alpha[m];
    }
    if (weighting.reference)
      s[modalities] = value_of(*weighting.reference), alpha[modalities] = alphas / count, slope[modalities] = 0;
    const auto exists = [&](int64_t e) { return e == modalities || present[e][at] != C(0); };
    for (int64_t e = 0; e < entries; ++e) {
      if (!exists(e)) continue;
      share[e] = (weighting.inverse ? -std::log(s[e] * alpha[e]) : 1 / (s[e] * alpha[e])) / temperature;
      top = std::max(top, share[e]);
    }
    for (int64_t e = 0; e < entries; ++e)
      if (exists(e)) sum += share[e] = (e == modalities ? count : 1) * std::exp(share[e] - top);
    for (int64_t e = entries - 1; e >= 0; --e) {
      if (!exists(e)) continue;
      double difference = 0;
      for (int64_t j = 0; j < entries; ++j)
        if (j != e && exists(j)) difference += share[j] / sum * (slope[e] - slope[j]);
      double log_gradient = -weighting.total.value_or(count) * (share[e] / sum) * difference / temperature;
      if (!weighting.inverse) log_gradient /= s[e] * alpha[e];
      if (e == modalities) {
        of_mean = log_gradient / alphas;
        continue;
      }
      const double of_s = log_gradient / s[e];
      uncertainty_gradient[e][at] = static_cast<C>(weighting.floor ? of_s * 2 * uncertainty_[e][at] : of_s);
      dependency_gradient[e][at] = static_cast<C>(log_gradient / alpha[e] + of_mean);
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
    const Scaled<V> s = variance(weighting, m, i), alpha = split_positive(dependency_[m] + i);
    const auto [gradient, exponent] =
        log_gradient(weighting, load(weight[m] + i), load(dependency_gradient), missing_exponent, s, alpha);
    V of_uncertainty = gradient / s.mantissa, power = exponent - s.exponent;
    if (weighting.floor) {
      const Scaled<V> d = split<C>(load(uncertainty_[m] + i));
      of_uncertainty *= C(2) * d.mantissa;
      power += d.exponent;
    }
    store(uncertainty_gradient, select(is_present, scale<C>(of_uncertainty, power), V{}));
    store(dependency_gradient, select(is_present, scale<C>(gradient / alpha.mantissa, exponent - alpha.exponent), V{}));
  }

  // dL/dln(s alpha) of an entry with weight w, where difference 2^missing_exponent is dL/dw less its mean.
  UDML_FN static Scaled<V> log_gradient(const Weighting& weighting, V w, V difference, V missing_exponent,
                                        const Scaled<V>& s, const Scaled<V>& alpha) {
    const Scaled<V> share = split<C>(w), slope = split<C>(difference);
    V gradient = share.mantissa * slope.mantissa * static_cast<C>(-1 / weighting.temperature.mantissa);
    V exponent = share.exponent + slope.exponent + (missing_exponent - static_cast<C>(weighting.temperature.exponent));
    if (!weighting.inverse) {
      gradient /= s.mantissa * alpha.mantissa;
      exponent -= s.exponent + alpha.exponent;
    }
    return {gradient, exponent};
  }

  // Adds the gradient that reaches each dependency through their mean. `downscale` is 2^-missing_exponent, which keeps
  // the mean of dL/dw in range.
  UDML_FN void add_reference_gradient(const Weighting& weighting, int64_t i, const C (*weight_gradient)[W], V downscale,
                                      V missing_exponent, C (*dependency_gradient)[SIZE]) const {
    V count{}, mean{};
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const auto is_present = load(present[m] + i) != C(0);
      count += select(is_present, V{} + C(1), V{});
      mean += select(is_present, load(share_[m] + i) * (load(weight_gradient[m]) * downscale), V{});
    }
    const V total = weighting.total ? V{} + static_cast<C>(*weighting.total) : count;
    const Scaled<V> alpha = mean_dependency(i);
    const auto [gradient, exponent] = log_gradient(weighting, load(share_[REFERENCE] + i) * total, -mean,
                                                   missing_exponent, all_lanes(*weighting.reference), alpha);
    const V each = scale<C>(gradient / alpha.mantissa / count, exponent - alpha.exponent);
    for (int64_t m = 0; m < weighting.modalities; ++m) {
      const V sum = load(dependency_gradient[m] + i) + each;
      store(dependency_gradient[m] + i, select(load(present[m] + i) != C(0), sum, V{}));
    }
  }
};

}  // namespace udml
