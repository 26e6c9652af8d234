// The gradients of reparameterize. The same pass sums the squares that the gradient of the prior variance needs.
#include "reparameterize_columns.h"

namespace udml {

// The incoming gradients. A missing gradient has a null pointer.
template <class C>
struct Incoming {
  Rows z, std;
  Matrix<C> channel_std, kl;
};

// The arguments of the kernel. `partial` receives sums of scaled squares, unless it is null.
template <class C>
struct SamplingBackward {
  Incoming<C> grad;
  Moments<C> moments;
  Channels channels;
  Noise noise;
  Tiles tiles;
  Results grad_mu, grad_logvar;
  C* partial;
};

// Without a gradient of kl its terms are not computed, because 0 * inf is not 0.
template <class T, Spread SPREAD, bool CLIPPED, bool HAS_KL>
__device__ __forceinline__ void differentiate(const SamplingBackward<typename Access<T>::C>& p) {
  using A = Access<T>;
  using C = typename A::C;
  const Incoming<C>& grad = p.grad;
  const Moments<C>& moments = p.moments;
  const Noise& noise = p.noise;
  const Tiles& tiles = p.tiles;
  const bool has_std = grad.std.data != nullptr || (grad.z.data != nullptr && noise.seed != nullptr);
  for_each_tile<A>(tiles, [&](const Place& place) {
    C squares = 0;
    if (place.count > 0)
      per_warp<A>(place, [&](const Place& at) {
        C logvar_value[A::WIDTH], mu_gradient[A::WIDTH] = {}, std_gradient[A::WIDTH] = {};
        A::read(moments.logvar, at, logvar_value);
        if (opaque(grad.std.data) != nullptr)
          spread_std<T, SPREAD>(grad.std, grad.channel_std, at, p.channels, std_gradient);
        if (opaque(grad.z.data) != nullptr) {
          A::read(grad.z, at, mu_gradient);
          if (opaque(noise.seed) != nullptr) {
            C normals[A::WIDTH];
            sample_of(noise, at.row).normals<A::VECTOR>(at.start, at.stride, normals);
#pragma unroll
            for (int i = 0; i < A::WIDTH; ++i)
              std_gradient[i] = multiply_add(mu_gradient[i], normals[i], std_gradient[i]);
          }
        }
        C mu_value[A::WIDTH];
        KlGradient<C> kl;
        if constexpr (HAS_KL) {
          A::read(moments.mu, at, mu_value);
          kl = KlGradient<C>(grad.kl.at(at.row), moments.prior[at.row * moments.prior_step]);
        }
#pragma unroll
        for (int i = 0; i < A::WIDTH; ++i) {
          C logvar = logvar_value[i];
          const C std = moments.template std_of<T, CLIPPED>(logvar);
          // Without a gradient that reaches std, 0 times a std that is not finite must be 0.
          C logvar_gradient = std_gradient[i] * (has_std ? std * C(0.5) : C(0));
          if constexpr (HAS_KL) {
            mu_gradient[i] = kl.add_mu(mu_value[i], mu_gradient[i]);
            logvar_gradient = kl.add_logvar(std, logvar_gradient);
            if (A::exists(at, i)) squares = kl.add_squares(mu_value[i], std, squares);
          }
          // Like torch.clamp, this stops the gradient above the limit and for a NaN.
          logvar_value[i] =
              !CLIPPED || !moments.clipped || logvar_value[i] <= moments.logvar_max ? logvar_gradient : C(0);
        }
        A::write(p.grad_mu, at, mu_gradient);
        A::write(p.grad_logvar, at, logvar_value);
      });
    if (opaque(p.partial) == nullptr) return;
    squares = sum_over_lanes(squares, tiles.threads_per_row);
    if (place.exists && writes_partial(tiles)) p.partial[partial_index(tiles, place)] = squares;
  });
}

template <class T, Spread SPREAD, bool CLIPPED, bool HAS_KL>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(2))
    reparameterize_backward_kernel(SamplingBackward<typename Access<T>::C> p) {
  differentiate<T, SPREAD, CLIPPED, HAS_KL>(p);
}

// For several calls.
template <class T, Spread SPREAD, bool CLIPPED, bool HAS_KL>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(2)) reparameterize_backward_kernel_together(
    const __grid_constant__ Together<SamplingBackward<typename Access<T>::C>> all) {
  differentiate<T, SPREAD, CLIPPED, HAS_KL>(all.mine());
}

template <class T, Spread SPREAD>
static void backward(const Incoming<typename Access<T>::C>& grad, const Moments<typename Access<T>::C>& moments,
                     const Channels& channels, const Noise& noise, const Tensor& grad_mu, const Tensor& grad_logvar,
                     Tensor& grad_prior, const OnDevice& device) {
  using A = Access<T>;
  using C = typename A::C;
  const int64_t rows = grad_mu.size(0), size = row_size_of(grad_mu);
  const Tiles tiles(rows, size, Access<T>::WIDTH);
  const bool needs_prior_gradient = grad_prior.numel() > 0 && grad.kl.data != nullptr;
  const Tensor partial =
      allocate({needs_prior_gradient ? rows : 0, int64_t{tiles.partials_per_row}}, scalar_type_of<C>, grad_mu);
  // As in the forward pass, only the kernel that a training step launches has a version without the limits.
  const auto training = moments.clipped ? reparameterize_backward_kernel<T, SPREAD, true, true>
                                        : reparameterize_backward_kernel<T, SPREAD, !A::DENSE, true>;
  const auto kernel = grad.kl.data != nullptr ? training : reparameterize_backward_kernel<T, SPREAD, true, false>;
  // Only the kernel of features, which have no locations, serves several calls.
  void (*together)(Together<SamplingBackward<C>>) = nullptr;
  if constexpr (A::DENSE && SPREAD == PER_ELEMENT)
    together = grad.kl.data != nullptr ? reparameterize_backward_kernel_together<T, PER_ELEMENT, true, true> : nullptr;
  launch("reparameterize_backward_kernel", kernel, together, device, tiles.work(),
         SamplingBackward<C>{grad, moments, channels, noise, tiles, results(grad_mu, size), results(grad_logvar, size),
                             needs_prior_gradient ? results_of<C>(partial) : nullptr});
  if (needs_prior_gradient) prior_gradient<C>(partial, grad.kl, moments, size, grad_prior, device);
}

template <class T, class C>
static void backward_columns(const ColumnsIncoming<T, C>& grad, const Tensor& mu, const Tensor& logvar,
                             const Moments<C>& moments, const Noise& noise, const Tensor& grad_mu,
                             const Tensor& grad_logvar, Tensor& grad_prior, const OnDevice& device) {
  const Runs plan(mu);
  const bool needs_prior_gradient = grad_prior.numel() > 0 && grad.kl.data != nullptr;
  const Tensor partial =
      allocate({needs_prior_gradient ? mu.size(0) : 0, int64_t{plan.across} * (BLOCK / 32)}, scalar_type_of<C>, mu);
  const auto training = moments.clipped ? reparameterize_columns_backward_kernel<T, C, true, true>
                                        : reparameterize_columns_backward_kernel<T, C, sizeof(T) == 8, true>;
  const auto kernel = grad.kl.data != nullptr ? training : reparameterize_columns_backward_kernel<T, C, true, false>;
  launch("reparameterize_columns_backward_kernel", kernel, device, plan.work(), grad, map_of<T>(mu), map_of<T>(logvar),
         moments, plan, noise, result_map<T>(grad_mu), result_map<T>(grad_logvar),
         needs_prior_gradient ? results_of<C>(partial) : nullptr);
  if (needs_prior_gradient) prior_gradient<C>(partial, grad.kl, moments, row_size_of(mu), grad_prior, device);
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_backward(OptionalTensor grad_z, OptionalTensor grad_std,
                                                           OptionalTensor grad_kl, Tensor mu, Tensor logvar,
                                                           Tensor prior_var, std::optional<double> std_max, bool sample,
                                                           OptionalTensor seed, int64_t stream,
                                                           OptionalTensor sample_ids, bool needs_prior) {
  expect_moments(mu, logvar, prior_var);
  expect_sample_gradients(mu, shape_of(mu), grad_z, grad_std, grad_kl);
  const OnDevice device(mu);
  const Noise noise = noise_of(sample ? seed : std::nullopt, stream, sample_ids, mu.size(0));
  const bool columns = are_channels_last(mu, logvar);
  const Tensor grad_mu = allocate_map(mu, columns), grad_logvar = allocate_map(mu, columns);
  Tensor grad_prior = needs_prior ? allocate_like(prior_var) : empty_gradient(prior_var.scalar_type(), mu);
  if (mu.numel() == 0 || !grad_kl) torch::stable::zero_(grad_prior);
  if (mu.numel() == 0) return {grad_mu, grad_logvar, grad_prior};
  if (columns) {
    with_map_type(mu.scalar_type(), [&](auto stored, auto arithmetic) {
      using T = decltype(stored);
      using C = decltype(arithmetic);
      Tensor copy;
      const ColumnsIncoming<T, C> grad{gradient_map<T>(grad_z, copy), matrix_of<C>(grad_std), matrix_of<C>(grad_kl)};
      const auto moments = moments_of<C>({}, {}, prior_var, std_max);
      backward_columns<T, C>(grad, mu, logvar, moments, noise, grad_mu, grad_logvar, grad_prior, device);
    });
    return {grad_mu, grad_logvar, grad_prior};
  }
  const Input mu_rows(mu), logvar_rows(logvar), z_rows(grad_z), std_rows(grad_std);
  const int64_t locations = row_size_of(mu, 2);
  const bool dense =
      mu_rows.is_dense() && logvar_rows.is_dense() && z_rows.is_dense() && (locations > 1 || std_rows.is_dense());
  with_storage(mu.scalar_type(), dense, [&](auto storage) {
    using T = decltype(storage);
    using A = Access<T>;
    const Channels channels(mu, A::WIDTH);
    using C = typename A::C;
    const Incoming<C> grad{z_rows.rows(), std_rows.rows(), matrix_of<C>(grad_std), matrix_of<C>(grad_kl)};
    const auto moments = moments_of<C>(mu_rows.rows(), logvar_rows.rows(), prior_var, std_max);
    constexpr Spread LONG_CHANNELS = A::DENSE ? TWO_CHANNELS : ANY_CHANNELS;
    const auto run = locations == 1           ? backward<T, PER_ELEMENT>
                     : locations >= A::VECTOR ? backward<T, LONG_CHANNELS>
                                              : backward<T, ANY_CHANNELS>;
    run(grad, moments, channels, noise, grad_mu, grad_logvar, grad_prior, device);
  });
  return {grad_mu, grad_logvar, grad_prior};
}

}  // namespace udml

UDML_REGISTER(reparameterize_backward)
