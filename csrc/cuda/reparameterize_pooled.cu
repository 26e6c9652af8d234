// reparameterize_pooled reads mu and logvar once. The first kernel sums mu, std and std^2 over parts of the channels,
// and the KL divergence over parts of the samples; the second one adds the parts and draws one normal number a channel.
#include "reparameterize_pooled_finish.h"

namespace udml {

// The sums over a part of a channel.
template <class C>
struct Sums {
  C mu = 0, std = 0, squares = 0;
};

// Adds one element to the sums of its channel, and to the sample's scaled squares and logvar.
template <class T, bool CLIPPED, class C>
__device__ __forceinline__ void add(const Moments<C>& moments, C scale_down, bool exists, C mu, C logvar, Sums<C>& sums,
                                    C (&divergence)[2]) {
  C std = moments.template std_of<T, CLIPPED>(logvar);
  mu = exists ? mu : C(0), std = exists ? std : C(0), logvar = exists ? logvar : C(0);
  sums.mu += mu;
  sums.std += std;
  sums.squares = multiply_add(std, std, sums.squares);
  const C scaled_std = std * scale_down, scaled_mu = mu * scale_down;
  divergence[0] = multiply_add(scaled_std, scaled_std, multiply_add(scaled_mu, scaled_mu, divergence[0]));
  divergence[1] += logvar;
}

// Adds a thread's vectors begin, begin + lanes, ... before `end`. Of their elements, those in [first, last) are the
// channel's; without MASKED all are.
template <class T, bool CLIPPED, bool MASKED, class C, class Index>
__device__ __forceinline__ void add_vectors(const Moments<C>& moments, C scale_down, unsigned row, Index begin,
                                            Index end, unsigned lanes, Index first, Index last, Sums<C>& sums,
                                            C (&divergence)[2]) {
  using M = Vectors<T>;
  constexpr int V = M::V;
  for (Index v = begin; v < end; v += lanes) {
    C mu[V], logvar[V];
    M::load(moments.mu, row, v * V, mu);
    M::load(moments.logvar, row, v * V, logvar);
    const int low = static_cast<int>(first - v * V), high = static_cast<int>(last - v * V);
#pragma unroll
    for (int i = 0; i < V; ++i)
      add<T, CLIPPED>(moments, scale_down, !MASKED || (i >= low && i < high), mu[i], logvar[i], sums, divergence);
  }
}

template <class T, class C>
__device__ __forceinline__ void add_block(const Moments<C>& moments, const Segments& plan, unsigned row, unsigned block,
                                          C scale_down, C* partial, C (&divergence)[2]) {
  using Index = typename Vectors<T>::Index;
  constexpr int V = Vectors<T>::V;
  const unsigned lanes = 1u << plan.log2_lanes, lane = threadIdx.x & (lanes - 1), groups = BLOCK >> plan.log2_lanes;
  const Index length = static_cast<Index>(plan.locations);
  const bool masked = V > 1 && length % V != 0;
#pragma unroll 1
  for (unsigned round = 0; round < plan.rounds; ++round) {
    const unsigned item = (block * plan.rounds + round) * groups + (threadIdx.x >> plan.log2_lanes);
    const unsigned channel = plan.parts_divisor.quotient(item), part = item - channel * plan.parts;
    const bool exists = channel < plan.channels;
    const Index first = channel * length, last = first + length;
    const Index begin = first / V + part * static_cast<Index>(plan.step);
    const Index end = exists ? min(begin + plan.step, (last + (V - 1)) / V) : 0;
    Sums<C> sums;
    if (moments.clipped)
      add_vectors<T, true, (V > 1)>(moments, scale_down, row, begin + lane, end, lanes, first, last, sums, divergence);
    else if (masked)
      add_vectors<T, false, (V > 1)>(moments, scale_down, row, begin + lane, end, lanes, first, last, sums, divergence);
    else
      add_vectors<T, false, false>(moments, scale_down, row, begin + lane, end, lanes, first, last, sums, divergence);
    C three[3] = {sums.mu, sums.std, sums.squares};
    sum_over_lanes(three, lanes);
    if (exists && lane == 0)
      for (int i = 0; i < 3; ++i) partial[sum_index(plan, i, row, part, channel)] = three[i];
  }
}

// Adds a thread's locations of V channels.
template <class T, bool CLIPPED, class C, int V>
__device__ __forceinline__ void add_locations(const Moments<C>& moments, const Columns& plan, C scale_down,
                                              unsigned row, unsigned block, unsigned channel, Sums<C> (&sums)[V],
                                              C (&divergence)[2]) {
  using M = Vectors<T>;
  using Index = typename M::Index;
  const int64_t end = plan.end(block);
  // The vectors of two locations are loaded together.
  constexpr int TOGETHER = V == 1 ? 1 : 2;
#pragma unroll TOGETHER
  for (int64_t l = plan.begin(block) + (threadIdx.x >> plan.log2_lanes); l < end; l += BLOCK >> plan.log2_lanes) {
    const Index e = static_cast<Index>(l) * plan.channels + channel;
    C mu[V], logvar[V];
    M::load(moments.mu, row, e, mu);
    M::load(moments.logvar, row, e, logvar);
#pragma unroll
    for (int i = 0; i < V; ++i) add<T, CLIPPED>(moments, scale_down, true, mu[i], logvar[i], sums[i], divergence);
  }
}

template <class T, class C>
__device__ __forceinline__ void add_block(const Moments<C>& moments, const Columns& plan, unsigned row, unsigned block,
                                          C scale_down, C* partial, C (&divergence)[2]) {
  // Threads that read side by side read different banks.
  constexpr int V = Vectors<T>::V, PITCH = BLOCK + 32 / V;
  UDML_SHARED(C, staged, 3 * V * PITCH);
  const unsigned lanes = 1u << plan.log2_lanes, first = plan.first_channel(block, V);
  const unsigned channel = first + (threadIdx.x & (lanes - 1)) * V;
  Sums<C> sums[V];
  if (channel < plan.channels && moments.clipped)
    add_locations<T, true>(moments, plan, scale_down, row, block, channel, sums, divergence);
  else if (channel < plan.channels)
    add_locations<T, false>(moments, plan, scale_down, row, block, channel, sums, divergence);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    staged[i * PITCH + threadIdx.x] = sums[i].mu;
    staged[(V + i) * PITCH + threadIdx.x] = sums[i].std;
    staged[(2 * V + i) * PITCH + threadIdx.x] = sums[i].squares;
  }
  __syncthreads();
  for (unsigned n = threadIdx.x; n < 3 * V * lanes; n += BLOCK) {
    const unsigned which = (n / V) >> plan.log2_lanes, within = n & (V * lanes - 1);
    if (first + within >= plan.channels) continue;
    const C* column = staged + (which * V + within % V) * PITCH + within / V;
    C sum = 0;
    for (unsigned thread = 0; thread < BLOCK; thread += lanes) sum += column[thread];
    partial[sum_index(plan, static_cast<int>(which), row, block % plan.parts, first + within)] = sum;
  }
  __syncthreads();
}

// The arguments of the first kernel.
template <class C, class Plan>
struct Pooling {
  Moments<C> moments;
  Plan plan;
  C *partial, *divergence;
};

// Each warp stores one pair of the sample's sums for the KL divergence in `divergence`.
template <class T, class Plan>
__device__ __forceinline__ void add_up(const Pooling<typename Access<T>::C, Plan>& p) {
  using C = typename Access<T>::C;
  const Moments<C>& moments = p.moments;
  const Plan& plan = p.plan;
  for_each_block(plan.rows, plan.across, [&](unsigned row, unsigned block) {
    C terms[2] = {};
    const C scale_down = SquareScale<C>(moments.prior[int64_t{row} * moments.prior_step]).scale_down();
    add_block<T>(moments, plan, row, block, scale_down, p.partial, terms);
    sum_over_lanes(terms, 32);
    if (threadIdx.x % 32 != 0) return;
    C* entry = p.divergence + ((int64_t{row} * plan.across + block) * (BLOCK / 32) + threadIdx.x / 32) * 2;
    entry[0] = terms[0], entry[1] = terms[1];
  });
}

template <class T, class Plan>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(3))
    reparameterize_pooled_kernel(Pooling<typename Access<T>::C, Plan> p) {
  add_up<T, Plan>(p);
}

// For several calls.
template <class T, class Plan>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(3))
    reparameterize_pooled_kernel_together(const __grid_constant__ Together<Pooling<typename Access<T>::C, Plan>> all) {
  add_up<T, Plan>(all.mine());
}

template <class T, class Plan>
static void pool(const Moments<typename Access<T>::C>& moments, bool columns, const Noise& noise, const Tensor& mu,
                 const Tensor& z, const Tensor& std, const Tensor& kl, const Tensor& spread, const OnDevice& device) {
  using C = typename Access<T>::C;
  const Plan plan(mu.size(0), mu.size(1), row_size_of(mu, 2), Vectors<T>::V);
  const Parts parts(plan, columns);
  const Tensor partial = allocate({3, mu.size(0), int64_t{plan.parts}, mu.size(1)}, scalar_type_of<C>, mu);
  const Tensor divergence = allocate({mu.size(0), int64_t{parts.pairs}, 2}, scalar_type_of<C>, mu);
  void (*together)(Together<Pooling<C, Plan>>) = nullptr;
  void (*finish_together)(Together<PoolFinish<C>>) = nullptr;
  if constexpr (Access<T>::DENSE) together = reparameterize_pooled_kernel_together<T, Plan>;
  if constexpr (sizeof(C) == 4) finish_together = pool_finish_kernel_together<C>;
  launch("reparameterize_pooled_kernel", reparameterize_pooled_kernel<T, Plan>, together, device, plan.work(),
         Pooling<C, Plan>{moments, plan, results_of<C>(partial), results_of<C>(divergence)});
  launch("pool_finish_kernel", pool_finish_kernel<C>, finish_together, device, parts.work(),
         PoolFinish<C>{moments, parts, noise, results_of<C>(partial), results_of<C>(divergence), results(z, mu.size(1)),
                       results_of<C>(std), results_of<C>(kl), results_of<C>(spread)});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> reparameterize_pooled(Tensor mu, Tensor logvar, Tensor prior_var,
                                                                 std::optional<double> std_max, bool sample,
                                                                 OptionalTensor seed, int64_t stream,
                                                                 OptionalTensor sample_ids) {
  expect_moments(mu, logvar, prior_var);
  expect(!sample || seed.has_value(), "seed: expected a tensor");
  const OnDevice device(mu);
  const ScalarType dtype = compute_type(mu.scalar_type());
  const Noise noise = noise_of(sample ? seed : std::nullopt, stream, sample_ids, mu.size(0));
  const std::vector<int64_t> channels{mu.size(0), mu.size(1)};
  Tensor z = allocate(channels, mu.scalar_type(), mu), std = allocate(channels, dtype, mu);
  Tensor kl = allocate({mu.size(0)}, dtype, mu), spread = allocate(channels, dtype, mu);
  if (mu.numel() == 0) {
    // The means over zero locations are NaN, and the sum over zero elements is 0.
    for (Tensor* mean : {&z, &std, &spread}) torch::stable::fill_(*mean, NAN);
    torch::stable::zero_(kl);
    return {z, std, kl, spread};
  }
  const Maps maps(mu, logvar);
  with_storage(mu.scalar_type(), maps.dense, [&](auto storage) {
    using T = decltype(storage);
    const auto moments = moments_of<typename Access<T>::C>(maps.mu, maps.logvar, prior_var, std_max);
    const auto run = maps.columns ? pool<T, Columns> : pool<T, Segments>;
    run(moments, maps.columns, noise, mu, z, std, kl, spread, device);
  });
  return {z, std, kl, spread};
}

}  // namespace udml

UDML_REGISTER(reparameterize_pooled)
