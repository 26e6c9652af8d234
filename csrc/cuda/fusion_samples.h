// Kernels for weights per sample: the weights, the fusion, and the gradients of both.
#pragma once

#include "fused.h"

namespace udml {

// ---- The weights.

// Calls body(row, modality) for every row, and for rows and modalities that do not exist. All lanes of a warp call it
// together.
template <class C, class Body>
__device__ __forceinline__ void for_each_row(const Weighting<C>& weighting, const Body& body) {
  const unsigned lanes = weighting.lanes(), rows_per_warp = 32 / lanes;
  for_each_warp_item((weighting.rows + rows_per_warp - 1) / rows_per_warp, [&](int64_t item) {
    body(item * rows_per_warp + threadIdx.x % 32 / lanes, static_cast<int>(threadIdx.x % lanes));
  });
}

template <class C>
__global__ void __launch_bounds__(BLOCK) fusion_weights_kernel(Weighting<C> weighting, C* weights) {
  for_each_row(weighting, [&](int64_t row, int m) {
    const ModalityWeight<C> at = compute_modality_weight(weighting, row, row < weighting.rows);
    if (row < weighting.rows && m < weighting.modalities) weights[row * weighting.modalities + m] = at.weight;
  });
}

// Partial sums of grad * feature that warps have stored: `entries` per row; those of modality m are [first_partial[m],
// first_partial[m + 1]).
template <class C>
struct Dots {
  const C* partial = nullptr;
  int64_t entries = 0;
  int64_t first_partial[MAX_MODALITIES + 1] = {};
};

// grad_dependency[row * row_stride + m * stride] receives the row's dL/ddependency.
template <class C, class A>
__global__ void __launch_bounds__(BLOCK)
    fusion_weights_backward_kernel(Weighting<C> weighting, Entries<C> grad, Dots<C> dots, C* grad_uncertainty,
                                   A* grad_dependency, int64_t row_stride, int64_t stride) {
  for_each_row(weighting, [&](int64_t row, int m) {
    const unsigned lanes = weighting.lanes();
    const bool exists = row < weighting.rows;
    const ModalityWeight<C> at = compute_modality_weight(weighting, row, exists);
    // The sums are in double, because only their differences matter, which may be a thousandth of the sums. The
    // reference's gradient is 0.
    double weight_gradient = at.present && grad.data != nullptr ? static_cast<double>(grad.at(row, m, 0)) : 0;
    if (dots.partial != nullptr) {
#pragma unroll 1
      for (int j = 0; j < weighting.modalities; ++j) {
        double dot = 0;
        if (exists)
          for (int64_t i = dots.first_partial[j] + m; i < dots.first_partial[j + 1]; i += lanes)
            dot += static_cast<double>(dots.partial[row * dots.entries + i]);
        dot = sum_over_modalities(dot, lanes);
        if (j == m && at.present) weight_gradient += dot;
      }
    }
    // All lanes must call the following functions, whether their modality is present or not.
    const C top = maximum_over_modalities(at.share, lanes);
    const bool largest = at.takes_part() && at.share == top;
    const double shift =
        finite_or_zero(maximum_over_modalities(largest ? weight_gradient : -static_cast<double>(INFINITY), lanes));
    // The gradient of a constant weight is 0 even if the incoming gradient is not finite.
    weight_gradient = weighting.has_constant_weights(at.count) || !at.takes_part() ? 0 : weight_gradient - shift;
    const bool is_huge = maximum_over_modalities(fabs(weight_gradient) >= HUGE_GRADIENT ? 1 : 0, lanes) != 0;
    const C relative = relative_gradient<C>(weight_gradient, is_huge);
    const C mean = sum_over_modalities(at.takes_part() ? at.share * relative : C(0), lanes);
    // The reference's dependency is a mean: each modality present receives an equal part of its gradient.
    const C weight = at.is_reference ? at.weight / at.count : at.weight;
    const Scaled<C> slope = at.present ? weighting.slope(row, m, 0) : Scaled<C>{1, 0};
    const TermGradient<C> gradient =
        term_gradient(weighting, at.term, slope, weight, subtract_mean(relative, mean, at.count),
                      is_huge ? C(MISSING_EXPONENT) : C(0));
    A dependency_gradient = gradient.dependency;
    if (weighting.has_reference && grad_dependency != nullptr)
      dependency_gradient += sum_over_modalities(at.is_reference ? gradient.dependency : C(0), lanes);
    if (!exists || m >= weighting.modalities) return;
    grad_uncertainty[row * weighting.modalities + m] = at.present ? gradient.uncertainty : C(0);
    if (grad_dependency != nullptr)
      grad_dependency[row * row_stride + m * stride] = at.present ? dependency_gradient : A(0);
  });
}

// ---- The features.

// Computes the factors of a block's rows, in MAX_MODALITIES places per row. It also writes the weights if `weights` is
// not null.
template <class C>
__device__ __forceinline__ void compute_group_factors(const Weighting<C>& weighting, const Tiles& tiles, unsigned group,
                                                      bool residual, C* factors, C* weights) {
  const unsigned lanes = weighting.lanes(), rows = BLOCK >> tiles.log2_threads_per_row;
  const int m = static_cast<int>(threadIdx.x % lanes);
#pragma unroll 1
  for (unsigned begin = 0; begin < rows; begin += BLOCK / lanes) {
    const unsigned slot = begin + threadIdx.x / lanes;
    const int64_t row = static_cast<int64_t>(group) * rows + slot;
    // Warps without a row stop.
    if (begin + threadIdx.x / 32 * 32 / lanes >= rows) break;
    const bool exists = slot < rows && row < tiles.rows;
    const ModalityWeight<C> at = compute_modality_weight(weighting, row, exists);
    if (!exists || m >= weighting.modalities) continue;
    factors[slot * MAX_MODALITIES + m] = factor_of(at.weight, at.present, residual);
    if (weights != nullptr) weights[row * weighting.modalities + m] = at.weight;
  }
}

// sum += features * factor, if the modality is present.
template <class T>
__device__ __forceinline__ void add_modality(const Rows& feature, const Place& at, typename Access<T>::C factor,
                                             typename Access<T>::C (&sum)[Access<T>::WIDTH]) {
  using A = Access<T>;
  if (is_absent(factor)) return;
  typename A::C x[A::WIDTH];
  A::read(feature, at, x);
#pragma unroll
  for (int i = 0; i < A::WIDTH; ++i) sum[i] = multiply_add(x[i], factor, sum[i]);
}

// The kernel uses four blocks per multiprocessor. With five, the loads of a thread would wait for each other.
template <class T>
__global__ void __launch_bounds__(BLOCK, 4)
    weighted_fusion_kernel(const Fusion fusion, Weighting<typename Access<T>::C> weighting, Tiles tiles, bool residual,
                           typename Access<T>::C* weights) {
  using A = Access<T>;
  using C = typename A::C;
  UDML_SHARED(C, factors, BLOCK * MAX_MODALITIES);
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y) {
    compute_group_factors(weighting, tiles, group, residual, factors, blockIdx.x == 0 ? weights : nullptr);
    __syncthreads();
#pragma unroll 1
    for (unsigned tile = blockIdx.x; tile < fusion.across; tile += gridDim.x) {
      const FusionTile fusion_tile = fusion_tile_of<A>(fusion, tiles, group, tile);
      const C* factor = factors + (threadIdx.x >> tiles.log2_threads_per_row) * MAX_MODALITIES;
      const int first = fusion_tile.begin;
      if (fusion_tile.at.count == 0) continue;
      per_warp<A>(fusion_tile.at, [&](const Place& at) {
        C sum[A::WIDTH] = {};
        add_modality<T>(fusion.modalities[first].feature, at, factor[first], sum);
#pragma unroll 1
        for (int m = first + 1; m < fusion_tile.end; ++m)
          add_modality<T>(fusion.modalities[m].feature, at, factor[m], sum);
        A::write(fusion.modalities[first].result, at, sum);
      });
    }
    __syncthreads();
  }
}

// grad_feature = grad * factor. Each warp also stores its partial sum of grad * feature.
template <class T>
__global__ void __launch_bounds__(BLOCK)
    weighted_fusion_backward_kernel(const Fusion fusion, Weighting<typename Access<T>::C> weighting, Tiles tiles,
                                    bool residual, int64_t entries, typename Access<T>::C* partial) {
  using A = Access<T>;
  using C = typename A::C;
  UDML_SHARED(C, factors, BLOCK * MAX_MODALITIES);
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y) {
    compute_group_factors<C>(weighting, tiles, group, residual, factors, nullptr);
    __syncthreads();
#pragma unroll 1
    for (unsigned tile = blockIdx.x; tile < fusion.across; tile += gridDim.x) {
      const FusionTile fusion_tile = fusion_tile_of<A>(fusion, tiles, group, tile);
      const C* factor = factors + (threadIdx.x >> tiles.log2_threads_per_row) * MAX_MODALITIES;
      per_warp<A>(fusion_tile.at, [&](const Place& at) {
        C grad[A::WIDTH] = {};
        if (at.count > 0) A::read(fusion.modalities[fusion_tile.begin].grad, at, grad);
#pragma unroll 1
        for (int m = fusion_tile.begin; m < fusion_tile.end; ++m) {
          C dot = 0;
          if (at.count > 0) {
            C x[A::WIDTH] = {};
            if (!is_absent(factor[m])) {
              A::read(fusion.modalities[m].feature, at, x);
#pragma unroll
              for (int i = 0; i < A::WIDTH; ++i) {
                dot = multiply_add(grad[i], x[i], dot);
                x[i] = grad[i] * factor[m];
              }
            }
            A::write(fusion.modalities[m].result, at, x);
          }
          dot = sum_over_lanes(dot, tiles.threads_per_row);
          if (!at.exists || !writes_partial(tiles)) continue;
          const unsigned entry =
              ((fusion.modalities[m].first_tile + at.tile) << (max(tiles.log2_threads_per_row, 5u) - 5)) +
              (threadIdx.x & (tiles.threads_per_row - 1)) / 32;
          partial[at.row * entries + entry] = dot;
        }
      });
    }
    __syncthreads();
  }
}

}  // namespace udml
