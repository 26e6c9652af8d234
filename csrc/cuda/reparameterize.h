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

// The KL divergence of a sample of `size` elements: (sum(std^2 + mu^2) / prior + N (ln prior - 1) - sum(logvar)) / 2.
// terms[0] is the sum of the scaled squares (see SquareScale), terms[1] that of logvar.
template <class C>
__device__ __forceinline__ C divergence_of(const double (&terms)[2], double size, C prior_variance) {
  return static_cast<C>(0.5 * (terms[0] / SquareScale<C>(prior_variance).inverse_factor +
                               (size * (log(static_cast<double>(prior_variance)) - 1) - terms[1])));
}

// The gradients of a sample's KL divergence.
template <class C>
struct KlGradient {
  C gradient = 0, factor1 = 0, factor2 = 0, scale_down = 1;

  KlGradient() = default;
  // gradient / prior_variance = factor1 * factor2: the quotient may overflow although its product with mu or std^2 does
  // not.
  __device__ __forceinline__ KlGradient(C gradient, C prior_variance) : gradient(gradient) {
    split_quotient(gradient, prior_variance, factor1, factor2);
    scale_down = SquareScale<C>(prior_variance).scale_down();
  }
  __device__ __forceinline__ C add_mu(C mu, C mu_gradient) const {
    return multiply_add(mu * factor1, factor2, mu_gradient);
  }
  __device__ __forceinline__ C add_logvar(C std, C logvar_gradient) const {
    return logvar_gradient + multiply_add(std * C(0.5) * factor1, std * factor2, gradient * C(-0.5));
  }
  // Adds the scaled squares that the gradient of the prior variance needs.
  __device__ __forceinline__ C add_squares(C mu, C std, C squares) const {
    const C scaled_std = std * scale_down, scaled_mu = mu * scale_down;
    return multiply_add(scaled_std, scaled_std, multiply_add(scaled_mu, scaled_mu, squares));
  }
};

// Computes each sample's term of dL/dprior_var: grad_kl (N - sum(std^2 + mu^2) / prior) / (2 prior). A sum above 2^223
// times the prior counts as infinite; if grad_kl is 0, such a sum contributes 0.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    prior_terms_kernel(const C* partial, Matrix<C> grad_kl, const C* prior, int prior_step, int64_t rows,
                       int64_t entries, double size, double* terms) {
  for_each_warp_item(rows, [&](int64_t row) {
    const double sum = warp_sum(entries, [&](int64_t i) { return static_cast<double>(partial[row * entries + i]); });
    const double prior_variance = prior[row * prior_step];
    const double squares = sum / SquareScale<C>(prior[row * prior_step]).inverse_factor;
    const double kl_gradient = grad_kl.at(row);
    const bool none = kl_gradient == 0 && squares == INFINITY;
    if (threadIdx.x % 32 == 0) terms[row] = none ? 0 : 0.5 * kl_gradient * (size - squares) / prior_variance;
  });
}

// ---- Host code.

// Computes the gradient of the prior variance from partial sums of scaled squares, `partial` (rows, entries).
template <class C>
void prior_gradient(const Tensor& partial, const Matrix<C>& grad_kl, const Moments<C>& moments, int64_t size,
                    const Tensor& grad_prior, const OnDevice& device) {
  const int64_t rows = partial.size(0), count = grad_prior.numel();
  const Tensor terms = allocate({rows}, ScalarType::Double, partial);
  launch("prior_terms_kernel", prior_terms_kernel<C>, device, warp_item_work(rows), results_of<C>(partial), grad_kl,
         moments.prior, moments.prior_step, rows, partial.size(1), static_cast<double>(size),
         results_of<double>(terms));
  sum_partials<double>(terms, count, rows / count, 1.0, results_of<C>(grad_prior), device);
}

template <class C>
Moments<C> moments_of(const Rows& mu, const Rows& logvar, const Tensor& prior_var, std::optional<double> std_max) {
  constexpr C INF = std::numeric_limits<C>::infinity();
  return {mu,
          logvar,
          values_of<C>(prior_var),
          prior_var.numel() > 1,
          std_max.has_value(),
          std_max ? static_cast<C>(*std_max) : INF,
          std_max ? static_cast<C>(2 * std::log(*std_max)) : INF};
}

}  // namespace udml
