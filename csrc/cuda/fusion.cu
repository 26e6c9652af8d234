// fusion_weights, and weighted_fusion: the features read once, multiplied by their weights on the way.
#include <algorithm>

#include "../ops.h"
#include "tiles.h"
#include "weighting.h"

namespace udml {

enum Mode : int64_t { CONCAT, SUM, SCALE };

// One modality's features, what is made of them and, backward, the gradient that comes in. `first` is the first of its
// tiles among those of all modalities.
struct Modality {
  Rows feature, grad;
  Results result;
  int64_t size;
  unsigned first;
};

// The modalities of a launch. `together`: a tile is that of all of them, else of one.
struct Fusion {
  Modality of[MAX_MODALITIES];
  int count;
  bool together;
  unsigned across;
};

// The modalities [begin, end) of a tile, and a thread's place in them.
struct Share {
  int begin, end;
  Place at;
};

template <int WIDTH>
__device__ __forceinline__ Share share_of(const Fusion& fusion, Tiles tiles, unsigned group, unsigned tile) {
  Share share{0, fusion.count, {}};
  if (!fusion.together) {
    while (share.begin + 1 < fusion.count && tile >= fusion.of[share.begin + 1].first) ++share.begin;
    share.end = share.begin + 1;
    tile -= fusion.of[share.begin].first;
  }
  tiles.size = fusion.of[share.begin].size;
  share.at = place_in<WIDTH>(tiles, group, tile);
  return share;
}

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

// Sums of products that warps have left: `entries` to a row, of modality m [first[m], first[m + 1]).
template <class C>
struct Dots {
  const C* partial = nullptr;
  int64_t entries = 0;
  int64_t first[MAX_MODALITIES + 1] = {};
};

// From dL/dw, taken relative to that of the largest share, to dL/dlog(s alpha). sum_j p_j (g_m - g_j) is exactly 0 where
// all g are alike, and made of small terms alone where p_m is almost 1; g_m - sum_j p_j g_j then has both properties too.
template <class C>
__device__ __forceinline__ C log_gradient(const Weighting<C>& weighting, const Term<C>& term, C weight, C relative, C mean) {
  const C by_log = weight * (relative - mean) * -weighting.inverse_temperature;
  // Multiplied by the inverse before it is divided by s: their quotient alone overflows where the product does not.
  return weighting.inverse ? by_log : by_log * term.inverse;
}

// The gradient of the largest share, which others are taken relative to; 0 where it is no number.
__device__ __forceinline__ double finite_or_zero(double x) { return fabs(x) < INFINITY ? x : 0; }

// A warp to a row, both halves of it alike. by_alpha[row * row_stride + m * stride] gets dL/dalpha of the row.
template <class C, class A>
__global__ void __launch_bounds__(BLOCK)
    fusion_weights_backward_kernel(Weighting<C> weighting, Entries<C> grad, Dots<C> dots, C* grad_s, A* by_alpha, int64_t row_stride,
                                   int64_t stride) {
  for_each_by_warp(weighting.rows, [&](int64_t row) {
    const int m = static_cast<int>(threadIdx.x % MAX_MODALITIES);
    const Weighed<C> at = weigh_by_lanes(weighting, row, true);
    // In double: of the sums their differences count, which may be a thousandth of them.
    double by_weight = at.present && grad.data != nullptr ? static_cast<double>(grad.at(row, m, 0)) : 0;
    if (dots.partial != nullptr) {
#pragma unroll 1
      for (int j = 0; j < weighting.modalities; ++j) {
        const C* entry = dots.partial + row * dots.entries + dots.first[j];
        const double dot = sum_by_lanes(dots.first[j + 1] - dots.first[j], [&](int64_t i) { return static_cast<double>(entry[i]); });
        if (j == m && at.present) by_weight += dot;
      }
    }
    // All lanes call what follows, present or not.
    const C top = maximum_over_modalities(at.share);
    const bool largest = at.present && at.share == top;
    const double shift = finite_or_zero(maximum_over_modalities(largest ? by_weight : -static_cast<double>(INFINITY)));
    const C relative = static_cast<C>(by_weight - shift);
    const C mean = sum_over_modalities(at.present ? at.share * relative : C(0));
    const C by_log = log_gradient(weighting, at.term, at.weight, relative, mean);
    if (threadIdx.x % 32 >= static_cast<unsigned>(weighting.modalities)) return;
    grad_s[row * weighting.modalities + m] = at.present ? by_log / at.term.s : C(0);
    if (by_alpha != nullptr) by_alpha[row * row_stride + m * stride] = at.present ? by_log / at.term.alpha : C(0);
  });
}

// What passes over a location's modalities gather from the shares and dL/dw.
template <class C>
struct LocationGradient {
  const Weighting<C>& weighting;
  const Entries<C>& grad;
  const C *dots, *shares;
  int64_t row, location;

  __device__ __forceinline__ int64_t entry(int m) const { return (row * weighting.modalities + m) * weighting.locations + location; }
  __device__ __forceinline__ double by_weight(int m) const {
    const double given = grad.data == nullptr ? 0 : static_cast<double>(grad.at(row, m, location));
    return dots == nullptr ? given : given + static_cast<double>(dots[entry(m)]);
  }
  // As in fusion_weights_backward_kernel.
  __device__ __forceinline__ double shift() const {
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
    return finite_or_zero(found);
  }
  __device__ __forceinline__ C mean(double shift) const {
    C sum = 0;
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m)
      if (weighting.has(row, m, location)) sum += shares[entry(m)] * static_cast<C>(by_weight(m) - shift);
    return sum;
  }
};

// A warp to 32 locations of a row. by_alpha[row * row_stride + m * stride + segment] gets dL/dalpha of them.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    location_weights_backward_kernel(Weighting<C> weighting, Entries<C> grad, const C* dots, C* grad_s, double* by_alpha, Divisor segments,
                                     int64_t row_stride, int64_t stride) {
  for_each_by_warp(weighting.rows * segments.value, [&](int64_t i) {
    const int64_t row = segments.quotient(i), segment = i - row * segments.value, location = segment * 32 + threadIdx.x % 32;
    const bool exists = location < weighting.locations;
    const LocationGradient<C> here{weighting, grad, dots, grad_s, row, location};
    C count = 0, mean = 0;
    double shift = 0;
    if (exists) {
      count = share_location(weighting, row, location, grad_s + here.entry(0) - location);
      shift = here.shift();
      mean = here.mean(shift);
    }
#pragma unroll 1
    for (int m = 0; m < weighting.modalities; ++m) {
      C by_s = 0, by_other = 0;
      if (exists && weighting.has(row, m, location)) {
        const Term<C> term = weighting.term(row, m, location);
        const C weight = weighting.weight(grad_s[here.entry(m)], count), relative = static_cast<C>(here.by_weight(m) - shift);
        const C by_log = log_gradient(weighting, term, weight, relative, mean);
        by_s = by_log / term.s, by_other = by_log / term.alpha;
      }
      if (exists) grad_s[here.entry(m)] = by_s;
      if (by_alpha == nullptr) continue;
      const double sum = sum_over_lanes(static_cast<double>(by_other));
      if (threadIdx.x % 32 == 0) by_alpha[row * row_stride + m * stride + segment] = sum;
    }
  });
}

// ---- The features.

// The factors of the rows of a group of tiles, 16 to a row; the weights are written where they are not null.
template <class C>
__device__ __forceinline__ void weigh_group(const Weighting<C>& weighting, const Tiles& tiles, unsigned group, bool residual,
                                            C* factors, C* weights) {
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
__device__ __forceinline__ void add_modality(const Fusion& fusion, const Share& share, int m, const typename Access<T>::C* factors,
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
    weighted_fusion_backward_kernel(const Fusion fusion, Weighting<typename Access<T>::C> weighting, Tiles tiles, bool residual,
                                    int64_t entries, typename Access<T>::C* partial) {
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
        const unsigned entry = ((fusion.of[m].first + at.tile) << (max(tiles.team_bits, 5u) - 5)) + (threadIdx.x & (tiles.team - 1)) / 32;
        partial[at.row * entries + entry] = dot;
      }
    }
    __syncthreads();
  }
}

// sum + x * factor, where the modality is there.
template <class C>
__device__ __forceinline__ C add_scaled(C sum, C x, C factor) {
  return is_absent(factor) ? sum : multiply_add(x, factor, sum);
}

// The same of consecutive elements, by the factors of the locations from `location` on and of those of the next channel.
template <class C, int WIDTH>
__device__ __forceinline__ void add_by_location(const C* factors, int64_t location, int64_t locations, const C (&x)[WIDTH],
                                                C (&sum)[WIDTH]) {
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
        add_by_location(factors + (share.at.row * fusion.count + m) * locations.value, location, locations.value, x, sum);
      }
      A::write(fusion.of[share.begin].result, share.at.row, share.at.start, share.at.count, sum);
    }
  }
}

// One element of a row of T, or of any.
template <class T>
__device__ __forceinline__ typename Access<T>::C element(const Rows& rows, int64_t row, int64_t e) {
  using C = typename Access<T>::C;
  if constexpr (Access<T>::DENSE) return static_cast<C>(reinterpret_cast<const T*>(rows.data)[row * rows.row_stride + e]);
  else return at<C>(rows, row, e);
}
template <class T>
__device__ __forceinline__ void put(const Results& out, int64_t row, int64_t e, typename Access<T>::C value) {
  if constexpr (Access<T>::DENSE) reinterpret_cast<T*>(out.data)[row * out.row_size + e] = static_cast<T>(value);
  else store_as(out.data, out.dtype, row * out.row_size + e, value);
}

// grad_feature of every `step`th element from `begin` on; returns the sum of grad * feature over them.
template <class T>
__device__ __forceinline__ typename Access<T>::C unfuse_location(const Modality& modality, int64_t row, int64_t begin, int64_t step,
                                                                 typename Access<T>::C factor) {
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
    location_fusion_backward_kernel(const Fusion fusion, const typename Access<T>::C* factors, unsigned pairs, int64_t locations,
                                    typename Access<T>::C* dots) {
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

// ---- The host's side.

template <class C>
static void compute_weights(const WeightInputs<C>& inputs, bool residual, C* weights, C* factors, const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  if (inputs.per_location()) {
    launch("location_weights_kernel", location_weights_kernel<C>, device, work_by_thread(weighting.rows * weighting.locations), weighting,
           Divisor(weighting.locations), residual, weights, factors);
  } else {
    launch("fusion_weights_kernel", fusion_weights_kernel<C>, device, work_by_warp((weighting.rows + 1) / 2), weighting, weights);
  }
}

// dL/ds and dL/dalpha from dL/dw: from `grad` and, where they are not null, the sums of the features.
template <class C>
static void backward_of_locations(const WeightInputs<C>& inputs, const EntryInput<C>& grad, const C* dots, const Tensor& grad_s,
                                  const Tensor& grad_alpha, bool needs_dependency, const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  const int64_t rows = weighting.rows, modalities = weighting.modalities, segments = (weighting.locations + 31) / 32;
  const Tensor partial = allocate({needs_dependency ? modalities : 0, rows, segments}, ScalarType::Double, grad_s);
  // Of each value of dL/dalpha so many sums, side by side.
  const int64_t sums = inputs.by_sample() ? segments : rows * segments;
  const int64_t row_stride = inputs.by_sample() ? modalities * segments : segments;
  launch("location_weights_backward_kernel", location_weights_backward_kernel<C>, device, work_by_warp(rows * segments), weighting,
         grad.entries(), dots, results_of<C>(grad_s), needs_dependency ? results_of<double>(partial) : nullptr, Divisor(segments),
         row_stride, sums);
  if (needs_dependency)
    sum_partials<double>(partial, grad_alpha.numel(), sums, 1.0, results_of<C>(grad_alpha), device);
}

template <class C>
static void backward_of_samples(const WeightInputs<C>& inputs, const EntryInput<C>& grad, const Dots<C>& dots, const Tensor& grad_s,
                                const Tensor& grad_alpha, bool needs_dependency, const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  const int64_t rows = weighting.rows, modalities = weighting.modalities;
  const bool summed = needs_dependency && !inputs.by_sample();
  if (!summed) {
    launch("fusion_weights_backward_kernel", fusion_weights_backward_kernel<C, C>, device, work_by_warp(rows), weighting, grad.entries(),
           dots, results_of<C>(grad_s), needs_dependency ? results_of<C>(grad_alpha) : nullptr, modalities, int64_t{1});
    return;
  }
  // In double: over the batch these terms largely cancel.
  const Tensor terms = allocate({modalities, rows}, ScalarType::Double, grad_s);
  launch("fusion_weights_backward_kernel", fusion_weights_backward_kernel<C, double>, device, work_by_warp(rows), weighting, grad.entries(),
         dots, results_of<C>(grad_s), results_of<double>(terms), int64_t{1}, rows);
  sum_partials<double>(terms, modalities, rows, 1.0, results_of<C>(grad_alpha), device);
}

static Tensor dependency_gradient(const OptionalTensor& dependency, bool wanted, const Tensor& uncertainty) {
  expect(!wanted || dependency.has_value(), "dependency: expected a tensor");
  return wanted ? allocate_like(*dependency) : nothing(uncertainty.scalar_type(), uncertainty);
}

Tensor fusion_weights(Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask, int64_t g, double temperature,
                      std::optional<double> total) {
  const OnDevice device(uncertainty);
  const Tensor out = allocate_like(uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    compute_weights<C>(inputs, false, results_of<C>(out), nullptr, device);
  });
  return out;
}

std::tuple<Tensor, Tensor> fusion_weights_backward(Tensor grad, Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask,
                                                   int64_t g, double temperature, std::optional<double> total,
                                                   bool needs_dependency) {
  expect_same_shape(grad, uncertainty, "grad and uncertainty");
  expect(grad.scalar_type() == uncertainty.scalar_type(), "grad: expected uncertainty's dtype");
  const OnDevice device(uncertainty);
  const Tensor grad_s = allocate_like(uncertainty), grad_alpha = dependency_gradient(dependency, needs_dependency, uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    const EntryInput<C> incoming(grad);
    if (inputs.per_location()) {
      backward_of_locations<C>(inputs, incoming, nullptr, grad_s, grad_alpha, needs_dependency, device);
    } else {
      backward_of_samples<C>(inputs, incoming, {}, grad_s, grad_alpha, needs_dependency, device);
    }
  });
  return {grad_s, grad_alpha};
}

// The features of a call and the tensors they are fused into, forward or backward.
class Features {
 public:
  Features(const Tensors& features, const Tensor& uncertainty, int64_t mode) : mode_(mode) {
    expect(!features.empty() && static_cast<int64_t>(features.size()) == uncertainty.size(1) && features.size() <= MAX_MODALITIES,
           "features and uncertainty: expected the same modalities");
    const int64_t locations = row_size_of(uncertainty, 2);
    for (const Tensor& t : features) {
      check(t, features[0], uncertainty, locations);
      inputs_.push_back(input_of(t));
      sizes_.push_back(row_size_of(t));
      dense_ = dense_ && inputs_.back().is_dense();
    }
  }

  std::vector<std::vector<int64_t>> fused_shapes(const Tensors& features) const {
    std::vector<std::vector<int64_t>> shapes;
    for (const Tensor& t : features) shapes.push_back(shape_of(t));
    if (mode_ == SCALE) return shapes;
    for (size_t m = 1; mode_ == CONCAT && m < shapes.size(); ++m) shapes[0][1] += shapes[m][1];
    return {shapes[0]};
  }

  void add_gradients(const Tensors& grads) {
    for (const Tensor& t : grads) {
      grads_.push_back(input_of(t));
      dense_ = dense_ && grads_.back().is_dense();
    }
  }

  bool is_dense() const { return dense_; }
  int64_t longest() const { return *std::max_element(sizes_.begin(), sizes_.end()); }

  // Results are the fused tensors or, `apart`, one a modality.
  Fusion fusion(const Tensors& results_in, const Tiles& tiles, bool apart) const {
    Fusion fusion{};
    fusion.count = static_cast<int>(sizes_.size());
    fusion.together = mode_ == SUM;
    int64_t offset = 0, first = 0;
    for (size_t m = 0; m < sizes_.size(); ++m) {
      Modality& modality = fusion.of[m];
      const size_t tensor = mode_ == SCALE ? m : 0;
      const int64_t begin = mode_ == CONCAT ? offset : 0;
      modality.feature = inputs_[m].rows();
      modality.size = sizes_[m];
      modality.first = Tiles::counted(first);
      modality.result = results(results_in[apart ? m : tensor], row_size_of(results_in[apart ? m : tensor]));
      if (!apart) modality.result.data += begin * item_;
      if (!grads_.empty()) modality.grad = part_of(tensor, begin);
      offset += sizes_[m];
      first += (sizes_[m] + tiles.step - 1) / tiles.step;
    }
    fusion.across = fusion.together ? tiles.across : Tiles::counted(first);
    return fusion;
  }

 private:
  void check(const Tensor& t, const Tensor& first, const Tensor& uncertainty, int64_t locations) {
    expect(t.dim() >= 2 && t.scalar_type() == first.scalar_type() && t.size(0) == uncertainty.size(0),
           "features: expected one dtype and the batch of uncertainty");
    expect(uncertainty.scalar_type() == compute_type(t.scalar_type()), "uncertainty: expected the arithmetic dtype");
    expect(locations == 1 || row_size_of(t, 2) == locations, "features: expected the locations of uncertainty");
    expect(mode_ != SUM || shape_of(t) == shape_of(first), "features: expected tensors of one shape");
    expect(mode_ != CONCAT || row_size_of(t, 2) == row_size_of(first, 2), "features: expected one shape but for dim 1");
    item_ = static_cast<int64_t>(t.element_size());
  }

  static Input input_of(const Tensor& t) { return t.numel() > 0 ? Input(t) : Input(); }

  // Elements from `begin` on, where a modality's share begins: whole rows of `inner` elements or a part of the only one.
  Rows part_of(size_t tensor, int64_t begin) const {
    Rows rows = grads_[tensor].rows();
    if (begin == 0 || rows.inner == 0) return rows;
    rows.data += (begin < rows.inner ? begin * rows.inner_stride : begin / rows.inner * rows.outer_stride) * item_;
    return rows;
  }

  int64_t mode_, item_ = 1;
  bool dense_ = true;
  std::vector<Input> inputs_, grads_;
  std::vector<int64_t> sizes_;
};

// The factors of locations: the weights themselves, where every modality is there and w is what features are scaled by.
template <class C>
static std::optional<Tensor> location_factors(const WeightInputs<C>& inputs, bool residual, const Tensor& uncertainty) {
  if (!residual && inputs.weighting().mask.data == nullptr) return std::nullopt;
  return allocate_like(uncertainty);
}

std::tuple<Tensors, Tensor> weighted_fusion(Tensors features, Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask,
                                            int64_t mode, bool residual, int64_t g, double temperature, std::optional<double> total) {
  const Features in(features, uncertainty, mode);
  const OnDevice device(uncertainty);
  const ScalarType dtype = features[0].scalar_type();
  Tensors fused;
  for (const auto& shape : in.fused_shapes(features)) fused.push_back(allocate(shape, dtype, uncertainty));
  const Tensor weights = allocate_like(uncertainty);
  with_storage(dtype, in.is_dense(), [&](auto storage) {
    using T = decltype(storage);
    using C = typename Access<T>::C;
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    const Weighting<C>& weighting = inputs.weighting();
    const Tiles tiles(weighting.rows, in.longest(), Access<T>::WIDTH);
    const Fusion fusion = in.fusion(fused, tiles, mode == SCALE);
    if (inputs.per_location()) {
      const auto factors = location_factors(inputs, residual, uncertainty);
      compute_weights<C>(inputs, residual, results_of<C>(weights), factors ? results_of<C>(*factors) : nullptr, device);
      launch("location_fusion_kernel", location_fusion_kernel<T>, device, Work{fusion.across, tiles.groups, BLOCK}, fusion,
             results_of<C>(factors ? *factors : weights), Divisor(weighting.locations), tiles);
    } else {
      // Without a feature there are weights all the same.
      launch("weighted_fusion_kernel", weighted_fusion_kernel<T>, device, Work{std::max(fusion.across, 1u), tiles.groups, BLOCK}, fusion,
             weighting, tiles, residual, results_of<C>(weights));
    }
  });
  return {fused, weights};
}

// The features' gradients and the sums of grad * feature, per location.
template <class T>
static Tensor backward_features(const WeightInputs<typename Access<T>::C>& inputs, const Fusion& fusion, bool residual,
                                const Tensor& uncertainty, const OnDevice& device) {
  using C = typename Access<T>::C;
  const Weighting<C>& weighting = inputs.weighting();
  const int64_t pairs = weighting.rows * fusion.count;
  const Tensor weights = allocate_like(uncertainty), dots = allocate_like(uncertainty);
  const auto factors = location_factors(inputs, residual, uncertainty);
  compute_weights<C>(inputs, residual, results_of<C>(weights), factors ? results_of<C>(*factors) : nullptr, device);
  launch("location_fusion_backward_kernel", location_fusion_backward_kernel<T>, device,
         Work{(weighting.locations + 31) / 32, pairs, BLOCK}, fusion, results_of<C>(factors ? *factors : weights), Tiles::counted(pairs),
         weighting.locations, results_of<C>(dots));
  return dots;
}

// The same per sample. Of the sums there are parts, which `dots` describes.
template <class T>
static Tensor backward_features(const WeightInputs<typename Access<T>::C>& inputs, const Fusion& fusion, const Tiles& tiles, bool residual,
                                const Tensor& uncertainty, Dots<typename Access<T>::C>& dots, const OnDevice& device) {
  using C = typename Access<T>::C;
  const int64_t per_tile = int64_t{tiles.entries} / tiles.across;
  for (int m = 0; m < fusion.count; ++m) {
    dots.first[m] = fusion.of[m].first * per_tile;
    dots.first[m + 1] = dots.first[m] + (fusion.of[m].size + tiles.step - 1) / tiles.step * per_tile;
  }
  dots.entries = dots.first[fusion.count];
  const Tensor partial = allocate({inputs.weighting().rows, dots.entries}, scalar_type_of<C>, uncertainty);
  dots.partial = results_of<C>(partial);
  const unsigned across = dots.entries == 0 ? 0 : fusion.across;
  launch("weighted_fusion_backward_kernel", weighted_fusion_backward_kernel<T>, device, Work{across, tiles.groups, BLOCK}, fusion,
         inputs.weighting(), tiles, residual, dots.entries, results_of<C>(partial));
  return partial;
}

std::tuple<Tensors, Tensor, Tensor> weighted_fusion_backward(Tensors grads, OptionalTensor grad_weights, Tensors features,
                                                             Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask,
                                                             int64_t mode, bool residual, int64_t g, double temperature,
                                                             std::optional<double> total, bool needs_dependency) {
  Features in(features, uncertainty, mode);
  const auto shapes = in.fused_shapes(features);
  expect(grads.size() == shapes.size(), "grads: expected one for every fused tensor");
  for (size_t i = 0; i < grads.size(); ++i)
    expect(shape_of(grads[i]) == shapes[i] && grads[i].scalar_type() == features[0].scalar_type(),
           "grads: expected the fused shapes and the features' dtype");
  if (grad_weights) {
    expect_same_shape(*grad_weights, uncertainty, "grad_weights and uncertainty");
    expect(grad_weights->scalar_type() == uncertainty.scalar_type(), "grad_weights: expected uncertainty's dtype");
  }
  in.add_gradients(grads);
  const OnDevice device(uncertainty);
  Tensors grad_features;
  for (const Tensor& t : features) grad_features.push_back(allocate_like(t));
  const Tensor grad_s = allocate_like(uncertainty), grad_alpha = dependency_gradient(dependency, needs_dependency, uncertainty);
  with_storage(features[0].scalar_type(), in.is_dense(), [&](auto storage) {
    using T = decltype(storage);
    using C = typename Access<T>::C;
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    const EntryInput<C> incoming(grad_weights);
    const Tiles tiles(inputs.weighting().rows, in.longest(), Access<T>::WIDTH);
    const Fusion fusion = in.fusion(grad_features, tiles, true);
    if (inputs.per_location()) {
      const Tensor dots = backward_features<T>(inputs, fusion, residual, uncertainty, device);
      backward_of_locations<C>(inputs, incoming, results_of<C>(dots), grad_s, grad_alpha, needs_dependency, device);
    } else {
      Dots<C> dots;
      const Tensor partial = backward_features<T>(inputs, fusion, tiles, residual, uncertainty, dots, device);
      backward_of_samples<C>(inputs, incoming, dots, grad_s, grad_alpha, needs_dependency, device);
    }
  });
  return {grad_features, grad_s, grad_alpha};
}

}  // namespace udml
