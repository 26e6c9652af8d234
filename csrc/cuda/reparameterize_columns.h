// The kernels of reparameterize for maps with the channels last. Neighboring lanes have neighboring channels, and a
// thread has successive locations of one channel.
#pragma once

#include "reparameterize.h"

namespace udml {

// The work on maps with the channels last. A block has 2^log2_lanes channels, and each of its BLOCK >> log2_lanes rows
// of threads has `run` successive locations of them, a multiple of 4. `parts` blocks share long channels. The division
// depends on the size of a sample alone, so the order of additions is the same for every batch size.
struct Runs {
  int64_t locations;
  unsigned rows, channels, log2_lanes, run, parts, across;

  __host__ explicit Runs(const Tensor& map)
      : locations(row_size_of(map, 2)),
        rows(Tiles::counted(map.size(0))),
        channels(Tiles::counted(map.size(1))),
        log2_lanes(0) {
    // A warp accesses 32 neighboring channels, if there are as many. Longer runs need fewer groups of random numbers.
    constexpr int64_t SHORT = 16, LONG = 32;
    const auto wanted = [&](int64_t lanes) { return lanes < 32 || BLOCK / lanes * SHORT > locations; };
    while (wanted(1 << log2_lanes) && 1 << log2_lanes < std::min<int64_t>(channels, BLOCK)) ++log2_lanes;
    const int64_t threads = BLOCK >> log2_lanes, lanes = 1 << log2_lanes;
    parts = Tiles::counted((locations + threads * LONG - 1) / (threads * LONG));
    run = static_cast<unsigned>((locations + threads * parts * 4 - 1) / (threads * parts * 4) * 4);
    across = Tiles::counted((channels + lanes - 1) / lanes * parts);
  }
  Work work() const { return {across, rows, BLOCK}; }

  __device__ __forceinline__ unsigned lane() const { return threadIdx.x & ((1u << log2_lanes) - 1); }
  // The thread's channel, and its locations [begin, end). A thread past the last channel has no locations.
  __device__ __forceinline__ unsigned channel(unsigned block) const { return ((block / parts) << log2_lanes) + lane(); }
  __device__ __forceinline__ int64_t begin(unsigned block) const {
    return (int64_t{block % parts} * (BLOCK >> log2_lanes) + (threadIdx.x >> log2_lanes)) * run;
  }
  __device__ __forceinline__ int64_t end(unsigned block) const {
    return channel(block) < channels ? min(begin(block) + run, locations) : 0;
  }
};

// The normal numbers of a channel in groups of four successive elements. Random words come in aligned groups of four
// elements of the sample, and a channel may begin within one.
template <class C>
class SuccessiveNormals {
 public:
  __device__ __forceinline__ SuccessiveNormals(const Sample& sample, uint64_t element, bool aligned)
      : sample_(sample),
        group_(static_cast<uint32_t>(element >> 2)),
        shift_(static_cast<unsigned>(element) % 4),
        aligned_(aligned) {
    if (!aligned_) draw(ahead_);
  }
  __device__ __forceinline__ void next(C (&n)[4]) {
    if (aligned_) return draw(n);
    C x[7] = {ahead_[0], ahead_[1], ahead_[2], ahead_[3]};
    draw(ahead_);
#pragma unroll
    for (int i = 0; i < 3; ++i) x[4 + i] = ahead_[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) x[i] = shift_ & 2 ? x[i + 2] : x[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) n[i] = shift_ & 1 ? x[i + 1] : x[i];
  }

 private:
  __device__ __forceinline__ void draw(C (&n)[4]) {
    uint32_t w[4];
    sample_.words(group_++, w);
    normal_pair(w[0], w[1], n[0], n[1]);
    normal_pair(w[2], w[3], n[2], n[3]);
  }

  Sample sample_;
  uint32_t group_;
  unsigned shift_;
  bool aligned_;
  C ahead_[4];
};

// A map of T with any strides.
template <class T>
struct Map {
  T* data;
  int64_t row, channel, location;

  // Moves four successive locations or, without WHOLE, the first `count` of them; the others count as 0.
  template <bool WHOLE, class C>
  __device__ __forceinline__ void read(int64_t r, int64_t c, int64_t l, int count, C (&x)[4]) const {
    const T* p = data + r * row + c * channel + l * location;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = WHOLE || i < count ? static_cast<C>(p[i * location]) : C(0);
  }
  template <bool WHOLE, class C>
  __device__ __forceinline__ void write(int64_t r, int64_t c, int64_t l, int count, const C (&x)[4]) const {
    T* p = data + r * row + c * channel + l * location;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (WHOLE || i < count) p[i * location] = static_cast<T>(x[i]);
  }
};

// Calls body(first location, count, whole) for groups of four locations in [begin, end). The last one may have fewer.
template <class Body>
__device__ __forceinline__ void for_each_four(int64_t begin, int64_t end, const Body& body) {
#pragma unroll 1
  for (; begin + 4 <= end; begin += 4) body(begin, 4, std::true_type{});
  if (begin < end) body(begin, static_cast<int>(end - begin), std::false_type{});
}

// A channel's mean of std is the sum of its `parts` entries in `pooled`. Each warp stores one pair of the sample's sums
// for the KL divergence in `divergence`: the scaled squares and logvar.
template <class T, class C, bool CLIPPED, bool SAMPLED>
__global__ void __launch_bounds__(BLOCK, sizeof(T) == 8 ? 2 : 3)
    reparameterize_columns_kernel(Map<const T> mu, Map<const T> logvar, Moments<C> moments, Runs plan, Noise noise,
                                  Map<T> z, C* pooled, C* divergence) {
  UDML_SHARED(C, staged, BLOCK);
  for_each_block(plan.rows, plan.across, [&](unsigned row, unsigned block) {
    const unsigned channel = plan.channel(block);
    const int64_t begin = plan.begin(block), end = plan.end(block);
    const C scale_down = SquareScale<C>(moments.prior[int64_t{row} * moments.prior_step]).scale_down();
    SuccessiveNormals<C> normals(SAMPLED ? sample_of(noise, row) : Sample{},
                                 static_cast<uint64_t>(channel) * plan.locations + begin, plan.locations % 4 == 0);
    C terms[2] = {}, std_sum = 0;
    for_each_four(begin, end, [&](int64_t l, int count, auto whole) {
      constexpr bool WHOLE = decltype(whole)::value;
      C m[4], lv[4];
      [[maybe_unused]] C n[4] = {};
      mu.template read<WHOLE>(row, channel, l, count, m);
      logvar.template read<WHOLE>(row, channel, l, count, lv);
      if constexpr (SAMPLED) normals.next(n);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const C std = moments.template std_of<T, CLIPPED>(lv[i]);
        if (WHOLE || i < count) {
          const C scaled_std = std * scale_down, scaled_mu = m[i] * scale_down;
          terms[0] = multiply_add(scaled_std, scaled_std, multiply_add(scaled_mu, scaled_mu, terms[0]));
          terms[1] += lv[i];
          std_sum += std;
        }
        if constexpr (SAMPLED) m[i] = multiply_add(std, n[i], m[i]);
      }
      z.template write<WHOLE>(row, channel, l, count, m);
    });
    staged[threadIdx.x] = std_sum;
    sum_over_lanes(terms, 32);
    if (threadIdx.x % 32 == 0) {
      C* entry = divergence + ((int64_t{row} * plan.across + block) * (BLOCK / 32) + threadIdx.x / 32) * 2;
      entry[0] = terms[0], entry[1] = terms[1];
    }
    __syncthreads();
    const unsigned lanes = 1u << plan.log2_lanes;
    if (threadIdx.x < lanes && channel < plan.channels) {
      C sum = 0;
      for (unsigned thread = threadIdx.x; thread < BLOCK; thread += lanes) sum += staged[thread];
      pooled[(int64_t{row} * plan.channels + channel) * plan.parts + block % plan.parts] =
          sum * (1 / static_cast<C>(plan.locations));
    }
    __syncthreads();
  });
}

// The incoming gradients. A missing gradient has a null pointer.
template <class T, class C>
struct ColumnsIncoming {
  Map<const T> z;
  Matrix<C> std, kl;
};

// Without a gradient of kl its terms are not computed, because 0 * inf is not 0. Each warp stores one sum of scaled
// squares in `partial`.
template <class T, class C, bool CLIPPED, bool HAS_KL>
__global__ void __launch_bounds__(BLOCK, sizeof(T) == 8 ? 1 : 2)
    reparameterize_columns_backward_kernel(ColumnsIncoming<T, C> grad, Map<const T> mu, Map<const T> logvar,
                                           Moments<C> moments, Runs plan, Noise noise, Map<T> grad_mu,
                                           Map<T> grad_logvar, C* partial) {
  for_each_block(plan.rows, plan.across, [&](unsigned row, unsigned block) {
    const unsigned channel = plan.channel(block);
    const int64_t begin = plan.begin(block), end = plan.end(block);
    const bool noisy = noise.seed != nullptr && grad.z.data != nullptr, has_std = noisy || grad.std.data != nullptr;
    SuccessiveNormals<C> normals(noisy ? sample_of(noise, row) : Sample{},
                                 static_cast<uint64_t>(channel) * plan.locations + begin, plan.locations % 4 == 0);
    C squares = 0, slope = 0;
    if (begin < end && grad.std.data != nullptr)
      slope = grad.std.at(row, channel) * (1 / static_cast<C>(plan.locations));
    KlGradient<C> kl;
    if constexpr (HAS_KL) kl = KlGradient<C>(grad.kl.at(row), moments.prior[int64_t{row} * moments.prior_step]);
    for_each_four(begin, end, [&](int64_t l, int count, auto whole) {
      constexpr bool WHOLE = decltype(whole)::value;
      [[maybe_unused]] C m[4] = {};
      C lv[4], g[4] = {}, n[4] = {};
      if constexpr (HAS_KL) mu.template read<WHOLE>(row, channel, l, count, m);
      logvar.template read<WHOLE>(row, channel, l, count, lv);
      if (opaque(grad.z.data) != nullptr) grad.z.template read<WHOLE>(row, channel, l, count, g);
      if (noisy) normals.next(n);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        C clamped = lv[i];
        const C std = moments.template std_of<T, CLIPPED>(clamped);
        // Without noise the product is left out: n is then 0, and an infinite g times 0 is NaN.
        const C std_gradient = noisy ? multiply_add(g[i], n[i], slope) : slope;
        // Without a gradient that reaches std, 0 times a std that is not finite must be 0.
        C logvar_gradient = std_gradient * (has_std ? std * C(0.5) : C(0));
        if constexpr (HAS_KL) {
          g[i] = kl.add_mu(m[i], g[i]);
          logvar_gradient = kl.add_logvar(std, logvar_gradient);
          if (WHOLE || i < count) squares = kl.add_squares(m[i], std, squares);
        }
        // Like torch.clamp, this stops the gradient above the limit and for a NaN.
        lv[i] = !CLIPPED || !moments.clipped || lv[i] <= moments.logvar_max ? logvar_gradient : C(0);
      }
      grad_mu.template write<WHOLE>(row, channel, l, count, g);
      grad_logvar.template write<WHOLE>(row, channel, l, count, lv);
    });
    if (opaque(partial) == nullptr) return;
    squares = sum_over_lanes(squares);
    if (threadIdx.x % 32 == 0)
      partial[(int64_t{row} * plan.across + block) * (BLOCK / 32) + threadIdx.x / 32] = squares;
  });
}

// ---- Host code.

// Calls f with the type of stored numbers and that of arithmetic.
template <class Function>
void with_map_type(ScalarType dtype, Function&& f) {
  if (dtype == ScalarType::Double) return f(double{}, double{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{}, float{});
  if (dtype == ScalarType::Half) return f(__half{}, float{});
  f(float{}, float{});
}

// Describes a map of T whose channels are last.
template <class T>
Map<const T> map_of(const Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), row_size_of(t), 1, t.size(1)};
}
template <class T>
Map<T> result_map(const Tensor& t) {
  return {results_of<T>(t), row_size_of(t), 1, t.size(1)};
}

// Describes a gradient of a map, which may have any strides. One that needs more than one stride for its locations is
// copied to `keeper`.
template <class T>
Map<const T> gradient_map(const OptionalTensor& t, Tensor& keeper) {
  if (!t) return {};
  keeper = *t;
  Dims locations;
  for (int64_t d = 2; d < t->dim(); ++d) append(locations, t->size(d), t->stride(d));
  if (locations.size() > 1) {
    keeper = kept(torch::stable::contiguous(*t));
    locations = {{row_size_of(*t, 2), 1}};
  }
  return {static_cast<const T*>(keeper.const_data_ptr()), keeper.stride(0), keeper.stride(1),
          locations.empty() ? 0 : locations[0].stride};
}

}  // namespace udml
