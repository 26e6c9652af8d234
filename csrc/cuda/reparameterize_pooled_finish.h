// The second kernel of reparameterize_pooled: it adds the parts of each channel, draws one normal number a channel, and
// computes the KL divergences.
#pragma once

#include "reparameterize_pooled.h"

namespace udml {

// The place of sum `which` of part `part` of a channel among all partial sums.
template <class Plan>
__device__ __forceinline__ int64_t sum_index(const Plan& plan, int which, unsigned row, unsigned part,
                                             unsigned channel) {
  return ((int64_t{which} * plan.rows + row) * plan.parts + part) * plan.channels + channel;
}

// What the second kernel needs to know of the first one. Element l of a channel is at channel * channel_step +
// l * location_step. `share` is 1 / locations.
struct Parts {
  int64_t locations, channel_step, location_step;
  double share;
  unsigned rows, channels, parts, log2_lanes, across, pairs;

  template <class Plan>
  __host__ Parts(const Plan& plan, bool columns)
      : locations(plan.locations),
        channel_step(columns ? 1 : plan.locations),
        location_step(columns ? plan.channels : 1),
        share(1 / static_cast<double>(plan.locations)),
        rows(plan.rows),
        channels(plan.channels),
        parts(plan.parts),
        log2_lanes(0),
        pairs(Tiles::counted(int64_t{plan.across} * (BLOCK / 32))) {
    while (log2_lanes < 5 && 4u << log2_lanes < parts) ++log2_lanes;
    const unsigned groups = BLOCK >> log2_lanes;
    across = (channels + groups - 1) / groups;
  }
  Work work() const { return {across, rows, BLOCK}; }
};

// Where a float32 sum of squares has overflowed or lost digits, the lanes of the warp add the channel's squares again,
// in double.
template <class C>
__device__ __forceinline__ void repair(const Moments<C>& moments, const Parts& parts, unsigned row, unsigned channel,
                                       bool exists, double& squares) {
  if constexpr (sizeof(C) == 8) return;
  const bool in_range = squares >= 1e-30 && squares <= 1e30;
#pragma unroll 1
  for (unsigned left = __ballot_sync(0xffffffffu, exists && !in_range), owner = 0; left != 0; left ^= 1u << owner) {
    owner = 31 - __clz(static_cast<int>(left));
    const int64_t begin = __shfl_sync(0xffffffffu, channel, static_cast<int>(owner)) * parts.channel_step;
    double sum = 0;
#pragma unroll 1
    for (int64_t l = threadIdx.x % 32; l < parts.locations; l += 32) {
      C logvar = at<C>(moments.logvar, row, begin + l * parts.location_step);
      const double std = static_cast<double>(moments.template std_of<C, true>(logvar));
      sum += std * std;
    }
    sum = sum_over_lanes(sum);
    if (threadIdx.x % 32 == owner) squares = sum;
  }
}

// The lanes of a warp add up the pairs of a sample's sums and compute its KL divergence.
template <class C>
__device__ __forceinline__ void finish_divergence(const Moments<C>& moments, const Parts& parts, unsigned row,
                                                  const C* divergence, C* kl) {
  double terms[2] = {};
  for (unsigned i = threadIdx.x % 32; i < parts.pairs; i += 32)
    for (int n = 0; n < 2; ++n) terms[n] += static_cast<double>(divergence[(int64_t{row} * parts.pairs + i) * 2 + n]);
  sum_over_lanes(terms, 32);
  const double size = static_cast<double>(parts.locations) * parts.channels;
  if (threadIdx.x % 32 == 0) kl[row] = divergence_of<C>(terms, size, moments.prior[int64_t{row} * moments.prior_step]);
}

// The arguments of the second kernel.
template <class C>
struct PoolFinish {
  Moments<C> moments;
  Parts parts;
  Noise noise;
  const C *partial, *divergence;
  Results z;
  C *std, *kl, *spread;
};

// 2^log2_lanes lanes of a warp share the parts of a channel. The first warp of a row also computes its KL divergence.
template <class C>
__device__ __forceinline__ void finish(const PoolFinish<C>& p) {
  const Moments<C>& moments = p.moments;
  const Parts& parts = p.parts;
  const Noise& noise = p.noise;
  for_each_block(parts.rows, parts.across, [&](unsigned row, unsigned block) {
    if (block == 0 && threadIdx.x < 32) finish_divergence(moments, parts, row, p.divergence, p.kl);
    const unsigned lanes = 1u << parts.log2_lanes, lane = threadIdx.x & (lanes - 1);
    const unsigned channel = block * (BLOCK >> parts.log2_lanes) + (threadIdx.x >> parts.log2_lanes);
    double sums[3] = {};
    if (channel < parts.channels)
      for (unsigned part = lane; part < parts.parts; part += lanes)
        for (int i = 0; i < 3; ++i) sums[i] += static_cast<double>(p.partial[sum_index(parts, i, row, part, channel)]);
    if (lanes > 1) sum_over_lanes(sums, lanes);
    const bool writes = channel < parts.channels && lane == 0;
    repair(moments, parts, row, channel, writes, sums[2]);
    if (writes) {
      const int64_t i = int64_t{row} * parts.channels + channel;
      const C deviation = static_cast<C>(sqrt(sums[2]) * parts.share);
      C value = static_cast<C>(sums[0] * parts.share);
      if (noise.seed != nullptr) value = multiply_add(deviation, normal_of<C>(noise, row, channel), value);
      store_as(p.z.data, p.z.dtype, i, value);
      p.std[i] = static_cast<C>(sums[1] * parts.share), p.spread[i] = deviation;
    }
  });
}

template <class C>
__global__ void __launch_bounds__(BLOCK) pool_finish_kernel(PoolFinish<C> p) {
  finish(p);
}

// For several calls.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    pool_finish_kernel_together(const __grid_constant__ Together<PoolFinish<C>> all) {
  finish(all.mine());
}

}  // namespace udml
