// The gradients of inject_noise. The pass generates the noise again.
#include "inject_noise.h"

namespace udml {

// grad_x.data and partial are null if the respective gradient is not requested.
template <class T, int KIND, Normalize NORMALIZE>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(2))
    inject_noise_backward_kernel(Rows grad, Rows x, Settings<typename Access<T>::C> settings, Noise noise, Tiles tiles,
                                 Results grad_x, typename Access<T>::C* partial) {
  using A = Access<T>;
  using C = typename A::C;
  for_each_tile<A>(tiles, [&](const Place& place) {
    C total = 0;
    if (place.count > 0)
      per_warp<A>(place, [&](const Place& at) {
        C value[A::WIDTH], random[A::WIDTH], noisy_gradient[A::WIDTH];
        A::read(grad, at, noisy_gradient);
        A::read(x, at, value);
        const int kind = KIND == MIXED ? settings.kind_of(at.row) : KIND;
        draw<KIND, A>(noise, kind, at, random);
        if constexpr (NORMALIZE != UNNORMALIZED)
          for_each_normalization<NORMALIZE, A>(settings, at, [&](int i, C factor, C) { noisy_gradient[i] *= factor; });
        const Level<C> level = settings.level_of(at.row);
        with_kind<KIND>(kind, [&](auto known) {
          constexpr int KNOWN_KIND = decltype(known)::value;
#pragma unroll
          for (int i = 0; i < A::WIDTH; ++i) {
            C x_gradient = level.template x_gradient<KNOWN_KIND>(noisy_gradient[i], random[i]);
            C sigma_gradient = level.template sigma_gradient<KNOWN_KIND>(noisy_gradient[i], value[i], random[i]);
            if (settings.clamped) {
              // Like torch.clamp, this passes the gradient at the limits and stops it for a NaN.
              const C noisy = level.template noisy<KNOWN_KIND>(value[i], random[i]);
              const bool passes = noisy >= settings.low && noisy <= settings.high;
              x_gradient = passes ? x_gradient : C(0), sigma_gradient = passes ? sigma_gradient : C(0);
            }
            if (A::exists(at, i)) total += sigma_gradient;
            noisy_gradient[i] = x_gradient;
          }
        });
        if (opaque(grad_x.data) != nullptr) A::write(grad_x, at, noisy_gradient);
      });
    if (opaque(partial) == nullptr) return;
    total = sum_over_lanes(total, tiles.threads_per_row);
    if (place.exists && writes_partial(tiles)) partial[partial_index(tiles, place)] = total;
  });
}

std::tuple<Tensor, Tensor> inject_noise_backward(Tensor grad, Tensor x, Tensor sigma, OptionalTensor kinds,
                                                 int64_t kind, std::vector<double> clamp, double scale,
                                                 OptionalTensor mean, OptionalTensor std, ScalarType, Tensor seed,
                                                 int64_t stream, OptionalTensor sample_ids, bool needs_x,
                                                 bool needs_sigma) {
  expect_same_shape(grad, x, "grad and x");
  const OnDevice device(x);
  const Noise noise = noise_of(seed, stream, sample_ids, x.size(0));
  const Tensor grad_x = needs_x ? allocate_like(x) : empty_gradient(x.scalar_type(), x);
  Tensor grad_sigma = needs_sigma ? allocate_like(sigma) : empty_gradient(sigma.scalar_type(), x);
  if (x.numel() == 0) torch::stable::zero_(grad_sigma);
  const Input grad_rows(grad), x_rows(x);
  const bool dense = grad.scalar_type() == x.scalar_type() && grad_rows.is_dense() && x_rows.is_dense();
  with_storage(x.scalar_type(), dense, [&](auto storage) {
    using T = decltype(storage);
    using A = Access<T>;
    using C = typename A::C;
    if (x.numel() == 0 || !(needs_x || needs_sigma)) return;
    const Call<C> call = call_of<C>(x, sigma, kinds, kind, clamp, scale, mean, std, device);
    const Settings<C>& settings = call.settings;
    const Tiles tiles(x.size(0), row_size_of(x), A::WIDTH);
    const Tensor partial =
        allocate({needs_sigma ? x.size(0) : 0, int64_t{tiles.partials_per_row}}, scalar_type_of<C>, x);
    with_normalize<A>(settings, [&](auto normalize) {
      constexpr Normalize NORMALIZE = decltype(normalize)::value;
      constexpr auto KIND = A::DENSE ? GAUSSIAN : MIXED;
      const bool gaussian = A::DENSE && settings.kinds == nullptr && settings.kind == GAUSSIAN;
      const auto kernel = gaussian ? inject_noise_backward_kernel<T, KIND, NORMALIZE>
                                   : inject_noise_backward_kernel<T, MIXED, NORMALIZE>;
      launch("inject_noise_backward_kernel", kernel, device, tiles.work(), grad_rows.rows(), x_rows.rows(), settings,
             noise, tiles, needs_x ? results(grad_x, tiles.size) : Results{},
             needs_sigma ? results_of<C>(partial) : nullptr);
    });
    if (needs_sigma)
      sum_partials<C>(partial, sigma.numel(), partial.numel() / sigma.numel(), 1.0, results_of<C>(grad_sigma), device);
  });
  return {grad_x, grad_sigma};
}

}  // namespace udml

UDML_REGISTER(inject_noise_backward)
