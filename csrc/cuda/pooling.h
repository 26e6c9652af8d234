// The mean of std over the locations of a channel, and its gradient.
#pragma once

#include <algorithm>
#include <numeric>

#include "../op.h"
#include "tiles.h"

namespace udml {

// How kernels average std over a channel's L locations.
//   NONE     L is 1: nothing to average
//   WHOLE    channels are short: a tile has whole channels
//   PARTS    channels are long: a tile lies in at most two channels; pool_*_parts_kernel adds its two sums
// *_FOURS: L is a multiple of 4, so groups of four elements lie in one channel.
enum Pool { NONE, WHOLE, WHOLE_FOURS, PARTS, PARTS_FOURS };

struct Channels {
  int64_t count, locations;
  // `step` is the distance between the starts of tiles. For WHOLE, 2^log2_helpers threads add up each channel.
  unsigned step, channels_per_tile, log2_helpers;
  Divisor locations_divisor;
  Pool pool;

  Channels(const Tensor& mu, int width)
      : count(mu.size(1)),
        locations(row_size_of(mu, 2)),
        step(static_cast<unsigned>(BLOCK * width)),
        channels_per_tile(0),
        log2_helpers(0),
        locations_divisor(locations) {
    const bool whole = locations < 128, fours = locations % 4 == 0;
    constexpr Pool POOLS[2][2] = {{PARTS, PARTS_FOURS}, {WHOLE, WHOLE_FOURS}};
    pool = locations <= 1 ? NONE : POOLS[whole][fours];
    while (!whole && step > locations) step /= 2;
    if (pool == NONE || !whole) return;
    // `period` is the smallest number of elements that ends both a channel and a thread's elements.
    const int64_t tile = step, period = std::lcm(locations, static_cast<int64_t>(width));
    channels_per_tile = static_cast<unsigned>(tile / period * (period / locations));
    step = channels_per_tile * static_cast<unsigned>(locations);
    while (log2_helpers < 5 && std::min<int64_t>(channels_per_tile, count) << (log2_helpers + 1) <= BLOCK &&
           int64_t{2} << log2_helpers <= locations)
      ++log2_helpers;
  }
};

// Stores a thread's elements, or the sums of groups of four elements, in shared memory, in the order of the tile.
template <class A, int GROUP, class C>
__device__ __forceinline__ void stage(const C (&x)[A::WIDTH], const Place& at, C* staged) {
  constexpr int V = A::VECTOR;
  const unsigned lane = at.whole ? threadIdx.x % 32 : 0;
  C* out = staged + threadIdx.x * (A::WIDTH / GROUP) - lane * ((A::WIDTH - V) / GROUP);
#pragma unroll
  for (int j = 0; j < A::WIDTH / V; ++j, out += at.stride / GROUP) {
    const C* vector = x + j * V;
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      if constexpr (GROUP == 4) {
        out[i / 4] = (vector[i] + vector[i + 1]) + (vector[i + 2] + vector[i + 3]);
      } else if constexpr (A::DENSE) {
        *reinterpret_cast<float4*>(out + i) = make_float4(vector[i], vector[i + 1], vector[i + 2], vector[i + 3]);
      } else {
        for (int k = 0; k < 4; ++k) out[k] = vector[k];
      }
    }
  }
}

// Computes the means of a tile's whole channels. 2^log2_helpers threads add up each channel. SHARE is the number of
// values that each thread staged.
template <unsigned SHARE, int GROUP, class C>
__device__ __forceinline__ void pool_whole(const C* staged, const Place& at, const Tiles& tiles,
                                           const Channels& channels, C* pooled) {
  const unsigned within = threadIdx.x & (tiles.threads_per_row - 1),
                 length = static_cast<unsigned>(channels.locations) / GROUP;
  __syncthreads();
  const unsigned bits = min(channels.log2_helpers, tiles.log2_threads_per_row), helpers = 1u << bits;
  const int64_t first = static_cast<int64_t>(at.tile) * channels.channels_per_tile;
  const unsigned here =
      at.exists ? static_cast<unsigned>(min(channels.count - first, static_cast<int64_t>(channels.channels_per_tile)))
                : 0;
  const unsigned max_channels =
      static_cast<unsigned>(min(channels.count, static_cast<int64_t>(channels.channels_per_tile)));
#pragma unroll 1
  for (unsigned round = 0; round < max_channels; round += tiles.threads_per_row >> bits) {
    const unsigned channel = round + (within >> bits), begin = (threadIdx.x - within) * SHARE + channel * length;
    C sum = 0;
    unsigned e = channel < here ? within & (helpers - 1) : length;
#pragma unroll 1
    for (; e + 3 * helpers < length; e += 4 * helpers)
      sum += (staged[begin + e] + staged[begin + e + helpers]) +
             (staged[begin + e + 2 * helpers] + staged[begin + e + 3 * helpers]);
#pragma unroll 1
    for (; e < length; e += helpers) sum += staged[begin + e];
    sum = sum_over_lanes(sum, helpers);
    if (channel < here && (within & (helpers - 1)) == 0)
      pooled[at.row * channels.count + first + channel] = sum * static_cast<C>(channels.locations_divisor.inverse);
  }
  __syncthreads();
}

// Adds the elements before `boundary`, a multiple of GROUP, and those after it. `boundary` is relative to the thread's
// first element.
template <class A, int GROUP, class C>
__device__ __forceinline__ void add_parts(const C (&std)[A::WIDTH], const Place& at, int boundary, C& before,
                                          C& behind) {
  constexpr int V = A::VECTOR;
#pragma unroll
  for (int i = 0; i < A::WIDTH; i += GROUP) {
    const C sum = GROUP == 4 ? (std[i] + std[i + 1]) + (std[i + 2] + std[i + 3]) : std[i];
    const int end = boundary - i / V * static_cast<int>(at.stride);
    if (i % V < end && A::exists(at, i)) before += sum;
    if (i % V >= end && A::exists(at, i)) behind += sum;
  }
}

// Adds the partial sums first, first + stride, ... of a long channel and divides by the number of locations. Each tile
// has one sum for the channel in which it begins and one for the next channel.
template <class C>
__device__ __forceinline__ double sum_of_parts(const C* partial, const Tiles& tiles, const Channels& channels,
                                               int64_t i, int64_t first, int64_t stride) {
  const int64_t per_tile = int64_t{tiles.partials_per_row} / tiles.across;
  const int64_t row = i / channels.count, begin = i % channels.count * channels.locations;
  const int64_t tile = begin / tiles.step, last = (begin + channels.locations - 1) / tiles.step;
  const C* entry = partial + (row * int64_t{tiles.partials_per_row} + tile * per_tile) * 4;
  double sum = 0;
  for (int64_t j = first; j < (last - tile + 1) * per_tile; j += stride)
    sum += entry[j * 4 + 2 + (((tile + j / per_tile) * tiles.step) < begin)];
  return sum / static_cast<double>(channels.locations);
}

template <class C>
__global__ void __launch_bounds__(BLOCK)
    pool_few_parts_kernel(const C* partial, Tiles tiles, Channels channels, C* out) {
  for_each_thread_item(tiles.rows * channels.count,
                       [&](int64_t i) { out[i] = static_cast<C>(sum_of_parts(partial, tiles, channels, i, 0, 1)); });
}

template <class C>
__global__ void __launch_bounds__(BLOCK)
    pool_many_parts_kernel(const C* partial, Tiles tiles, Channels channels, C* out) {
  for_each_warp_item(tiles.rows * channels.count, [&](int64_t i) {
    const double mean = sum_over_lanes(sum_of_parts(partial, tiles, channels, i, threadIdx.x % 32, 32));
    if (threadIdx.x % 32 == 0) out[i] = static_cast<C>(mean);
  });
}

// Computes the means of long channels from the forward kernel's partial sums, four per entry.
template <class C>
void pool_parts(const Tensor& partial, const Tiles& tiles, const Channels& channels, const Tensor& pooled,
                const OnDevice& device) {
  const int64_t means = tiles.rows * channels.count;
  if (int64_t{tiles.partials_per_row} / channels.count < 16) {
    launch("pool_few_parts_kernel", pool_few_parts_kernel<C>, device, thread_item_work(means), results_of<C>(partial),
           tiles, channels, results_of<C>(pooled));
  } else {
    launch("pool_many_parts_kernel", pool_many_parts_kernel<C>, device, warp_item_work(means), results_of<C>(partial),
           tiles, channels, results_of<C>(pooled));
  }
}

// How a thread's elements receive the gradient of the pooled std. PER_ELEMENT: L is 1, and each element has its own
// value in `grad`. TWO_CHANNELS, ANY_CHANNELS: the elements of a vector lie in at most two, or any number of, channels,
// whose gradients are in `channel_gradient`.
enum Spread { PER_ELEMENT, TWO_CHANNELS, ANY_CHANNELS };

template <class T, Spread SPREAD>
__device__ __forceinline__ void spread_std(const Rows& grad, const Matrix<typename Access<T>::C>& channel_gradient,
                                           const Place& at, const Channels& channels,
                                           typename Access<T>::C (&std_gradient)[Access<T>::WIDTH]) {
  using A = Access<T>;
  using C = typename A::C;
  using Index = typename A::Index;
  constexpr int V = A::VECTOR;
  if constexpr (SPREAD == PER_ELEMENT) {
    AccessBeside<T, float>::read(grad, at, std_gradient);
    return;
  }
  const C share = 1 / static_cast<C>(channels.locations);
  const Index locations = static_cast<Index>(channels.locations);
#pragma unroll
  for (int j = 0; j < A::WIDTH / V; ++j) {
    const Index start = static_cast<Index>(at.start) + j * at.stride;
    // A vector past the end of the row has the last channel.
    const Index channel = min(channels.locations_divisor.quotient(start), static_cast<Index>(channels.count) - 1);
    C* const out = std_gradient + j * V;
    if constexpr (SPREAD == TWO_CHANNELS) {
      const Index next = min(channel + 1, static_cast<Index>(channels.count) - 1);
      const Index left = (channel + 1) * locations - start;
      const C value = channel_gradient.at(at.row, channel) * share,
              next_value = channel_gradient.at(at.row, next) * share;
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = i == 0 || i < left ? value : next_value;
    } else {
      Index here = channel, rest = start - channel * locations;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (A::exists(at, j * V + i)) out[i] = channel_gradient.at(at.row, here) * share;
        if (++rest == locations) rest = 0, ++here;
      }
    }
  }
}

}  // namespace udml
