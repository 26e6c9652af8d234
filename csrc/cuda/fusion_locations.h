// Kernels for weights per location: the weights, the fusion, and the gradients of both.
#pragma once

#include "fused.h"

namespace udml {

// ---- The weights.

// The kernel also writes the factors if `factors` is not null.
template <class C>
__global__ void __launch_bounds__(BLOCK, 4)
    location_weights_kernel(Weighting<C> weighting, Divisor locations, bool residual, C* weights, C* factors) {
  for_each_thread_item(weighting.rows * weighting.locations, [&](int64_t i) {
    const int64_t row = locations.quotient(i), location = i - row * weighting.locations;
    const int64_t begin = row * weighting.modalities * weighting.locations;
    const C count = share_location(weighting, row, location, weights + begin).count;
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m) {
      const int64_t entry = begin + m * weighting.locations + location;
      const C weight = weighting.weight(weights[entry], count);
      weights[entry] = weight;
      if (factors != nullptr) factors[entry] = factor_of(weight, weighting.has(row, m, location), residual);
    }
  });
}

// Functions of the shares and dL/dw of a location, each a pass over its modalities.
template <class C>
struct LocationGradient {
  const Weighting<C>& weighting;
  const Entries<C>& grad;
  const C *dots, *shares;
  int64_t row, location;
  Position<C> position;

  __device__ __forceinline__ int64_t entry(int m) const {
    return (row * weighting.modalities + m) * weighting.locations + location;
  }
  __device__ __forceinline__ double weight_gradient(int m) const {
    const double incoming = grad.data == nullptr ? 0 : static_cast<double>(grad.at(row, m, location));
    return dots == nullptr ? incoming : incoming + static_cast<double>(dots[entry(m)]);
  }
  // Returns the gradient of the largest share, as in fusion_weights_backward_kernel. Sets is_huge if a gradient
  // relative to it is huge. The gradient of the reference is 0.
  __device__ __forceinline__ double shift(bool& is_huge) const {
    C top = 0;
    double top_gradient = -static_cast<double>(INFINITY);
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m) {
      const C share = shares[entry(m)];
      if (!weighting.has(row, m, location) || !(share >= top)) continue;
      const double g = weight_gradient(m);
      if (share > top || g > top_gradient) top_gradient = g;
      top = share;
    }
    top_gradient = position.reference_share >= top ? 0 : finite_or_zero(top_gradient);
    is_huge = weighting.has_reference && fabs(top_gradient) >= HUGE_GRADIENT;
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m)
      if (weighting.has(row, m, location) && fabs(weight_gradient(m) - top_gradient) >= HUGE_GRADIENT) is_huge = true;
    return top_gradient;
  }
  __device__ __forceinline__ C relative(int m, double shift, bool is_huge) const {
    return relative_gradient<C>(weight_gradient(m) - shift, is_huge);
  }
  __device__ __forceinline__ C mean(double shift, bool is_huge) const {
    C sum = weighting.has_reference ? position.reference_share * relative_gradient<C>(-shift, is_huge) : C(0);
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m)
      if (weighting.has(row, m, location)) sum += shares[entry(m)] * relative(m, shift, is_huge);
    return sum;
  }
  // Returns the part of dL/ddependency of each modality present that comes from the reference, whose dependency is the
  // mean.
  __device__ __forceinline__ C from_reference(double shift, bool is_huge, C mean) const {
    const Term<C> term = reference_term_at(weighting, row, location, position.count);
    const C weight = weighting.weight(position.reference_share, position.count) / position.count;
    return term_gradient(weighting, term, {1, 0}, weight, relative_gradient<C>(-shift, is_huge) - mean,
                         is_huge ? C(MISSING_EXPONENT) : C(0))
        .dependency;
  }
};

// One warp processes a segment of 32 locations of a row. It writes the sum of their dL/ddependency to
// dependency_sums[row * row_stride + m * stride + segment].
template <class C>
__global__ void __launch_bounds__(BLOCK)
    location_weights_backward_kernel(Weighting<C> weighting, Entries<C> grad, const C* dots, C* grad_uncertainty,
                                     double* dependency_sums, Divisor segments, int64_t row_stride, int64_t stride) {
  for_each_warp_item(weighting.rows * segments.value, [&](int64_t i) {
    const int64_t row = segments.quotient(i), segment = i - row * segments.value;
    const int64_t location = segment * 32 + threadIdx.x % 32;
    const bool exists = location < weighting.locations;
    LocationGradient<C> here{weighting, grad, dots, grad_uncertainty, row, location, {}};
    C mean = 0, from_reference = 0;
    double shift = 0;
    bool is_huge = false, is_constant = false;
    if (exists) {
      here.position = share_location(weighting, row, location, grad_uncertainty + here.entry(0) - location);
      is_constant = weighting.has_constant_weights(here.position.count);
      shift = here.shift(is_huge);
      mean = is_constant ? C(0) : here.mean(shift, is_huge);
      if (weighting.has_reference && dependency_sums != nullptr)
        from_reference = here.from_reference(shift, is_huge, mean);
    }
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m) {
      C uncertainty_gradient = 0;
      double dependency_gradient = 0;
      if (exists && weighting.has(row, m, location)) {
        const Term<C> term = weighting.term(row, m, location);
        const C weight = weighting.weight(grad_uncertainty[here.entry(m)], here.position.count);
        const C relative = is_constant ? C(0) : here.relative(m, shift, is_huge);
        const TermGradient<C> gradient =
            term_gradient(weighting, term, weighting.slope(row, m, location), weight,
                          subtract_mean(relative, mean, here.position.count), is_huge ? C(MISSING_EXPONENT) : C(0));
        uncertainty_gradient = gradient.uncertainty;
        dependency_gradient = static_cast<double>(gradient.dependency) + static_cast<double>(from_reference);
      }
      if (exists) grad_uncertainty[here.entry(m)] = uncertainty_gradient;
      if (dependency_sums == nullptr) continue;
      const double sum = sum_over_lanes(dependency_gradient);
      if (threadIdx.x % 32 == 0) dependency_sums[row * row_stride + m * stride + segment] = sum;
    }
  });
}

// ---- The features.

// Returns sum + x * factor, or sum if the modality is absent.
template <class C>
__device__ __forceinline__ C add_scaled(C sum, C x, C factor) {
  return is_absent(factor) ? sum : multiply_add(x, factor, sum);
}

// The same for a thread's elements. Vector j begins at location[j]; after the last location the next channel begins.
template <class A>
__device__ __forceinline__ void add_by_location(const typename A::C* factors,
                                                const typename A::Index (&location)[A::WIDTH / A::VECTOR],
                                                typename A::Index locations, const typename A::C (&x)[A::WIDTH],
                                                typename A::C (&sum)[A::WIDTH]) {
  using Index = typename A::Index;
  if constexpr (A::DENSE) {
    // Groups of four elements lie in one channel.
    if (locations % 4 == 0) {
      Index here = 0;
#pragma unroll
      for (int i = 0; i < A::WIDTH; i += 4) {
        if (i % A::VECTOR == 0) here = location[i / A::VECTOR];
        const float4 four = *reinterpret_cast<const float4*>(factors + here);
        sum[i] = add_scaled(sum[i], x[i], four.x), sum[i + 1] = add_scaled(sum[i + 1], x[i + 1], four.y);
        sum[i + 2] = add_scaled(sum[i + 2], x[i + 2], four.z), sum[i + 3] = add_scaled(sum[i + 3], x[i + 3], four.w);
        if ((here += 4) == locations) here = 0;
      }
      return;
    }
  }
  Index here = 0;
#pragma unroll
  for (int i = 0; i < A::WIDTH; ++i) {
    if (i % A::VECTOR == 0) here = location[i / A::VECTOR];
    sum[i] = add_scaled(sum[i], x[i], factors[here]);
    if (++here == locations) here = 0;
  }
}

template <class T>
__global__ void __launch_bounds__(BLOCK, 3)
    location_fusion_kernel(const Fusion fusion, const typename Access<T>::C* factors, Divisor locations, Tiles tiles) {
  using A = Access<T>;
  using C = typename A::C;
  using Index = typename A::Index;
  const Index count = static_cast<Index>(locations.value);
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y) {
#pragma unroll 1
    for (unsigned tile = blockIdx.x; tile < fusion.across; tile += gridDim.x) {
      const FusionTile fusion_tile = fusion_tile_of<A>(fusion, tiles, group, tile);
      if (fusion_tile.at.count == 0) continue;
      per_warp<A>(fusion_tile.at, [&](const Place& at) {
        Index location[A::WIDTH / A::VECTOR];
#pragma unroll
        for (int j = 0; j < A::WIDTH / A::VECTOR; ++j) {
          const Index start = static_cast<Index>(at.start) + j * at.stride;
          location[j] = start - locations.quotient(start) * count;
        }
        C sum[A::WIDTH] = {};
#pragma unroll 1
        for (int m = fusion_tile.begin; m < fusion_tile.end; ++m) {
          C x[A::WIDTH];
          A::read(fusion.modalities[m].feature, at, x);
          add_by_location<A>(factors + (at.row * fusion.count + m) * locations.value, location, count, x, sum);
        }
        A::write(fusion.modalities[fusion_tile.begin].result, at, sum);
      });
    }
  }
}

// Read and write one element of a row of T or of any dtype and layout.
template <class T>
__device__ __forceinline__ typename Access<T>::C element(const Rows& rows, int64_t row, int64_t e) {
  using C = typename Access<T>::C;
  if constexpr (!Access<T>::DENSE) return at<C>(rows, row, e);
  else return static_cast<C>(reinterpret_cast<const T*>(rows.data)[row * rows.row_stride + e]);
}
template <class T>
__device__ __forceinline__ void put(const Results& out, int64_t row, int64_t e, typename Access<T>::C value) {
  if constexpr (Access<T>::DENSE) reinterpret_cast<T*>(out.data)[row * out.row_size + e] = static_cast<T>(value);
  else store_as(out.data, out.dtype, row * out.row_size + e, value);
}

// Writes grad_feature for every `step`th element from `begin` on, and returns the sum of grad * feature over them.
template <class T>
__device__ __forceinline__ typename Access<T>::C fuse_backward_location(const Modality& modality, int64_t row,
                                                                        int64_t begin, int64_t step,
                                                                        typename Access<T>::C factor) {
  using C = typename Access<T>::C;
  // The loads of a batch come before its stores, which the compiler must assume to write what is loaded next.
  constexpr int BATCH = Access<T>::DENSE ? 8 : 1;
  C sum = 0;
#pragma unroll 1
  for (int64_t e = begin; e < modality.size; e += BATCH * step) {
    C grad[BATCH] = {}, feature[BATCH] = {};
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      if (e + i * step >= modality.size) continue;
      grad[i] = element<T>(modality.grad, row, e + i * step);
      feature[i] = element<T>(modality.feature, row, e + i * step);
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      sum = multiply_add(grad[i], feature[i], sum);
      if (e + i * step < modality.size)
        put<T>(modality.result, row, e + i * step, is_absent(factor) ? 0 : grad[i] * factor);
    }
  }
  return sum;
}

// One block processes 32 locations of a row and modality. Its warps share the channels, and their sums are added in
// order.
template <class T>
__global__ void __launch_bounds__(BLOCK)
    location_fusion_backward_kernel(const Fusion fusion, const typename Access<T>::C* factors, unsigned pairs,
                                    int64_t locations, typename Access<T>::C* dots) {
  using C = typename Access<T>::C;
  constexpr unsigned WARPS = BLOCK / 32;
  UDML_SHARED(C, sums, BLOCK);
#pragma unroll 1
  for (unsigned pair = blockIdx.y; pair < pairs; pair += gridDim.y) {
#pragma unroll 1
    for (int64_t begin = int64_t{blockIdx.x} * 32; begin < locations; begin += int64_t{gridDim.x} * 32) {
      const unsigned row = pair / static_cast<unsigned>(fusion.count);
      const Modality& modality = fusion.modalities[pair - row * static_cast<unsigned>(fusion.count)];
      const int64_t location = begin + threadIdx.x % 32, entry = pair * locations + location;
      C sum = 0;
      const int64_t first = threadIdx.x / 32 * locations + location;
      if (location < locations)
        sum = fuse_backward_location<T>(modality, row, first, WARPS * locations, factors[entry]);
      sums[threadIdx.x] = sum;
      __syncthreads();
      if (threadIdx.x < 32 && location < locations) {
        for (unsigned warp = 1; warp < WARPS; ++warp) sum += sums[warp * 32 + threadIdx.x];
        dots[entry] = sum;
      }
      __syncthreads();
    }
  }
}

}  // namespace udml
