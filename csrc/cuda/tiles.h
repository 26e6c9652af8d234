// The assignment of rows to threads, and sums over the threads of a row.
#pragma once

#include <limits>

#include "inputs.h"

namespace udml {

inline constexpr int BLOCK = 256;

// The minimum number of blocks per multiprocessor for __launch_bounds__: `blocks`, or 2 for double arithmetic. Without
// it, ptxas may prefer one more block to avoiding a few bytes of local memory.
template <class T>
constexpr int min_blocks_per_sm(int blocks) {
  return sizeof(typename Access<T>::C) == 8 ? 2 : blocks;
}

// A division of rows of `size` elements into tiles. A tile has `step` elements of a row, or all elements of a shorter
// row; `across` tiles cover a row. `threads_per_row` threads (a power of 2) process a tile, each up to `width`
// elements, the WIDTH of the kernel's Access. A block has tiles of several rows or, with ONE_ROW, successive tiles of
// one row. The division depends on the row size alone, so the order in which the elements of a row are added is the
// same for every batch size.
struct Tiles {
  int64_t size;
  unsigned rows, step, across, blocks, groups, threads_per_row, log2_threads_per_row;
  // The number of partial sums that a kernel stores for each row.
  unsigned partials_per_row;

  __host__ Tiles(int64_t row_count, int64_t size, int width, int part = 0, bool one_row = false)
      : size(size), rows(counted(row_count)) {
    step = static_cast<unsigned>(part > 0 ? part : BLOCK * width);
    log2_threads_per_row = 0;
    while (1 << log2_threads_per_row < BLOCK && int64_t{width} << log2_threads_per_row < std::min<int64_t>(size, step))
      ++log2_threads_per_row;
    threads_per_row = 1u << log2_threads_per_row;
    across = counted(std::max<int64_t>(1, (size + step - 1) / step));
    const unsigned slots_per_block = BLOCK / threads_per_row;
    groups = one_row ? rows : (rows + slots_per_block - 1) / slots_per_block;
    blocks = one_row ? (across + slots_per_block - 1) / slots_per_block : across;
    partials_per_row = counted(int64_t{across} * std::max(1u, threads_per_row / 32));
  }

  // Rows and tiles are counted in 32 bits, elements and addresses in 64 bits.
  static unsigned counted(int64_t n) {
    expect(n < std::numeric_limits<int>::max(), "a tensor of more than 2^31 rows, or of rows of more than 2^31 tiles");
    return static_cast<unsigned>(n);
  }

  Work work() const { return {blocks, groups, BLOCK}; }
};

template <class A, bool ONE_ROW = false>
__device__ __forceinline__ Place place_in(const Tiles& tiles, unsigned group, unsigned block) {
  using Index = typename A::Index;
  const unsigned thread = threadIdx.x & (tiles.threads_per_row - 1), within = thread * A::WIDTH;
  const unsigned slots_per_block = BLOCK >> tiles.log2_threads_per_row;
  const unsigned slot = (ONE_ROW ? block : group) * slots_per_block + (threadIdx.x >> tiles.log2_threads_per_row);
  const unsigned row = ONE_ROW ? group : slot, tile = ONE_ROW ? slot : block;
  const Index begin = static_cast<Index>(static_cast<uint64_t>(tile) * tiles.step);
  Place at{};
  at.row = row;
  at.start = begin + within;
  at.tile = tile;
  at.exists = ONE_ROW ? tile < tiles.across : row < tiles.rows;
  // A place that does not exist gets a size too, so that `complete` is the same in all lanes of a warp.
  const int size = static_cast<int>(min(static_cast<Index>(tiles.size) - begin, static_cast<Index>(tiles.step)));
  at.count = at.exists ? max(min(size - static_cast<int>(within), A::WIDTH), 0) : 0;
  if constexpr (A::DENSE) {
    at.whole = at.exists && tiles.threads_per_row >= 32 && static_cast<int>(((thread | 31) + 1) * A::WIDTH) <= size;
    at.complete = at.whole || size % A::WIDTH == 0;
  }
  return at;
}

// Calls body(place), in one of two copies: the first one is for warps whose threads are complete, almost all of them.
// If 32 lanes have elements of a row, they take vectors in turn, so that each access of the warp is to neighboring
// elements.
template <class A, class Body>
__device__ __forceinline__ void per_warp(Place at, const Body& body) {
  at.stride = A::VECTOR;
  if (A::DENSE && at.complete) {
    if (at.whole) {
      at.start -= threadIdx.x % 32 * (A::WIDTH - A::VECTOR);
      at.stride = 32 * A::VECTOR;
    }
    at.complete = true;
    body(at);
  } else {
    at.whole = at.complete = false;
    body(at);
  }
}

// Calls body(place) for every tile of the launch. All threads of a block call it together, so it may synchronize them.
template <class A, bool ONE_ROW = false, class Body>
__device__ __forceinline__ void for_each_tile(const Tiles& tiles, const Body& body) {
#pragma unroll 1
  for (unsigned group = blockIdx.y; group < tiles.groups; group += gridDim.y)
#pragma unroll 1
    for (unsigned block = blockIdx.x; block < tiles.blocks; block += gridDim.x)
      body(place_in<A, ONE_ROW>(tiles, group, block));
}

// Sums over the threads of a row need no barrier: each warp (or the threads of a row, if they are fewer) stores one of
// the row's `partials_per_row` partial sums, and a second kernel adds them in order.
__device__ __forceinline__ bool writes_partial(const Tiles& tiles) {
  return (threadIdx.x & (min(tiles.threads_per_row, 32u) - 1)) == 0;
}
__device__ __forceinline__ int64_t partial_index(const Tiles& tiles, const Place& at) {
  const unsigned within = threadIdx.x & (tiles.threads_per_row - 1);
  return at.row * tiles.partials_per_row + ((at.tile << (max(tiles.log2_threads_per_row, 5u) - 5)) + within / 32);
}

// Adds each of N values over `width` neighboring lanes of a warp, a power of 2. All of these lanes receive the sums.
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

// Calls body(row, block) for the `across` blocks of every row. All threads of a block call it together, so it may
// synchronize them.
template <class Body>
__device__ __forceinline__ void for_each_block(unsigned rows, unsigned across, const Body& body) {
#pragma unroll 1
  for (unsigned row = blockIdx.y; row < rows; row += gridDim.y)
#pragma unroll 1
    for (unsigned block = blockIdx.x; block < across; block += gridDim.x) body(row, block);
}

// Calls body(i) for every i < count with one warp per i. All lanes of the warp call it.
template <class Body>
__device__ __forceinline__ void for_each_warp_item(int64_t count, const Body& body) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (BLOCK / 32);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (BLOCK / 32) + threadIdx.x / 32; i < count; i += warps) body(i);
}
inline Work warp_item_work(int64_t count) { return {(count + BLOCK / 32 - 1) / (BLOCK / 32), 1, BLOCK}; }

// Calls body(i) for every i < count with one thread per i.
template <class Body>
__device__ __forceinline__ void for_each_thread_item(int64_t count, const Body& body) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * BLOCK;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x; i < count; i += threads) body(i);
}
inline Work thread_item_work(int64_t count) { return {(count + BLOCK - 1) / BLOCK, 1, BLOCK}; }

// Returns the sum of term(0), ..., term(count - 1) in double. The lanes of a warp share the terms.
template <class Term>
__device__ __forceinline__ double warp_sum(int64_t count, const Term& term) {
  double sum = 0;
  for (int64_t j = threadIdx.x % 32; j < count; j += 32) sum += term(j);
  return sum_over_lanes(sum);
}

// out[i] = scale * (partial[i * count] + .. + partial[i * count + count - 1])
template <class P, class C>
__global__ void __launch_bounds__(BLOCK)
    sum_partials_kernel(const P* partial, int64_t sums, int64_t count, double scale, C* out) {
  for_each_warp_item(sums, [&](int64_t i) {
    const double sum = warp_sum(count, [&](int64_t j) { return static_cast<double>(partial[i * count + j]); });
    if (threadIdx.x % 32 == 0) out[i] = static_cast<C>(scale * sum);
  });
}

// Adds `count` partial sums for each output. If `count` is 0, the result is 0.
template <class P, class C>
void sum_partials(const Tensor& partial, int64_t sums, int64_t count, double scale, C* out, const OnDevice& device) {
  launch("sum_partials_kernel", sum_partials_kernel<P, C>, device, warp_item_work(sums),
         static_cast<const P*>(partial.const_data_ptr()), sums, count, scale, out);
}

}  // namespace udml
