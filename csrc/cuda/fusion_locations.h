// Weights per location: the kernels that make them, that fuse features by them, and those of their gradients.
#pragma once

#include "fused.h"

namespace udml {

// ---- The weights.

// The factors are written too where they are not null.
template <class C>
__global__ void __launch_bounds__(BLOCK, 4)
    location_weights_kernel(Weighting<C> weighting, Divisor locations, bool residual, C* weights, C* factors) {
  for_each_by_thread(weighting.rows * weighting.locations, [&](int64_t i) {
    const int64_t row = locations.quotient(i), location = i - row * weighting.locations;
    const int64_t begin = row * weighting.modalities * weighting.locations;
    const C count = share_location(weighting, row, location, weights + begin);
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m) {
      const int64_t entry = begin + m * weighting.locations + location;
      const C weight = weighting.weight(weights[entry], count);
      weights[entry] = weight;
      if (factors != nullptr) factors[entry] = factor_of(weight, weighting.has(row, m, location), residual);
    }
  });
}

// What passes over a location's modalities gather from the shares and dL/dw.
template <class C>
struct LocationGradient {
  const Weighting<C>& weighting;
  const Entries<C>& grad;
  const C *dots, *shares;
  int64_t row, location;

  __device__ __forceinline__ int64_t entry(int m) const {
    return (row * weighting.modalities + m) * weighting.locations + location;
  }
  __device__ __forceinline__ double by_weight(int m) const {
    const double given = grad.data == nullptr ? 0 : static_cast<double>(grad.at(row, m, location));
    return dots == nullptr ? given : given + static_cast<double>(dots[entry(m)]);
  }
  // As in fusion_weights_backward_kernel; and whether a gradient relative to it is huge.
  __device__ __forceinline__ double shift(bool& huge) const {
    C top = 0;
    double found = -static_cast<double>(INFINITY);
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m) {
      const C share = shares[entry(m)];
      if (!weighting.has(row, m, location) || !(share >= top)) continue;
      const double g = by_weight(m);
      if (share > top || g > found) found = g;
      top = share;
    }
    found = finite_or_zero(found);
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m)
      if (weighting.has(row, m, location) && fabs(by_weight(m) - found) >= HUGE_GRADIENT) huge = true;
    return found;
  }
  __device__ __forceinline__ C relative(int m, double shift, bool huge) const {
    const double difference = by_weight(m) - shift;
    return static_cast<C>(huge ? difference / (1 << MISSING) : difference);
  }
  __device__ __forceinline__ C mean(double shift, bool huge) const {
    C sum = 0;
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m)
      if (weighting.has(row, m, location)) sum += shares[entry(m)] * relative(m, shift, huge);
    return sum;
  }
};

// A warp to 32 locations of a row. by_alpha[row * row_stride + m * stride + segment] gets dL/dalpha of them.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    location_weights_backward_kernel(Weighting<C> weighting, Entries<C> grad, const C* dots, C* grad_s,
                                     double* by_alpha, Divisor segments, int64_t row_stride, int64_t stride) {
  for_each_by_warp(weighting.rows * segments.value, [&](int64_t i) {
    const int64_t row = segments.quotient(i), segment = i - row * segments.value;
    const int64_t location = segment * 32 + threadIdx.x % 32;
    const bool exists = location < weighting.locations;
    const LocationGradient<C> here{weighting, grad, dots, grad_s, row, location};
    C count = 0, mean = 0;
    double shift = 0;
    bool huge = false;
    if (exists) {
      count = share_location(weighting, row, location, grad_s + here.entry(0) - location);
      shift = here.shift(huge);
      mean = count == C(1) ? C(0) : here.mean(shift, huge);
    }
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m) {
      C by_s = 0, by_other = 0;
      if (exists && weighting.has(row, m, location)) {
        const Term<C> term = weighting.term(row, m, location);
        const C weight = weighting.weight(grad_s[here.entry(m)], count);
        const C relative = count == C(1) ? C(0) : here.relative(m, shift, huge);
        const C missing = huge ? C(MISSING) : C(0);
        const TermGradient<C> gradient = term_gradient(weighting, term, weight, relative, mean, missing);
        by_s = gradient.by_s, by_other = gradient.by_alpha;
      }
      if (exists) grad_s[here.entry(m)] = by_s;
      if (by_alpha == nullptr) continue;
      const double sum = sum_over_lanes(static_cast<double>(by_other));
      if (threadIdx.x % 32 == 0) by_alpha[row * row_stride + m * stride + segment] = sum;
    }
  });
}

// ---- The features.

// sum + x * factor, where the modality is there.
template <class C>
__device__ __forceinline__ C add_scaled(C sum, C x, C factor) {
  return is_absent(factor) ? sum : multiply_add(x, factor, sum);
}

// The same of consecutive elements, by the factors of the locations from `location` on and of those of the next
// channel.
template <class C, int WIDTH>
__device__ __forceinline__ void add_by_location(const C* factors, int64_t location, int64_t locations,
                                                const C (&x)[WIDTH], C (&sum)[WIDTH]) {
  if constexpr (WIDTH == 16) {
    // Fours of elements are of one channel.
    if (locations % 4 == 0) {
#pragma unroll
      for (int i = 0; i < WIDTH; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(factors + location);
        sum[i] = add_scaled(sum[i], x[i], four.x), sum[i + 1] = add_scaled(sum[i + 1], x[i + 1], four.y);
        sum[i + 2] = add_scaled(sum[i + 2], x[i + 2], four.z), sum[i + 3] = add_scaled(sum[i + 3], x[i + 3], four.w);
        if ((location += 4) == locations) location = 0;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    sum[i] = add_scaled(sum[i], x[i], factors[location]);
    if (++location == locations) location = 0;
  }
}

template <class T>
__global__ void __launch_bounds__(BLOCK, 3)
    location_fusion_kernel(const Fusion fusion, const typename Access<T>::C* factors, Divisor locations, Tiles tiles) {
  using A = Access<T>;
  using C = typename A::C;
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y) {
#pragma unroll 1
    for (unsigned tile = blockIdx.x; tile < fusion.across; tile += gridDim.x) {
      const Share share = share_of<A::WIDTH>(fusion, tiles, group, tile);
      if (share.at.count == 0) continue;
      const int64_t location = share.at.start - locations.quotient(share.at.start) * locations.value;
      C sum[A::WIDTH] = {};
#pragma unroll 1
      for (int m = share.begin; m < share.end; ++m) {
        C x[A::WIDTH];
        A::read(fusion.of[m].feature, share.at.row, share.at.start, share.at.count, x);
        const C* factor = factors + (share.at.row * fusion.count + m) * locations.value;
        add_by_location(factor, location, locations.value, x, sum);
      }
      A::write(fusion.of[share.begin].result, share.at.row, share.at.start, share.at.count, sum);
    }
  }
}

// One element of a row of T, or of any.
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

// grad_feature of every `step`th element from `begin` on; returns the sum of grad * feature over them.
template <class T>
__device__ __forceinline__ typename Access<T>::C unfuse_location(const Modality& modality, int64_t row, int64_t begin,
                                                                 int64_t step, typename Access<T>::C factor) {
  typename Access<T>::C sum = 0;
#pragma unroll(Access<T>::DENSE ? 4 : 1)
  for (int64_t e = begin; e < modality.size; e += step) {
    const auto grad = element<T>(modality.grad, row, e);
    sum = multiply_add(grad, element<T>(modality.feature, row, e), sum);
    put<T>(modality.result, row, e, is_absent(factor) ? 0 : grad * factor);
  }
  return sum;
}

// A block to 32 locations of a row and modality: its warps share out the channels, and their sums are added in order.
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
      const Modality& modality = fusion.of[pair - row * static_cast<unsigned>(fusion.count)];
      const int64_t location = begin + threadIdx.x % 32, entry = pair * locations + location;
      C sum = 0;
      const int64_t first = threadIdx.x / 32 * locations + location;
      if (location < locations) sum = unfuse_location<T>(modality, row, first, WARPS * locations, factors[entry]);
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
