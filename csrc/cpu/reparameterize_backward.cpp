#include "map_blocks.h"

namespace udml {
namespace {

template <class C>
struct Incoming {
  MapReader<C> z;
  Reader<C> std, kl;

  // Returns dL/dstd for elements [begin, begin + n) of a row. `buffer` has room for n + W numbers.
  const C* std_run(int64_t row, int64_t begin, int64_t n, int64_t locations, C* buffer) const {
    if (locations == 1) return std.run(row, begin, n, buffer);
    const C inverse = C(1) / static_cast<C>(locations);
    for_each_channel(begin, n, locations, [&](int64_t i, int64_t count, int64_t channel) {
      // The last store may write past the end of the channel; the next channel overwrites it.
      const lanes_of<C> slope = lanes_of<C>{} + std.at(row, channel) * inverse;
      for (int64_t j = 0; j < count; j += W) store(buffer + i + j, slope);
    });
    return buffer;
  }
};

template <class C>
struct Blocks {
  alignas(64) C mu[Items::SIZE], logvar[Items::SIZE], grad_z[Items::SIZE];
  alignas(64) C grad_mu[Items::SIZE], grad_logvar[Items::SIZE];
};

// HAS_KL: the op received a gradient of kl. Without one its term is not computed, because 0 * inf is not 0.
template <class C, bool HAS_KL>
void backward(const Incoming<C>& grad, const Items& items, const Tensor& mu, const Tensor& logvar,
              const Tensor& prior_var, std::optional<double> std_max, bool sample, const Noise& noise,
              const Tensor& grad_mu, const Tensor& grad_logvar, const Tensor& grad_prior, bool needs_prior) {
  using V = lanes_of<C>;
  const Shape shape(mu);
  const MapReader<C> mu_map(mu, items), logvar_map(logvar, items);
  const MapWriter<C> grad_mu_map(grad_mu, items), grad_logvar_map(grad_logvar, items);
  const C* prior = values_of<C>(prior_var);
  const int64_t prior_step = prior_var.numel() > 1;
  const Clip<C> clip(std_max);
  std::vector<long double> partial(HAS_KL && needs_prior ? static_cast<size_t>(shape.rows * items.count) : 0);

  parallel_items(shape.rows * items.count, items.cost(), [&](int64_t index) {
    const int64_t row = index / items.count, item = index % items.count;
    const C kl_gradient = HAS_KL ? grad.kl.at(row, 0) : C(0);
    const DivergenceGradient<C> kl_of(kl_gradient, prior[row * prior_step]);
    const Divergence<C> divergence(prior[row * prior_step], clip);
    const V logvar_max = V{} + clip.logvar_max, std_max = V{} + clip.std_max;
    alignas(64) C mu_buffer[STEP], logvar_buffer[STEP], grad_buffer[STEP], spread[STEP + W], noise_buffer[NOISE_TILE];
    alignas(64) C grad_mu_buffer[STEP], grad_logvar_buffer[STEP];
    Blocks<C>& blocks = scratch<Blocks<C>>();
    if (HAS_KL) mu_map.load(row, item, blocks.mu);
    logvar_map.load(row, item, blocks.logvar);
    if (grad.z) grad.z.load(row, item, blocks.grad_z);
    long double prior_terms = 0;
    items.for_each_step(item, [&](int64_t begin, int64_t n, int64_t at) {
      const C* eps = grad.z && sample ? noise.normals(row, begin, n, noise_buffer) : nullptr;
      const C* m = HAS_KL ? mu_map.run(row, begin, n, at, blocks.mu, mu_buffer) : nullptr;
      const C* lv = logvar_map.run(row, begin, n, at, blocks.logvar, logvar_buffer);
      const C* g = grad.z ? grad.z.run(row, begin, n, at, blocks.grad_z, grad_buffer) : nullptr;
      const C* std_slopes = grad.std ? grad.std_run(row, begin, n, shape.locations, spread) : nullptr;
      C* grad_mu_run = grad_mu_map.run(row, begin, at, blocks.grad_mu, grad_mu_buffer);
      C* grad_logvar_run = grad_logvar_map.run(row, begin, at, blocks.grad_logvar, grad_logvar_buffer);
      V total{};
      with_flag(grad_mu_map.nontemporal(grad_mu_run) && grad_logvar_map.nontemporal(grad_logvar_run),
                [&](auto is_nontemporal) {
        for_each_vector(n, [&](int64_t i, auto lanes) {
          const V logvar_value = load_lanes(lv + i, lanes), grad_z = g ? load_lanes(g + i, lanes) : V{};
          const V std = at_most(exponential(at_most(logvar_value, logvar_max) * C(0.5)), std_max);
          V std_gradient = std_slopes ? load_lanes(std_slopes + i, lanes) : V{}, mu_gradient = grad_z;
          if (eps) std_gradient += grad_z * load_lanes(eps + i, lanes);
          const V bounded = bounded_std<C>(logvar_value, std);
          V logvar_gradient =
              std_slopes || eps ? V(std_gradient * (select(std_gradient == C(0), bounded, std) * C(0.5))) : V{};
          if (HAS_KL) {
            const V mu_value = load_lanes(m + i, lanes);
            mu_gradient += kl_of.of_mu(mu_value);
            logvar_gradient += kl_of.of_logvar(std, bounded);
            total += keep_lanes(divergence.prior_terms(mu_value, std), lanes);
          }
          // Like torch.clamp, this stops the gradient above the limit and for a NaN.
          const V clipped_gradient =
              clip.limited ? select(logvar_value <= logvar_max, logvar_gradient, V{}) : logvar_gradient;
          put_lanes<is_nontemporal.value>(grad_mu_run + i, mu_gradient, lanes);
          put_lanes<is_nontemporal.value>(grad_logvar_run + i, clipped_gradient, lanes);
        });
      });
      if (HAS_KL) prior_terms += divergence.prior_sum(total, m, lv, n);
      grad_mu_map.commit(row, begin, n, grad_mu_run);
      grad_logvar_map.commit(row, begin, n, grad_logvar_run);
    });
    grad_mu_map.finish(row, item, blocks.grad_mu);
    grad_logvar_map.finish(row, item, blocks.grad_logvar);
    if (!partial.empty()) partial[static_cast<size_t>(index)] = prior_terms;
  });

  if (needs_prior) write_prior_gradient(grad_prior, grad.kl, prior, shape, partial);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> reparameterize_backward(OptionalTensor grad_z, OptionalTensor grad_std,
                                                           OptionalTensor grad_kl, Tensor mu, Tensor logvar,
                                                           Tensor prior_var, std::optional<double> std_max, bool sample,
                                                           OptionalTensor seed, int64_t stream,
                                                           OptionalTensor sample_ids, bool needs_prior) {
  expect_moments(mu, logvar, prior_var);
  expect_sample_gradients(mu, shape_of(mu), grad_z, grad_std, grad_kl);
  const Noise noise(seed, stream, sample_ids, mu.size(0));
  const Tensor grad_mu = allocate_map(mu, logvar), grad_logvar = allocate_map(mu, logvar);
  const Shape shape(mu);
  const Items items(shape.channels, shape.locations, are_channels_last(mu, logvar));
  const Tensor grad_prior = needs_prior ? allocate_like(prior_var) : empty_gradient(prior_var.scalar_type());
  with_compute_type(mu.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const Incoming<C> grad{grad_z ? MapReader<C>(*grad_z, items) : MapReader<C>(), optional_reader<C>(grad_std),
                           optional_reader<C>(grad_kl)};
    const auto run = grad_kl ? backward<C, true> : backward<C, false>;
    run(grad, items, mu, logvar, prior_var, std_max, sample, noise, grad_mu, grad_logvar, grad_prior, needs_prior);
  });
  return {grad_mu, grad_logvar, grad_prior};
}

}  // namespace udml

UDML_REGISTER(reparameterize_backward)
