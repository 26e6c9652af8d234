// Weights per sample: the kernels that make them, that fuse features by them, and those of their gradients.
#pragma once

#include "fused.h"

namespace udml {

// ---- The weights.

template <class C>
__global__ void __launch_bounds__(BLOCK) fusion_weights_kernel(Weighting<C> weighting, C* weights) {
  constexpr int PER_WARP = 32 / MAX_MODALITIES;
  for_each_by_warp((weighting.rows + PER_WARP - 1) / PER_WARP, [&](int64_t i) {
    const int m = static_cast<int>(threadIdx.x % MAX_MODALITIES);
    const int64_t row = i * PER_WARP + threadIdx.x % 32 / MAX_MODALITIES;
    const Weighed<C> at = weigh_by_lanes(weighting, row, row < weighting.rows);
    if (row < weighting.rows && m < weighting.modalities) weights[row * weighting.modalities + m] = at.weight;
  });
}

// Sums of products that warps have left: `entries` to a row, of modality m [first[m], first[m + 1]).
template <class C>
struct Dots {
  const C* partial = nullptr;
  int64_t entries = 0;
  int64_t first[MAX_MODALITIES + 1] = {};
};

// A warp to a row, both halves of it alike. by_alpha[row * row_stride + m * stride] gets dL/dalpha of the row.
template <class C, class A>
__global__ void __launch_bounds__(BLOCK)
    fusion_weights_backward_kernel(Weighting<C> weighting, Entries<C> grad, Dots<C> dots, C* grad_s, A* by_alpha,
                                   int64_t row_stride, int64_t stride) {
  for_each_by_warp(weighting.rows, [&](int64_t row) {
    const int m = static_cast<int>(threadIdx.x % MAX_MODALITIES);
    const Weighed<C> at = weigh_by_lanes(weighting, row, true);
    // In double: of the sums their differences count, which may be a thousandth of them.
    double by_weight = at.present && grad.data != nullptr ? static_cast<double>(grad.at(row, m, 0)) : 0;
    if (dots.partial != nullptr) {
#pragma unroll 1
      for (int j = 0; j < weighting.modalities; ++j) {
        const C* entry = dots.partial + row * dots.entries + dots.first[j];
        const double dot =
            sum_by_lanes(dots.first[j + 1] - dots.first[j], [&](int64_t i) { return static_cast<double>(entry[i]); });
        if (j == m && at.present) by_weight += dot;
      }
    }
    // All lanes call what follows, present or not.
    const C top = maximum_over_modalities(at.share);
    const bool largest = at.present && at.share == top;
    const double shift = finite_or_zero(maximum_over_modalities(largest ? by_weight : -static_cast<double>(INFINITY)));
    // A modality's weight is constant where no other is present, even if its gradient is no number.
    by_weight = at.alone || !at.present ? 0 : by_weight - shift;
    const bool huge = __any_sync(0xffffffffu, fabs(by_weight) >= HUGE_GRADIENT) != 0;
    const C relative = static_cast<C>(huge ? by_weight / (1 << MISSING) : by_weight);
    const C mean = sum_over_modalities(at.present ? at.share * relative : C(0));
    const TermGradient<C> gradient = term_gradient(weighting, at.term, at.weight, relative, mean, huge ? C(MISSING) : C(0));
    if (threadIdx.x % 32 >= static_cast<unsigned>(weighting.modalities)) return;
    grad_s[row * weighting.modalities + m] = at.present ? gradient.by_s : C(0);
    if (by_alpha != nullptr) by_alpha[row * row_stride + m * stride] = at.present ? gradient.by_alpha : C(0);
  });
}

// ---- The features.

// The factors of the rows of a group of tiles, 16 to a row; the weights are written where they are not null.
template <class C>
__device__ __forceinline__ void weigh_group(const Weighting<C>& weighting, const Tiles& tiles, unsigned group,
                                            bool residual, C* factors, C* weights) {
  const int m = static_cast<int>(threadIdx.x % MAX_MODALITIES);
  const unsigned rows = BLOCK >> tiles.team_bits;
#pragma unroll 1
  for (unsigned begin = 0; begin < rows; begin += BLOCK / MAX_MODALITIES) {
    const unsigned slot = begin + threadIdx.x / MAX_MODALITIES;
    const int64_t row = static_cast<int64_t>(group) * rows + slot;
    // Warps without a row are done.
    if (begin + threadIdx.x / 32 * 2 >= rows) break;
    const bool exists = slot < rows && row < tiles.rows;
    const Weighed<C> at = weigh_by_lanes(weighting, row, exists);
    if (!exists) continue;
    factors[slot * MAX_MODALITIES + m] = factor_of(at.weight, at.present, residual);
    if (weights != nullptr && m < weighting.modalities) weights[row * weighting.modalities + m] = at.weight;
  }
}

// sum += features * factor, where the modality is there.
template <class T>
__device__ __forceinline__ void add_modality(const Fusion& fusion, const Share& share, int m,
                                             const typename Access<T>::C* factors,
                                             typename Access<T>::C (&sum)[Access<T>::WIDTH]) {
  using A = Access<T>;
  const typename A::C factor = factors[m];
  if (is_absent(factor)) return;
  typename A::C x[A::WIDTH];
  A::read(fusion.of[m].feature, share.at.row, share.at.start, share.at.count, x);
#pragma unroll
  for (int i = 0; i < A::WIDTH; ++i) sum[i] = multiply_add(x[i], factor, sum[i]);
}

// Four blocks to a multiprocessor: for five, the loads of a thread would wait for each other.
template <class T>
__global__ void __launch_bounds__(BLOCK, 4)
    weighted_fusion_kernel(const Fusion fusion, Weighting<typename Access<T>::C> weighting, Tiles tiles, bool residual,
                           typename Access<T>::C* weights) {
  using A = Access<T>;
  using C = typename A::C;
  UDML_SHARED(C, factors, BLOCK * MAX_MODALITIES);
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y) {
    weigh_group(weighting, tiles, group, residual, factors, blockIdx.x == 0 ? weights : nullptr);
    __syncthreads();
#pragma unroll 1
    for (unsigned tile = blockIdx.x; tile < fusion.across; tile += gridDim.x) {
      const Share share = share_of<A::WIDTH>(fusion, tiles, group, tile);
      if (share.at.count == 0) continue;
      const C* factor = factors + (threadIdx.x >> tiles.team_bits) * MAX_MODALITIES;
      C sum[A::WIDTH] = {};
      add_modality<T>(fusion, share, share.begin, factor, sum);
#pragma unroll 1
      for (int m = share.begin + 1; m < share.end; ++m) add_modality<T>(fusion, share, m, factor, sum);
      A::write(fusion.of[share.begin].result, share.at.row, share.at.start, share.at.count, sum);
    }
    __syncthreads();
  }
}

// grad_feature = grad * factor; the sums of grad * feature of each warp are left as entries.
template <class T>
__global__ void __launch_bounds__(BLOCK)
    weighted_fusion_backward_kernel(const Fusion fusion, Weighting<typename Access<T>::C> weighting, Tiles tiles,
                                    bool residual, int64_t entries, typename Access<T>::C* partial) {
  using A = Access<T>;
  using C = typename A::C;
  UDML_SHARED(C, factors, BLOCK * MAX_MODALITIES);
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y) {
    weigh_group<C>(weighting, tiles, group, residual, factors, nullptr);
    __syncthreads();
#pragma unroll 1
    for (unsigned tile = blockIdx.x; tile < fusion.across; tile += gridDim.x) {
      const Share share = share_of<A::WIDTH>(fusion, tiles, group, tile);
      const Place& at = share.at;
      const C* factor = factors + (threadIdx.x >> tiles.team_bits) * MAX_MODALITIES;
      C grad[A::WIDTH] = {};
      if (at.count > 0) A::read(fusion.of[share.begin].grad, at.row, at.start, at.count, grad);
#pragma unroll 1
      for (int m = share.begin; m < share.end; ++m) {
        C dot = 0;
        if (at.count > 0) {
          C x[A::WIDTH] = {};
          if (!is_absent(factor[m])) {
            A::read(fusion.of[m].feature, at.row, at.start, at.count, x);
#pragma unroll
            for (int i = 0; i < A::WIDTH; ++i) {
              dot = multiply_add(grad[i], x[i], dot);
              x[i] = grad[i] * factor[m];
            }
          }
          A::write(fusion.of[m].result, at.row, at.start, at.count, x);
        }
        dot = sum_over_lanes(dot, tiles.team);
        if (!at.exists || !leaves_entry(tiles)) continue;
        const unsigned entry =
            ((fusion.of[m].first + at.tile) << (max(tiles.team_bits, 5u) - 5)) + (threadIdx.x & (tiles.team - 1)) / 32;
        partial[at.row * entries + entry] = dot;
      }
    }
    __syncthreads();
  }
}

}  // namespace udml
