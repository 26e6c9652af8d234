// What the kernels of the forward and the backward pass of inject_noise share.
#pragma once

#include "../op.h"
#include "noise.h"
#include "tiles.h"

namespace udml {

// The order matches udml_kernels.KINDS. MIXED: the kind is a run-time value. UNKNOWN: an invalid code, which yields
// NaN.
enum Kind { MIXED = -1, GAUSSIAN, UNIFORM, SPECKLE, SALT_PEPPER, DROPOUT, REPLACE, UNKNOWN };

// The normalization of channels. UNNORMALIZED: none. TWO_CHANNELS: a thread's elements lie in at most two channels.
// ANY_CHANNELS: they lie in any number of channels.
enum Normalize { UNNORMALIZED, TWO_CHANNELS, ANY_CHANNELS };

// The noise level of a sample. Its functions take r, the normal or uniform number of an element.
template <class C>
struct Level {
  C sigma, low, high;

  template <int KIND>
  __device__ __forceinline__ C noisy(C x, C r) const {
    if constexpr (KIND == GAUSSIAN) return multiply_add(r, sigma, x);
    if constexpr (KIND == UNIFORM) return multiply_add(r * 2 - 1, sigma * C(1.7320508075688772), x);
    if constexpr (KIND == SPECKLE) return x * multiply_add(r, sigma, C(1));
    if constexpr (KIND == REPLACE) return r * sigma;
    if constexpr (KIND == DROPOUT) return r < sigma ? C(0) : x;
    if constexpr (KIND == UNKNOWN) return C(NAN);
    return r < sigma * C(0.5) ? low : r < sigma ? high : x;
  }

  // Computes dL/dx from dL/dnoisy. If noisy does not depend on x, the result is 0 and not a product, because 0 * inf is
  // NaN.
  template <int KIND>
  __device__ __forceinline__ C x_gradient(C noisy_gradient, C r) const {
    if constexpr (KIND == SPECKLE) return noisy_gradient * multiply_add(r, sigma, C(1));
    if constexpr (KIND == REPLACE || KIND == UNKNOWN) return 0;
    if constexpr (KIND == DROPOUT || KIND == SALT_PEPPER) return r < sigma ? C(0) : noisy_gradient;
    return noisy_gradient;
  }

  // Computes dL/dsigma from dL/dnoisy. It multiplies in the order of the reference, because x * r alone may overflow.
  template <int KIND>
  __device__ __forceinline__ C sigma_gradient(C noisy_gradient, C x, C r) const {
    if constexpr (KIND == GAUSSIAN || KIND == REPLACE) return noisy_gradient * r;
    if constexpr (KIND == UNIFORM) return noisy_gradient * ((r * 2 - 1) * C(1.7320508075688772));
    if constexpr (KIND == SPECKLE) return noisy_gradient * x * r;
    return 0;
  }
};

// The settings of an op call. Without a clamp, low and high are infinite and salt-and-pepper noise is NaN.
template <class C>
struct Settings {
  const C* sigma;
  int sigma_step, kind;
  const int64_t* kinds;
  int64_t kinds_step;
  bool clamped;
  C low, high;
  // For each channel, (y / scale - mean) / std = y factor + offset. The pointers are null without normalization.
  const C *factor, *offset;
  int64_t channels;
  Divisor locations;

  __device__ __forceinline__ int kind_of(int64_t row) const {
    const int64_t code = kinds == nullptr ? kind : kinds[row * kinds_step];
    return code >= 0 && code < UNKNOWN ? static_cast<int>(code) : UNKNOWN;
  }
  __device__ __forceinline__ Level<C> level_of(int64_t row) const {
    return {sigma[row * sigma_step], clamped ? low : C(NAN), clamped ? high : C(NAN)};
  }
};

// Calls body(i, factor, offset) for each of a thread's elements.
template <Normalize NORMALIZE, class A, class C, class Body>
__device__ __forceinline__ void for_each_normalization(const Settings<C>& settings, const Place& at, const Body& body) {
  using Index = typename A::Index;
  constexpr int V = A::VECTOR;
  const Index locations = static_cast<Index>(settings.locations.value), channels = settings.channels;
  const Index first = static_cast<Index>(at.start), first_channel = settings.locations.quotient(first);
  if constexpr (NORMALIZE == TWO_CHANNELS) {
    const int boundary = static_cast<int>((first_channel + 1) * locations - first);
    const Index next = min(first_channel + 1, channels - 1);
    const C factor = settings.factor[first_channel], next_factor = settings.factor[next];
    const C offset = settings.offset[first_channel], next_offset = settings.offset[next];
#pragma unroll
    for (int i = 0; i < A::WIDTH; ++i) {
      const bool before = i % V < boundary - i / V * static_cast<int>(at.stride);
      body(i, before ? factor : next_factor, before ? offset : next_offset);
    }
  } else {
#pragma unroll
    for (int j = 0; j < A::WIDTH / V; ++j) {
      const Index start = first + j * at.stride;
      // A vector past the end of the row has the last channel.
      Index channel = min(settings.locations.quotient(start), channels - 1), rest = start - channel * locations;
      C factor = settings.factor[channel], offset = settings.offset[channel];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        body(j * V + i, factor, offset);
        if (++rest < locations) continue;
        rest = 0, channel = min(channel + 1, channels - 1);
        factor = settings.factor[channel], offset = settings.offset[channel];
      }
    }
  }
}

// Calls body with the sample's kind as a compile-time constant.
template <int KIND, class Body>
__device__ __forceinline__ void with_kind(int kind, const Body& body) {
  if constexpr (KIND != MIXED) return body(std::integral_constant<int, KIND>{});
  switch (kind) {
    case GAUSSIAN: return body(std::integral_constant<int, GAUSSIAN>{});
    case UNIFORM: return body(std::integral_constant<int, UNIFORM>{});
    case SPECKLE: return body(std::integral_constant<int, SPECKLE>{});
    case SALT_PEPPER: return body(std::integral_constant<int, SALT_PEPPER>{});
    case DROPOUT: return body(std::integral_constant<int, DROPOUT>{});
    case REPLACE: return body(std::integral_constant<int, REPLACE>{});
    default: return body(std::integral_constant<int, UNKNOWN>{});
  }
}

template <int KIND, class A>
__device__ __forceinline__ void draw(const Noise& noise, int kind, const Place& at, typename A::C (&random)[A::WIDTH]) {
  const Sample sample = sample_of(noise, at.row);
  if (KIND == GAUSSIAN || kind == GAUSSIAN || kind == SPECKLE || kind == REPLACE) {
    sample.normals<A::VECTOR>(at.start, at.stride, random);
  } else {
    sample.uniforms<A::VECTOR>(at.start, at.stride, random);
  }
}

template <class C>
__global__ void __launch_bounds__(BLOCK)
    normalization_kernel(const C* mean, const C* std, double scale, int64_t channels, C* factor, C* offset) {
  for_each_thread_item(channels, [&](int64_t i) {
    factor[i] = static_cast<C>(1 / (scale * static_cast<double>(std[i])));
    offset[i] = static_cast<C>(-static_cast<double>(mean[i]) / static_cast<double>(std[i]));
  });
}

// The settings of a call, and the tensor that holds its factors and offsets.
template <class C>
struct Call {
  Settings<C> settings;
  std::optional<Tensor> normalization;
};

template <class C>
Call<C> call_of(const Tensor& x, const Tensor& sigma, const OptionalTensor& kinds, int64_t kind,
                const std::vector<double>& clamp, double scale, const OptionalTensor& mean, const OptionalTensor& std,
                const OnDevice& device) {
  const int64_t rows = x.size(0);
  expect(sigma.numel() == 1 || sigma.numel() == rows, "sigma: expected 1 value or one a sample");
  expect(sigma.scalar_type() == scalar_type_of<C>, "sigma: expected the arithmetic dtype");
  expect(kinds.has_value() || (kind >= 0 && kind <= REPLACE), "kind: expected a code in [0, 6)");
  Call<C> call{};
  Settings<C>& s = call.settings;
  s.sigma = values_of<C>(sigma), s.sigma_step = sigma.numel() > 1, s.kind = static_cast<int>(kind);
  if (kinds) {
    expect(kinds->scalar_type() == ScalarType::Long && kinds->numel() == rows, "kinds: expected one int64 a sample");
    s.kinds = static_cast<const int64_t*>(kinds->const_data_ptr()), s.kinds_step = kinds->stride(0);
  }
  s.clamped = clamp.size() == 2;
  s.low = s.clamped ? static_cast<C>(clamp[0]) : -std::numeric_limits<C>::infinity();
  s.high = s.clamped ? static_cast<C>(clamp[1]) : std::numeric_limits<C>::infinity();
  s.channels = mean ? x.size(1) : 1;
  s.locations = Divisor(row_size_of(x) / std::max<int64_t>(s.channels, 1));
  if (!mean || !std) return call;
  expect(mean->numel() == s.channels && std->numel() == s.channels && mean->scalar_type() == scalar_type_of<C> &&
             std->scalar_type() == scalar_type_of<C>,
         "mean and std: expected one value a channel, of the arithmetic dtype");
  call.normalization = allocate({2, s.channels}, scalar_type_of<C>, x);
  C* factor = results_of<C>(*call.normalization);
  s.factor = factor, s.offset = factor + s.channels;
  launch("normalization_kernel", normalization_kernel<C>, device, thread_item_work(s.channels), values_of<C>(*mean),
         values_of<C>(*std), scale, s.channels, factor, factor + s.channels);
  return call;
}

// Calls f with the call's Normalize value as a compile-time constant. The elements of a warp are neighbors.
template <class A, class C, class Function>
void with_normalize(const Settings<C>& settings, const Function& f) {
  if (settings.factor == nullptr) return f(std::integral_constant<Normalize, UNNORMALIZED>{});
  if (A::DENSE && settings.locations.value >= 32 * A::WIDTH)
    return f(std::integral_constant<Normalize, (A::DENSE ? TWO_CHANNELS : ANY_CHANNELS)>{});
  f(std::integral_constant<Normalize, ANY_CHANNELS>{});
}

}  // namespace udml
