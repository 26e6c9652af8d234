// The gradients of reparameterize_pooled. Each block first computes what its channels contribute to the gradients of
// their elements, with one normal number a channel.
#include "reparameterize_pooled.h"

namespace udml {

// The work on rows whose elements are in the order (channel, location). A block has `step` elements of a row, from at
// most BLOCK channels.
struct Chunks {
  int64_t locations, size;
  unsigned rows, channels, step, across;
  Divisor locations_divisor;

  __host__ Chunks(int64_t row_count, int64_t channel_count, int64_t locations, int width)
      : locations(locations),
        size(channel_count * locations),
        rows(Tiles::counted(row_count)),
        channels(Tiles::counted(channel_count)),
        locations_divisor(locations) {
    // A chunk that does not begin with a channel lies in one more of them.
    const int64_t most = std::min<int64_t>(16 * BLOCK, (BLOCK - 2) * locations);
    step = static_cast<unsigned>(most / width * width);
    across = Tiles::counted((size + step - 1) / step);
  }
  Work work() const { return {across, rows, BLOCK}; }
};

// The arguments of the kernel. A missing gradient has a null pointer. `partial` receives sums of scaled squares.
template <class C>
struct PooledBackward {
  Rows z;
  Matrix<C> std, kl, spread;
  Moments<C> moments;
  Noise noise;
  Results grad_mu, grad_logvar;
  C* partial;
  // z has noise; std has a gradient, other than that of kl.
  bool noisy, has_std;
};

// What a channel contributes to the gradients of its elements: `mu` to mu, std + noise * (root * std_l)^2 / std_l to
// std_l. Here root is 1 / sqrt(L spread), so neither its products with std_l nor the ratio std_l / (L spread) overflow.
template <class C>
struct alignas(16) ChannelGradient {
  C mu, std, noise, root;
};

// Returns 1 / sqrt(x), and 0 for 0.
__device__ __forceinline__ float root_of(float x) { return x == 0 ? 0 : rsqrtf(x); }
__device__ __forceinline__ double root_of(double x) { return x == 0 ? 0 : 1 / sqrt(x); }

template <class C>
__device__ __forceinline__ ChannelGradient<C> channel_gradient(const PooledBackward<C>& p, C share, unsigned row,
                                                               unsigned channel) {
  ChannelGradient<C> g{};
  if (p.std.data != nullptr) g.std = p.std.at(row, channel) * share;
  if (p.z.data != nullptr) g.mu = at<C>(p.z, row, channel) * share;
  if (p.noisy) {
    g.noise = g.mu * normal_of<C>(p.noise, row, channel);
    g.root = root_of(p.spread.at(row, channel)) * sqrt(share);
  }
  return g;
}

// Replaces V elements of mu and logvar by their gradients. The terms of gradients that are missing are not computed,
// because 0 * inf is not 0.
template <class T, bool HAS_KL, class C, int V>
__device__ __forceinline__ void differentiate(const PooledBackward<C>& p, const KlGradient<C>& kl,
                                              const ChannelGradient<C> (&g)[V], C (&mu)[V], C (&logvar)[V],
                                              C& squares) {
  const Moments<C>& moments = p.moments;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    C clamped = logvar[i], mu_gradient = g[i].mu;
    const C std = moments.template std_of<T, true>(clamped);
    const C std_gradient = p.noisy ? multiply_add(g[i].noise, std * g[i].root * g[i].root, g[i].std) : g[i].std;
    C logvar_gradient = p.has_std ? std_gradient * (std * C(0.5)) : C(0);
    if constexpr (HAS_KL) {
      squares = kl.add_squares(mu[i], std, squares);
      mu_gradient = kl.add_mu(mu[i], mu_gradient);
      logvar_gradient = kl.add_logvar(std, logvar_gradient);
    }
    mu[i] = mu_gradient;
    // Like torch.clamp, this stops the gradient above the limit and for a NaN.
    logvar[i] = !moments.clipped || logvar[i] <= moments.logvar_max ? logvar_gradient : C(0);
  }
}

// Writes the gradients of one vector of elements.
template <class T, bool HAS_KL, class C, int V>
__device__ __forceinline__ void write_gradients(const PooledBackward<C>& p, const KlGradient<C>& kl, unsigned row,
                                                typename Vectors<T>::Index e, const ChannelGradient<C> (&g)[V],
                                                C& squares) {
  using M = Vectors<T>;
  C mu[V] = {}, logvar[V];
  M::load(p.moments.logvar, row, e, logvar);
  if constexpr (HAS_KL) M::load(p.moments.mu, row, e, mu);
  differentiate<T, HAS_KL>(p, kl, g, mu, logvar, squares);
  M::store(p.grad_mu, row, e, mu);
  M::store(p.grad_logvar, row, e, logvar);
}

// Returns the thread's sum of scaled squares.
template <class T, bool HAS_KL, class C>
__device__ __forceinline__ C write_block(const PooledBackward<C>& p, const Chunks& plan, const KlGradient<C>& kl,
                                         unsigned row, unsigned block, ChannelGradient<C>* channels) {
  using Index = typename Vectors<T>::Index;
  constexpr int V = Vectors<T>::V;
  const Index locations = static_cast<Index>(plan.locations);
  const Index begin = static_cast<Index>(block) * plan.step,
              end = min(begin + plan.step, static_cast<Index>(plan.size));
  const Index first = plan.locations_divisor.quotient(begin);
  const unsigned count = static_cast<unsigned>(plan.locations_divisor.quotient(end - 1) - first) + 1;
  const C share = 1 / static_cast<C>(plan.locations);
  if (threadIdx.x < count)
    channels[threadIdx.x] = channel_gradient(p, share, row, static_cast<unsigned>(first) + threadIdx.x);
  __syncthreads();
  C squares = 0;
#pragma unroll 1
  for (Index e = begin + threadIdx.x * V; e < end; e += BLOCK * V) {
    // A vector lies in at most two channels: channels of dense rows are at least as long.
    const Index channel = plan.locations_divisor.quotient(e);
    const int left = static_cast<int>(min((channel + 1) * locations - e, Index{V}));
    const unsigned within = static_cast<unsigned>(channel - first);
    const ChannelGradient<C> here = channels[within], next = channels[min(within + 1, count - 1)];
    ChannelGradient<C> g[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      g[i].mu = i == 0 || i < left ? here.mu : next.mu;
      g[i].std = i == 0 || i < left ? here.std : next.std;
      g[i].noise = i == 0 || i < left ? here.noise : next.noise;
      g[i].root = i == 0 || i < left ? here.root : next.root;
    }
    write_gradients<T, HAS_KL>(p, kl, row, e, g, squares);
  }
  return squares;
}

template <class T, bool HAS_KL, class C>
__device__ __forceinline__ C write_block(const PooledBackward<C>& p, const Columns& plan, const KlGradient<C>& kl,
                                         unsigned row, unsigned block, ChannelGradient<C>* channels) {
  using Index = typename Vectors<T>::Index;
  constexpr int V = Vectors<T>::V;
  const unsigned lanes = 1u << plan.log2_lanes, lane = threadIdx.x & (lanes - 1), first = plan.first_channel(block, V);
  const C share = 1 / static_cast<C>(plan.locations);
  // Channel i of lane x is at i * lanes + x, so that lanes read side by side.
  const unsigned mine = first + lane * V + (threadIdx.x >> plan.log2_lanes);
  if (threadIdx.x < lanes * V && mine < plan.channels) channels[threadIdx.x] = channel_gradient(p, share, row, mine);
  __syncthreads();
  C squares = 0;
  const unsigned channel = first + lane * V;
  if (channel >= plan.channels) return squares;
  ChannelGradient<C> g[V];
#pragma unroll
  for (int i = 0; i < V; ++i) g[i] = channels[i * lanes + lane];
  const int64_t end = plan.end(block);
#pragma unroll 1
  for (int64_t l = plan.begin(block) + (threadIdx.x >> plan.log2_lanes); l < end; l += BLOCK >> plan.log2_lanes)
    write_gradients<T, HAS_KL>(p, kl, row, static_cast<Index>(l) * plan.channels + channel, g, squares);
  return squares;
}

template <class C, class Plan>
struct PlannedBackward {
  PooledBackward<C> p;
  Plan plan;
};

template <class T, class Plan>
__device__ __forceinline__ void write_all(const PlannedBackward<typename Access<T>::C, Plan>& planned) {
  using C = typename Access<T>::C;
  const PooledBackward<C>& p = planned.p;
  const Plan& plan = planned.plan;
  UDML_SHARED(ChannelGradient<C>, channels, BLOCK);
  for_each_block(plan.rows, plan.across, [&](unsigned row, unsigned block) {
    C squares = 0;
    if (p.kl.data != nullptr) {
      const KlGradient<C> kl(p.kl.at(row), p.moments.prior[int64_t{row} * p.moments.prior_step]);
      squares = write_block<T, true>(p, plan, kl, row, block, channels);
    } else {
      write_block<T, false>(p, plan, KlGradient<C>(), row, block, channels);
    }
    if (p.partial != nullptr) {
      squares = sum_over_lanes(squares);
      if (threadIdx.x % 32 == 0)
        p.partial[(int64_t{row} * plan.across + block) * (BLOCK / 32) + threadIdx.x / 32] = squares;
    }
    __syncthreads();
  });
}

template <class T, class Plan>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(2))
    reparameterize_pooled_backward_kernel(PlannedBackward<typename Access<T>::C, Plan> p) {
  write_all<T, Plan>(p);
}

// For several calls.
template <class T, class Plan>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(2)) reparameterize_pooled_backward_kernel_together(
    const __grid_constant__ Together<PlannedBackward<typename Access<T>::C, Plan>> all) {
  write_all<T, Plan>(all.mine());
}

template <class T, class Plan>
static void pooled_backward(PooledBackward<typename Access<T>::C>& p, const Tensor& mu, Tensor& grad_prior,
                            const OnDevice& device) {
  using C = typename Access<T>::C;
  const Plan plan(mu.size(0), mu.size(1), row_size_of(mu, 2), Vectors<T>::V);
  const bool needs_prior = grad_prior.numel() > 0 && p.kl.data != nullptr;
  const Tensor partial =
      allocate({needs_prior ? mu.size(0) : 0, int64_t{plan.across} * (BLOCK / 32)}, scalar_type_of<C>, mu);
  p.partial = needs_prior ? results_of<C>(partial) : nullptr;
  void (*together)(Together<PlannedBackward<C, Plan>>) = nullptr;
  if constexpr (Access<T>::DENSE) together = reparameterize_pooled_backward_kernel_together<T, Plan>;
  launch("reparameterize_pooled_backward_kernel", reparameterize_pooled_backward_kernel<T, Plan>, together, device,
         plan.work(), PlannedBackward<C, Plan>{p, plan});
  if (needs_prior) prior_gradient<C>(partial, p.kl, p.moments, row_size_of(mu), grad_prior, device);
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_pooled_backward(OptionalTensor grad_z, OptionalTensor grad_std,
                                                                  OptionalTensor grad_kl, Tensor spread, Tensor mu,
                                                                  Tensor logvar, Tensor prior_var,
                                                                  std::optional<double> std_max, bool sample,
                                                                  OptionalTensor seed, int64_t stream,
                                                                  OptionalTensor sample_ids, bool needs_prior) {
  expect_moments(mu, logvar, prior_var);
  const std::vector<int64_t> pooled{mu.size(0), mu.size(1)};
  expect_sample_gradients(mu, pooled, grad_z, grad_std, grad_kl);
  expect(shape_of(spread) == pooled, "spread: expected (B, C)");
  const OnDevice device(mu);
  const Noise noise = noise_of(sample ? seed : std::nullopt, stream, sample_ids, mu.size(0));
  const Maps maps(mu, logvar);
  const Tensor grad_mu = allocate_map(mu, maps.channels_last), grad_logvar = allocate_map(mu, maps.channels_last);
  Tensor grad_prior = needs_prior ? allocate_like(prior_var) : empty_gradient(prior_var.scalar_type(), mu);
  if (mu.numel() == 0 || !grad_kl) torch::stable::zero_(grad_prior);
  if (mu.numel() == 0) return {grad_mu, grad_logvar, grad_prior};
  const Input z_rows(grad_z);
  const int64_t size = row_size_of(mu);
  const bool whole = row_size_of(mu, 2) >= 16 / static_cast<int64_t>(mu.element_size());
  with_storage(mu.scalar_type(), maps.dense && (maps.columns || whole), [&](auto storage) {
    using T = decltype(storage);
    using C = typename Access<T>::C;
    PooledBackward<C> p{z_rows.rows(),
                        matrix_of<C>(grad_std),
                        matrix_of<C>(grad_kl),
                        matrix_of<C>(spread),
                        moments_of<C>(maps.mu, maps.logvar, prior_var, std_max),
                        noise,
                        results(grad_mu, size),
                        results(grad_logvar, size),
                        nullptr,
                        grad_z && noise.seed != nullptr,
                        grad_std || (grad_z && noise.seed != nullptr)};
    const auto run = maps.columns ? pooled_backward<T, Columns> : pooled_backward<T, Chunks>;
    run(p, mu, grad_prior, device);
  });
  return {grad_mu, grad_logvar, grad_prior};
}

}  // namespace udml

UDML_REGISTER(reparameterize_pooled_backward)
