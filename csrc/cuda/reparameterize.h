// What the kernels of the forward and the backward pass of reparameterize share.
#pragma once

#include <cmath>
#include <limits>

#include "../scaled.h"
#include "noise.h"
#include "pooling.h"
#include "tiles.h"

namespace udml {

template <class C>
struct Moments {
  Rows mu, logvar;
  const C* prior;
  int prior_step;
  bool clipped;
  C std_max, logvar_max;

  // Returns std, and clamps logvar to its limit.
  template <class T, bool CLIPPED>
  __device__ __forceinline__ C std_of(C& logvar) const {
    if constexpr (!CLIPPED) return exponential_of_half<T>(logvar);
    logvar = minimum(logvar, logvar_max);
    return minimum(exponential_of_half<T>(logvar), std_max);
  }
};

// The factors for sums of squares of std and mu (see SQUARE_SHIFT): std and mu are multiplied by scale_down() before
// they are squared, and the sum is divided by `inverse_factor` afterwards, which also divides it by the prior variance.
template <class C>
struct SquareScale {
  C half;
  double inverse_factor;

  __device__ __forceinline__ explicit SquareScale(C prior_variance) {
    const Scaled<C> prior = split<C>(prior_variance);
    half = as_number(as_integer(prior.exponent) >> 1);
    inverse_factor = 1 / SQUARE_SCALE * static_cast<double>(prior.mantissa) *
                     static_cast<double>(scale<C>(C(1), prior.exponent - half - half));
  }
  __device__ __forceinline__ C scale_down() const { return scale<C>(C(1), -half - C(SQUARE_SHIFT)); }
};

template <class C>
Moments<C> moments_of(const Input& mu, const Input& logvar, const Tensor& prior_var, std::optional<double> std_max) {
  constexpr C INF = std::numeric_limits<C>::infinity();
  return {mu.rows(),
          logvar.rows(),
          values_of<C>(prior_var),
          prior_var.numel() > 1,
          std_max.has_value(),
          std_max ? static_cast<C>(*std_max) : INF,
          std_max ? static_cast<C>(2 * std::log(*std_max)) : INF};
}

}  // namespace udml
