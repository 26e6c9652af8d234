// Matrix products by tiles on the tensor cores. Large tiles need fewer instructions and less traffic, small ones keep
// more multiprocessors busy. Every sum has the same order of additions in all, so a row's results do not depend on the
// number of rows.
#pragma once

#include "operands.h"

namespace udml {

// The division of a tile among the warps of a block. A warp has SIXTEENS times 16 rows of one factor and EIGHTS times 8
// of the other ("columns"); a block has DOWN by ACROSS warps. It copies up to STAGES - 1 stages ahead, a stage being
// the panels of PANELS steps; a warp with few sums can multiply several at the same time.
template <int SIXTEENS_, int EIGHTS_, int DOWN_, int ACROSS_, int PANELS_, int STAGES_, int BLOCKS_PER_SM_>
struct TileShape {
  static constexpr int SIXTEENS = SIXTEENS_, EIGHTS = EIGHTS_, DOWN = DOWN_, ACROSS = ACROSS_;
  static constexpr int PANELS = PANELS_, STAGES = STAGES_;
  static constexpr int WARP_ROWS = 16 * SIXTEENS, WARP_COLUMNS = 8 * EIGHTS;
  static constexpr int ROWS = WARP_ROWS * DOWN, COLUMNS = WARP_COLUMNS * ACROSS, THREADS = 32 * DOWN * ACROSS;
  static constexpr int BLOCKS_PER_SM = BLOCKS_PER_SM_;
  // A thread's sums.
  static constexpr int SUMS = 4 * SIXTEENS * EIGHTS;

  // The first row and column of the thread's warp in the tile.
  static __device__ __forceinline__ int warp_row() { return static_cast<int>(threadIdx.x) / 32 / ACROSS * WARP_ROWS; }
  static __device__ __forceinline__ int warp_column() {
    return static_cast<int>(threadIdx.x) / 32 % ACROSS * WARP_COLUMNS;
  }
  // The place of the thread's sum i, of sixteen i / 4 / EIGHTS and eight i / 4 % EIGHTS, in the tile. Of sums i and
  // i + 1 (i even), the columns are neighbors, and with PERMUTED those of four sums.
  static __device__ __forceinline__ int row_of(int i) {
    return warp_row() + i / 4 / EIGHTS * 16 + i % 4 / 2 * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
  template <bool PERMUTED>
  static __device__ __forceinline__ int column_of(int i) {
    const int line = i / 4 % EIGHTS * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
    return warp_column() + (PERMUTED ? permuted(line) : line);
  }
};
using LargeTile = TileShape<4, 4, 2, 4, 1, 3, 1>;
// For kernels that keep several values per sum in registers.
using MediumTile = TileShape<2, 4, 2, 2, 1, 4, 3>;
using SmallTile = TileShape<1, 2, 1, 2, 2, 4, 6>;

// The number of steps that form one chain of additions; the rounding error of a longer float32 chain exceeds the
// tolerance. Only small tiles have place for more chains: one slot of shared memory per sum.
inline constexpr int CHAIN = 128;

// How to multiply factors that are stored as A and B: the type of elements in shared memory, and the number of parts
// that each is split into.
template <class A, class B>
struct Product {
  using E = std::conditional_t<std::is_same_v<A, B>, A, float>;
  static constexpr int A_PARTS = std::is_same_v<A, float> ? 2 : 1, B_PARTS = std::is_same_v<B, float> ? 2 : 1;
  static constexpr bool SPLIT = A_PARTS + B_PARTS > 2;
};

template <class C>
__device__ __forceinline__ bool is_finite(C x) {
  return x - x == C(0);
}

// Adds the products of a panel's rows to the thread's sums, for the warp whose rows begin at `row` and `column`.
template <class P, class PanelA, class PanelB, int SIXTEENS, int EIGHTS, class C>
__device__ __forceinline__ void multiply_panels(const char* panel_a, const char* panel_b, int row, int column,
                                                C (&sums)[SIXTEENS][EIGHTS][4]) {
  using E = typename P::E;
  Parts<E, P::B_PARTS, Step<E>::EIGHT> b[EIGHTS];
#pragma unroll
  for (int e = 0; e < EIGHTS; ++e) {
    PanelB::load(panel_b, column + 8 * e, b[e].high);
    b[e].split();
  }
#pragma unroll
  for (int s = 0; s < SIXTEENS; ++s) {
    Parts<E, P::A_PARTS, Step<E>::SIXTEEN> a;
    PanelA::load(panel_a, row + 16 * s, a.high);
    a.split();
#pragma unroll
    for (int e = 0; e < EIGHTS; ++e) multiply_step(a, b[e], sums[s][e]);
  }
}

// Returns the sum of a[row][k] b[column][k] over k in [begin, end), without tensor cores: it adds one term at a time.
template <class A, class B>
__device__ __forceinline__ Arithmetic<A> sum_of_products(const Operand& a, const Operand& b, int64_t group, int row,
                                                         int column, int begin, int end) {
  const A* x = a.source.pointer<A>(group, row, begin);
  const B* y = b.source.pointer<B>(group, column, begin);
  Arithmetic<A> sum = 0;
#pragma unroll 1
  for (int k = begin; k < end; ++k, x += a.source.stride, y += b.source.stride)
    sum = multiply_add(number(*x), number(*y), sum);
  return sum;
}

// Ends a chain of additions, or after the last step the sum of all chains. `chains` has a slot for each sum of a tile.
template <class Shape>
__device__ __forceinline__ void add_chain(int done, int steps, float* chains, float (&sums)[Shape::SUMS]) {
  const bool last = done >= steps;
  if (steps <= CHAIN || (done % CHAIN != 0 && !last)) return;
#pragma unroll
  for (int i = 0; i < Shape::SUMS; ++i) {
    float& chain = chains[i * Shape::THREADS + threadIdx.x];
    const float total = done <= CHAIN ? sums[i] : chain + sums[i];
    chain = total;
    sums[i] = last ? total : 0;
  }
}

// Computes sums = sum over k of a[row][k] b[column][k] for the thread's places of a tile that begins at `row` and
// `column`, in the order of k in [begin, end). All threads of the block call it. ALONG_ROWS and PERMUTED describe the
// panels; those of b are permuted if they are not along rows.
template <class Shape, class A, class B, bool A_ALONG_ROWS, bool B_ALONG_ROWS, class C>
__device__ __forceinline__ void multiply_tile(const Operand& a, const Operand& b, int64_t group, int row, int column,
                                              int begin, int end, C (&sums)[Shape::SIXTEENS][Shape::EIGHTS][4]) {
  using P = Product<A, B>;
  using E = typename P::E;
  using PanelA = Panel<E, Shape::ROWS, A_ALONG_ROWS>;
  using PanelB = Panel<E, Shape::COLUMNS, B_ALONG_ROWS>;
  constexpr int PANELS = Shape::PANELS, STAGES = Shape::STAGES, THREADS = Shape::THREADS;
  constexpr int BYTES = PanelA::BYTES + PanelB::BYTES;
  constexpr bool CHAINED = std::is_same_v<Shape, SmallTile> && sizeof(C) == 4, PERMUTED = !B_ALONG_ROWS;
  UDML_SHARED(char, panels, STAGES* PANELS* BYTES);
  UDML_SHARED(C, chains, CHAINED ? Shape::SUMS * THREADS : 1);
  C(&flat)[Shape::SUMS] = reinterpret_cast<C(&)[Shape::SUMS]>(sums);
#pragma unroll
  for (int i = 0; i < Shape::SUMS; ++i) flat[i] = 0;
  PanelLoader<A, E, Shape::ROWS, A_ALONG_ROWS, false, THREADS> loader_a(a, group, row, begin, end);
  PanelLoader<B, E, Shape::COLUMNS, B_ALONG_ROWS, PERMUTED, THREADS> loader_b(b, group, column, begin, end);
  const int steps = (end - begin + PanelA::TERMS - 1) / PanelA::TERMS;
  int loaded = 0, used = 0;  // the offsets of the stages
  const auto advance = [](int offset) { return offset == (STAGES - 1) * PANELS * BYTES ? 0 : offset + PANELS * BYTES; };
  // Panels of a stage that are past the end are 0.
  const auto load = [&](int step) {
    if (step < steps) {
#pragma unroll
      for (int panel = 0; panel < PANELS; ++panel) {
        loader_a.load(panels + loaded + panel * BYTES);
        loader_b.load(panels + loaded + panel * BYTES + PanelA::BYTES);
      }
    }
    loaded = advance(loaded);
    commit_copies();
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) load(stage * PANELS);
#pragma unroll 1
  for (int step = 0; step < steps; step += PANELS, used = advance(used)) {
    wait_for_copies<STAGES - 2>();
    // Every thread's copies are complete, and every thread has read the panels that the next copies overwrite.
    __syncthreads();
    load(step + (STAGES - 1) * PANELS);
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) {
      const char* at = panels + used + panel * BYTES;
      multiply_panels<P, PanelA, PanelB>(at, at + PanelA::BYTES, Shape::warp_row(), Shape::warp_column(), sums);
    }
    if constexpr (CHAINED) add_chain<Shape>(step + PANELS, steps, chains, flat);
  }
  // The panels have been read.
  __syncthreads();
  if constexpr (P::SPLIT) {
    // A number that is infinite, not a number, or too large for its parts makes the sum NaN. What it should be, float
    // arithmetic decides. The panels' memory makes the sums an array.
    constexpr int AT_ONCE = std::min(Shape::SUMS, 16);
    C* slots = reinterpret_cast<C*>(panels) + threadIdx.x;
#pragma unroll
    for (int part = 0; part < Shape::SUMS; part += AT_ONCE) {
      bool odd = false;
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) odd |= !is_finite(flat[part + i]);
      if (!odd) continue;
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) slots[i * THREADS] = flat[part + i];
#pragma unroll 1
      for (int i = 0; i < AT_ONCE; ++i) {
        const int r = row + Shape::row_of(part + i), c = column + Shape::template column_of<PERMUTED>(part + i);
        if (!is_finite(slots[i * THREADS]) && r < a.rows && c >= 0 && c < b.rows)
          slots[i * THREADS] = sum_of_products<A, B>(a, b, group, r, c, begin, end);
      }
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) flat[part + i] = slots[i * THREADS];
    }
    __syncthreads();
  }
}

// Stores x and, if `second`, y beside it; `paired` says that the two are aligned.
template <class S, class C>
__device__ __forceinline__ void store_two(char* data, int64_t i, C x, C y, bool second, bool paired) {
  S* p = reinterpret_cast<S*>(data) + i;
  if constexpr (sizeof(S) == 2) {
    const uint32_t pair = packed(x, y, S{});
    const uint16_t halves[2] = {static_cast<uint16_t>(pair), static_cast<uint16_t>(pair >> 16)};
    if (paired) *reinterpret_cast<uint32_t*>(p) = pair;
    else reinterpret_cast<uint16_t*>(p)[0] = halves[0];
    if (!paired && second) reinterpret_cast<uint16_t*>(p)[1] = halves[1];
  } else {
    using Pair = std::conditional_t<sizeof(S) == 4, float2, double2>;
    if (paired) *reinterpret_cast<Pair*>(p) = Pair{x, y};
    else p[0] = x;
    if (!paired && second) p[1] = y;
  }
}

// Calls body(group, tile down, tile across) for every tile of the launch. All threads of a block call it together.
template <class Body>
__device__ __forceinline__ void for_each_product_tile(int64_t groups, int down, int across, const Body& body) {
  const int64_t tiles = static_cast<int64_t>(down) * across;
#pragma unroll 1
  for (int64_t group = blockIdx.y; group < groups; group += gridDim.y)
#pragma unroll 1
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int i = static_cast<int>(tile / across);
      body(group, i, static_cast<int>(tile - static_cast<int64_t>(i) * across));
    }
}

// ---- Host code.

// Calls f with the shape of tile for a product of `rows` by `columns` sums over terms of type E: Larger or SmallTile.
template <class E, class Larger, class Function>
void with_tile(int64_t rows, int64_t columns, int64_t groups, int64_t terms, Function&& f) {
  // For about every second multiprocessor one.
  constexpr int64_t ENOUGH = 64;
  if constexpr (sizeof(E) <= 4) {
    if (groups * ceil_div(rows, LargeTile::ROWS) * ceil_div(columns, LargeTile::COLUMNS) >= ENOUGH &&
        terms <= CHAIN * Step<E>::TERMS)
      return f(Larger{});
  }
  f(SmallTile{});
}

}  // namespace udml
