// The pooling of std over the locations of a channel, and the way back of its gradient.
#pragma once

#include <algorithm>
#include <numeric>

#include "../ops.h"
#include "tiles.h"

namespace udml {

// How std is pooled over a channel's L locations.
//   NONE     L is 1: empty_gradient to pool
//   WHOLE    short channels: a tile holds whole ones
//   PARTS    long channels: a tile lies in at most two; its two sums are added up by pool_*_parts_kernel
// FOURS: L is a multiple of 4, so that four elements can be added before it is asked where they belong.
enum Pool { NONE, WHOLE, WHOLE_FOURS, PARTS, PARTS_FOURS };

struct Channels {
  int64_t count, locations;
  // Elements between the beginnings of tiles; WHOLE: the channels of a tile, the threads that add one up.
  unsigned step, each, helpers_bits;
  Divisor by_locations;
  Pool pool;

  Channels(const Tensor& mu, int width)
      : count(mu.size(1)), locations(row_size_of(mu, 2)), step(static_cast<unsigned>(BLOCK * width)), each(0),
        helpers_bits(0), by_locations(locations) {
    const bool whole = locations < 128, fours = locations % 4 == 0;
    pool = locations <= 1 ? NONE : whole ? fours ? WHOLE_FOURS : WHOLE : fours ? PARTS_FOURS : PARTS;
    while (!whole && step > locations) step /= 2;
    if (pool == NONE || !whole) return;
    // The fewest elements that end both a channel and a thread's share.
    const int64_t tile = step, period = std::lcm(locations, static_cast<int64_t>(width));
    each = static_cast<unsigned>(tile / period * (period / locations));
    step = each * static_cast<unsigned>(locations);
    while (helpers_bits < 5 && std::min<int64_t>(each, count) << (helpers_bits + 1) <= BLOCK &&
           int64_t{2} << helpers_bits <= locations)
      ++helpers_bits;
  }
};

// A thread's elements in shared memory, as they are or as sums of four.
template <int GROUP>
__device__ __forceinline__ void stage(const float (&x)[16], float* out) {
  if constexpr (GROUP == 1) return store_dense(out, x), store_dense(out + 8, x + 8);
  *reinterpret_cast<float4*>(out) = make_float4((x[0] + x[1]) + (x[2] + x[3]), (x[4] + x[5]) + (x[6] + x[7]),
                                                (x[8] + x[9]) + (x[10] + x[11]), (x[12] + x[13]) + (x[14] + x[15]));
}
template <int GROUP, class C>
__device__ __forceinline__ void stage(const C (&x)[4], C* out) {
  if constexpr (GROUP == 4) *out = (x[0] + x[1]) + (x[2] + x[3]);
  for (int i = 0; GROUP == 1 && i < 4; ++i) out[i] = x[i];
}

// The means of a tile's whole channels, each added up by 2^helpers_bits threads of the team. SHARE: what a thread
// staged.
template <unsigned SHARE, int GROUP, class C>
__device__ __forceinline__ void pool_whole(const C* staged, const Place& at, const Tiles& tiles,
                                           const Channels& channels, C* pooled) {
  const unsigned within = threadIdx.x & (tiles.team - 1), length = static_cast<unsigned>(channels.locations) / GROUP;
  __syncthreads();
  const unsigned bits = min(channels.helpers_bits, tiles.team_bits), helpers = 1u << bits;
  const int64_t first = static_cast<int64_t>(at.tile) * channels.each;
  const unsigned here =
      at.exists ? static_cast<unsigned>(min(channels.count - first, static_cast<int64_t>(channels.each))) : 0;
  const unsigned most = static_cast<unsigned>(min(channels.count, static_cast<int64_t>(channels.each)));
#pragma unroll 1
  for (unsigned round = 0; round < most; round += tiles.team >> bits) {
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
      pooled[at.row * channels.count + first + channel] = sum * static_cast<C>(channels.by_locations.inverse);
  }
  __syncthreads();
}

// The sums of the elements before `boundary`, a multiple of GROUP, and of the others.
template <int GROUP, class C, int WIDTH>
__device__ __forceinline__ void add_parts(const C (&std)[WIDTH], int count, int boundary, C& before, C& behind) {
#pragma unroll
  for (int i = 0; i < WIDTH; i += GROUP) {
    const C sum = GROUP == 4 ? (std[i] + std[i + 1]) + (std[i + 2] + std[i + 3]) : std[i];
    if (i < boundary && i < count) before += sum;
    if (i >= boundary && i < count) behind += sum;
  }
}

// The mean of a long channel. Parts of tiles: of the channel that the tile begins in, and of the next; in the order
// first, first + stride, ...
template <class C>
__device__ __forceinline__ double sum_of_parts(const C* partial, const Tiles& tiles, const Channels& channels,
                                               int64_t i, int64_t first, int64_t stride) {
  const int64_t per_tile = int64_t{tiles.entries} / tiles.across;
  const int64_t row = i / channels.count, begin = i % channels.count * channels.locations;
  const int64_t tile = begin / tiles.step, last = (begin + channels.locations - 1) / tiles.step;
  const C* entry = partial + (row * int64_t{tiles.entries} + tile * per_tile) * 4;
  double sum = 0;
  for (int64_t j = first; j < (last - tile + 1) * per_tile; j += stride)
    sum += entry[j * 4 + 2 + (((tile + j / per_tile) * tiles.step) < begin)];
  return sum / static_cast<double>(channels.locations);
}

template <class C>
__global__ void __launch_bounds__(BLOCK)
    pool_few_parts_kernel(const C* partial, Tiles tiles, Channels channels, C* out) {
  for_each_by_thread(tiles.rows * channels.count,
                     [&](int64_t i) { out[i] = static_cast<C>(sum_of_parts(partial, tiles, channels, i, 0, 1)); });
}

template <class C>
__global__ void __launch_bounds__(BLOCK)
    pool_many_parts_kernel(const C* partial, Tiles tiles, Channels channels, C* out) {
  for_each_by_warp(tiles.rows * channels.count, [&](int64_t i) {
    const double mean = sum_over_lanes(sum_of_parts(partial, tiles, channels, i, threadIdx.x % 32, 32));
    if (threadIdx.x % 32 == 0) out[i] = static_cast<C>(mean);
  });
}

// The means of long channels. `partial`: the forward kernel's entries, four sums each.
template <class C>
void pool_parts(const Tensor& partial, const Tiles& tiles, const Channels& channels, const Tensor& pooled,
                const OnDevice& device) {
  const int64_t means = tiles.rows * channels.count;
  if (int64_t{tiles.entries} / channels.count < 16) {
    launch("pool_few_parts_kernel", pool_few_parts_kernel<C>, device, work_by_thread(means), results_of<C>(partial),
           tiles, channels, results_of<C>(pooled));
  } else {
    launch("pool_many_parts_kernel", pool_many_parts_kernel<C>, device, work_by_warp(means), results_of<C>(partial),
           tiles, channels, results_of<C>(pooled));
  }
}

// How the gradient of the pooled std reaches a thread's elements: one each, of at most two channels, of any.
// It is `grad` where L is 1, else `by_channel`.
enum Spread { EACH, TWO, ANY };

template <class T, Spread SPREAD>
__device__ __forceinline__ void spread_std(const Rows& grad, const Matrix<typename Access<T>::C>& by_channel,
                                           const Place& at, const Channels& channels,
                                           typename Access<T>::C (&by_std)[Access<T>::WIDTH]) {
  using A = Access<T>;
  using C = typename A::C;
  if constexpr (SPREAD == EACH) {
    Access<WideOf<T>>::read(grad, at.row, at.start, at.count, by_std);
    return;
  }
  const C share = 1 / static_cast<C>(channels.locations);
  if (at.count == 0) return;
  const int64_t channel = channels.by_locations.quotient(at.start);
  if constexpr (SPREAD == TWO) {
    const int64_t next = min(channel + 1, channels.count - 1), left = (channel + 1) * channels.locations - at.start;
    const C one = by_channel.at(at.row, channel) * share, other = by_channel.at(at.row, next) * share;
    const int boundary = static_cast<int>(min(left, static_cast<int64_t>(A::WIDTH)));
#pragma unroll
    for (int i = 0; i < A::WIDTH; ++i) by_std[i] = i < boundary ? one : other;
  } else {
    int64_t here = channel, rest = at.start - channel * channels.locations;
#pragma unroll
    for (int i = 0; i < A::WIDTH; ++i) {
      if (i < at.count) by_std[i] = by_channel.at(at.row, here) * share;
      if (++rest == channels.locations) rest = 0, ++here;
    }
  }
}

}  // namespace udml
