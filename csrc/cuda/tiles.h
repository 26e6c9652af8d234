// How rows are dealt out to threads, and how the threads of a row add up what they have.
#pragma once

#include <limits>

#include "inputs.h"

namespace udml {

inline constexpr int BLOCK = 256;

// The blocks of a multiprocessor that registers are shared out for: `floats`, or fewer where numbers are double. Left
// to itself ptxas may prefer one block more to a few bytes of local memory.
template <class T>
constexpr int resident(int floats) {
  return sizeof(typename Access<T>::C) == 8 ? 2 : floats;
}

// Rows of `size` elements. A tile is `step` elements of a row or, of a short one, all of it; `team` threads (a power
// of 2) hold it, each up to `width` elements, the WIDTH of the kernel's Access. A block has the teams of several rows
// or, ALONG, of successive tiles of one. Tiles depend on a row's size alone: with them the order in which a row's
// elements are added is the same in every batch.
struct Tiles {
  int64_t size;
  unsigned rows, step, across, blocks, groups, team, team_bits;
  // The partial sums that a row leaves.
  unsigned entries;

  __host__ Tiles(int64_t row_count, int64_t size, int width, int part = 0, bool along = false)
      : size(size), rows(counted(row_count)) {
    step = static_cast<unsigned>(part > 0 ? part : BLOCK * width);
    team_bits = 0;
    while (1 << team_bits < BLOCK && int64_t{width} << team_bits < std::min<int64_t>(size, step)) ++team_bits;
    team = 1u << team_bits;
    across = counted(std::max<int64_t>(1, (size + step - 1) / step));
    const unsigned teams = BLOCK / team;
    groups = along ? rows : (rows + teams - 1) / teams;
    blocks = along ? (across + teams - 1) / teams : across;
    entries = counted(int64_t{across} * std::max(1u, team / 32));
  }

  // Rows and tiles are counted in 32 bits; elements, and addresses, in 64.
  static unsigned counted(int64_t n) {
    expect(n < std::numeric_limits<int>::max(), "a tensor of more than 2^31 rows, or of rows of more than 2^31 tiles");
    return static_cast<unsigned>(n);
  }

  Work work() const { return {blocks, groups, BLOCK}; }
};

// A thread's place in a tile: elements [start, start + count) of `row`; none where the row does not exist.
struct Place {
  int64_t row, start;
  unsigned tile;
  int count;
  bool exists;
};

template <int WIDTH, bool ALONG = false>
__device__ __forceinline__ Place place_in(const Tiles& tiles, unsigned group, unsigned block) {
  const unsigned within = (threadIdx.x & (tiles.team - 1)) * WIDTH, teams = BLOCK >> tiles.team_bits;
  const unsigned of_team = (ALONG ? block : group) * teams + (threadIdx.x >> tiles.team_bits);
  const unsigned row = ALONG ? group : of_team, tile = ALONG ? of_team : block;
  const int64_t begin = static_cast<int64_t>(static_cast<uint64_t>(tile) * tiles.step);
  Place at;
  at.row = row;
  at.start = begin + within;
  at.tile = tile;
  at.exists = ALONG ? tile < tiles.across : row < tiles.rows;
  if constexpr (WIDTH == Access<float>::WIDTH) {
    // Dense shares are whole.
    at.count = at.exists && within < tiles.step && at.start < tiles.size ? WIDTH : 0;
  } else {
    const int left = static_cast<int>(min(tiles.size - begin, static_cast<int64_t>(tiles.step))) - static_cast<int>(within);
    at.count = at.exists ? max(min(left, WIDTH), 0) : 0;
  }
  return at;
}

// body(place) for every tile of the launch. All threads of a block run it together: it may synchronise them.
template <int WIDTH, bool ALONG = false, class Body>
__device__ __forceinline__ void for_each_tile(const Tiles& tiles, const Body& body) {
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y)
#pragma unroll 1
    for (unsigned block = blockIdx.x; block < tiles.blocks; block += gridDim.x)
      body(place_in<WIDTH, ALONG>(tiles, group, block));
}

// Sums over a team go by warps, without a barrier: each warp (or team, where that is less) leaves one of a
// row's `entries`, and a second kernel adds them up in their order.
__device__ __forceinline__ bool leaves_entry(const Tiles& tiles) {
  return (threadIdx.x & (min(tiles.team, 32u) - 1)) == 0;
}
__device__ __forceinline__ int64_t entry_of(const Tiles& tiles, const Place& at) {
  const unsigned within = threadIdx.x & (tiles.team - 1);
  return at.row * tiles.entries + ((at.tile << (max(tiles.team_bits, 5u) - 5)) + within / 32);
}

// Each of N sums over `width` neighbours in a warp, a power of 2; all of them get it.
template <class C, int N>
__device__ __forceinline__ void sum_over_lanes(C (&values)[N], unsigned width) {
#pragma unroll
  for (unsigned offset = 16; offset > 0; offset /= 2)
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const C other = __shfl_xor_sync(0xffffffffu, values[n], static_cast<int>(offset));
      if (offset < width) values[n] += other;
    }
}
template <class C>
__device__ __forceinline__ C sum_over_lanes(C value, unsigned width = 32) {
  C values[1] = {value};
  sum_over_lanes(values, width);
  return values[0];
}

// body(i) for every i < count, a warp to each; all its lanes call it.
template <class Body>
__device__ __forceinline__ void for_each_by_warp(int64_t count, const Body& body) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (BLOCK / 32);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (BLOCK / 32) + threadIdx.x / 32; i < count; i += warps) body(i);
}
inline Work work_by_warp(int64_t count) { return {(count + BLOCK / 32 - 1) / (BLOCK / 32), 1, BLOCK}; }

// body(i) for every i < count, a thread to each.
template <class Body>
__device__ __forceinline__ void for_each_by_thread(int64_t count, const Body& body) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * BLOCK;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x; i < count; i += threads) body(i);
}
inline Work work_by_thread(int64_t count) { return {(count + BLOCK - 1) / BLOCK, 1, BLOCK}; }

// The sum of term(0) .. term(count - 1) in double, shared out to the lanes of a warp.
template <class Term>
__device__ __forceinline__ double sum_by_lanes(int64_t count, const Term& term) {
  double sum = 0;
  for (int64_t j = threadIdx.x % 32; j < count; j += 32) sum += term(j);
  return sum_over_lanes(sum);
}

// out[i] = scale * (partial[i * count] + .. + partial[i * count + count - 1])
template <class P, class C>
__global__ void __launch_bounds__(BLOCK) sum_partials_kernel(const P* partial, int64_t sums, int64_t count, double scale, C* out) {
  for_each_by_warp(sums, [&](int64_t i) {
    const double sum = sum_by_lanes(count, [&](int64_t j) { return static_cast<double>(partial[i * count + j]); });
    if (threadIdx.x % 32 == 0) out[i] = static_cast<C>(scale * sum);
  });
}

// `count` partial sums to each; of none the sum is 0.
template <class P, class C>
void sum_partials(const Tensor& partial, int64_t sums, int64_t count, double scale, C* out, const OnDevice& device) {
  launch("sum_partials_kernel", sum_partials_kernel<P, C>, device, work_by_warp(sums), static_cast<const P*>(partial.const_data_ptr()),
         sums, count, scale, out);
}

}  // namespace udml
