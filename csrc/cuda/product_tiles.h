// Matrix products by tiles of 32 by 64 sums for every size, so that the sums of a row do not depend on the number of
// rows.
#pragma once

#include "inputs.h"
#include "lanes.h"

namespace udml {

// A tile has DOWN by ACROSS sums of products and processes panels of DEPTH terms. Each thread has 4 by 4 sums.
inline constexpr int DOWN = 32, ACROSS = 64, DEPTH = 16, TILE_THREADS = DOWN * ACROSS / 16;

// The number of panels that form one chain of additions; the rounding error of a longer float32 chain exceeds the
// tolerance. The sums of finished chains stay in shared memory, one slot per sum, because registers are scarce.
inline constexpr int CHAIN = 512 / DEPTH;

// The number of blocks, each with one tile, for which a multiprocessor must have registers.
template <class C>
inline constexpr int TILE_BLOCKS_PER_SM = sizeof(C) == 4 ? 4 : 2;

// A vector of 16 bytes.
template <class C>
struct alignas(16) Vector {
  C x[16 / sizeof(C)];
};

template <class C>
__device__ __forceinline__ void load_four(const C* p, C (&x)[4]) {
  constexpr int N = 16 / sizeof(C);
#pragma unroll
  for (int i = 0; i < 4; i += N) {
    const Vector<C> v = *reinterpret_cast<const Vector<C>*>(p + i);
#pragma unroll
    for (int j = 0; j < N; ++j) x[i + j] = v.x[j];
  }
}
template <class C>
__device__ __forceinline__ void store_four(C* p, const C (&x)[4]) {
  constexpr int N = 16 / sizeof(C);
#pragma unroll
  for (int i = 0; i < 4; i += N) {
    Vector<C> v;
#pragma unroll
    for (int j = 0; j < N; ++j) v.x[j] = x[i + j];
    *reinterpret_cast<Vector<C>*>(p + i) = v;
  }
}

// Groups of rows of elements with any strides.
struct Strided {
  const char* data = nullptr;
  int64_t group_stride = 0, row_stride = 0, stride = 0;
  ScalarType dtype = ScalarType::Float;

  __device__ __forceinline__ int64_t offset(int64_t group, int64_t row, int64_t e) const {
    return group * group_stride + row * row_stride + e * stride;
  }
  template <class C>
  __device__ __forceinline__ C at(int64_t group, int64_t row, int64_t e) const {
    return load_as<C>(data, dtype, offset(group, row, e));
  }
};

// Loads four elements with distance `step` as raw bits; a two-byte element takes one word. Only the elements [first,
// end) exist, the others become 0. to_numbers converts them later, so that the loads do not wait.
template <class T, class C>
__device__ __forceinline__ void fetch_as(const char* at, int64_t step, int first, int end, C (&x)[4]) {
  const T* p = reinterpret_cast<const T*>(at);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T value = i >= first && i < end ? p[i * step] : T(0);
    if constexpr (std::is_same_v<T, C>) x[i] = value;
    else x[i] = from_bits(value);
  }
}
__device__ __forceinline__ void fetch(ScalarType dtype, const char* at, int64_t step, int first, int end,
                                      float (&x)[4]) {
  if (dtype == ScalarType::Float) return fetch_as<float>(at, step, first, end, x);
  fetch_as<uint16_t>(at, step, first, end, x);
}
__device__ __forceinline__ void fetch(ScalarType, const char* at, int64_t step, int first, int end, double (&x)[4]) {
  fetch_as<double>(at, step, first, end, x);
}

// Loads four neighboring elements as raw bits; two-byte elements take two words.
__device__ __forceinline__ void fetch_wide(ScalarType dtype, const char* at, float (&x)[4]) {
  if (dtype == ScalarType::Float) return load_four(reinterpret_cast<const float*>(at), x);
  const uint2 words = *reinterpret_cast<const uint2*>(at);
  x[0] = from_bits(static_cast<int32_t>(words.x)), x[1] = from_bits(static_cast<int32_t>(words.y));
}
__device__ __forceinline__ void fetch_wide(ScalarType, const char* at, double (&x)[4]) {
  load_four(reinterpret_cast<const double*>(at), x);
}

template <class T>
__device__ __forceinline__ void widen(bool wide, float (&x)[4]) {
  float2 pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = unpacked(static_cast<uint32_t>(bits(x[i])), T{});
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = !wide ? pairs[i].x : i % 2 == 0 ? pairs[i / 2].x : pairs[i / 2].y;
}
template <int N>
__device__ __forceinline__ void to_numbers(ScalarType dtype, bool wide, float (&x)[N][4]) {
  if (dtype == ScalarType::Float) return;
#pragma unroll
  for (int n = 0; n < N; ++n)
    dtype == ScalarType::BFloat16 ? widen<__nv_bfloat16>(wide, x[n]) : widen<__half>(wide, x[n]);
}
template <int N>
__device__ __forceinline__ void to_numbers(ScalarType, bool, double (&)[N][4]) {}

template <class C>
__host__ __device__ constexpr int64_t item_size(ScalarType dtype) {
  return sizeof(C) == 8 ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

// One factor of a matrix product, a matrix of rows by terms. A thread loads four neighboring terms of one row. With
// `along_rows`, neighboring rows are contiguous in memory instead of terms, and it loads one term of four neighboring
// rows. With `wide`, no group of four crosses the end of the matrix, so one vector load fetches it.
struct Operand {
  Strided source;
  int rows = 0;
  bool along_rows = false, wide = false;
};

// Loads a thread's part of a ROWS by DEPTH panel of one factor: FOURS groups of four numbers, SPAN terms apart. In
// shared memory, a panel stores the rows of one term contiguously.
template <class C, int ROWS>
struct PanelLoader {
  static constexpr int SPAN = 4 * TILE_THREADS / ROWS, FOURS = DEPTH / SPAN;
  static constexpr int PITCH = ROWS + 16 / sizeof(C), VECTORS = DEPTH * PITCH * sizeof(C) / 16;
  const Operand& operand;
  const char* at;
  int64_t span;
  int row, k, end, slot;
  C x[FOURS][4];

  // Loads the terms in [begin, end) of ROWS rows, starting at row `first`. Everything else counts as 0: terms outside
  // the range, and rows that the operand does not have. Neighboring lanes read 8 terms of a row, and the stores of a
  // warp have no bank conflicts.
  __device__ __forceinline__ PanelLoader(const Operand& operand, int64_t group, int first, int begin, int end)
      : operand(operand), end(end) {
    const int i = static_cast<int>(threadIdx.x);
    row = operand.along_rows ? 4 * (i % (ROWS / 4)) : i / 2 % ROWS;
    k = operand.along_rows ? i / (ROWS / 4) : 4 * (i % 2 + i / (2 * ROWS) * 2);
    slot = k * PITCH + row;
    row += first, k += begin;
    const int64_t item = item_size<C>(operand.source.dtype);
    at = operand.source.data + operand.source.offset(group, row, k) * item;
    span = SPAN * operand.source.stride * item;
    if ((operand.wide || !operand.along_rows) && (row < 0 || row >= operand.rows)) this->end = begin;
  }

  __device__ __forceinline__ void load() {
    const ScalarType dtype = operand.source.dtype;
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
      const int left = end - k - f * SPAN;
      if (operand.wide) {
        x[f][0] = x[f][1] = x[f][2] = x[f][3] = 0;
        if (left > 0) fetch_wide(dtype, at + f * span, x[f]);
      } else if (operand.along_rows) {
        fetch(dtype, at + f * span, operand.source.row_stride, -row, left > 0 ? operand.rows - row : 0, x[f]);
      } else {
        fetch(dtype, at + f * span, operand.source.stride, 0, left, x[f]);
      }
    }
    at += FOURS * span, k += DEPTH;
  }

  __device__ __forceinline__ void store(C* panel) {
    to_numbers(operand.source.dtype, operand.wide, x);
    panel += slot;
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
      if (operand.along_rows) {
        store_four(panel + f * SPAN * PITCH, x[f]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) panel[(f * SPAN + i) * PITCH] = x[f][i];
      }
    }
  }
};

// The position of a thread's sums in a tile.
__device__ __forceinline__ int down_of_thread() { return static_cast<int>(threadIdx.x / (ACROSS / 4)) * 4; }
__device__ __forceinline__ int across_of_thread() { return static_cast<int>(threadIdx.x % (ACROSS / 4)) * 4; }

// Computes sums[i][j] = sum over k of a[row_a + i][k] b[row_b + j][k] for a thread's rows i and j of a tile, in the
// order of k in [begin, end). All threads of the block call it.
template <class C>
__device__ __forceinline__ void multiply_tile(const Operand& a, const Operand& b, int64_t group, int row_a, int row_b,
                                              int begin, int end, C (&sums)[4][4]) {
  using A = PanelLoader<C, DOWN>;
  using B = PanelLoader<C, ACROSS>;
  UDML_SHARED(Vector<C>, panels_a, 2 * A::VECTORS);
  UDML_SHARED(Vector<C>, panels_b, 2 * B::VECTORS);
  constexpr bool CHAINED = sizeof(C) == 4;
  UDML_SHARED(C, chains, CHAINED ? 16 * TILE_THREADS : 1);
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[i / 4][i % 4] = 0;
  A loader_a(a, group, row_a, begin, end);
  B loader_b(b, group, row_b, begin, end);
  // The loop loads the next panel while it multiplies the current one.
#pragma unroll 1
  for (int step = 0, k = begin;; ++step, k += DEPTH) {
    const bool more = k < end;
    if (more) {
      loader_a.load();
      loader_b.load();
    }
    if (step > 0) {
      const int before = (step - 1) & 1;
      const C* panel_a = reinterpret_cast<const C*>(panels_a + before * A::VECTORS) + down_of_thread();
      const C* panel_b = reinterpret_cast<const C*>(panels_b + before * B::VECTORS) + across_of_thread();
#pragma unroll(sizeof(C) == 8 ? 4 : DEPTH)
      for (int d = 0; d < DEPTH; ++d) {
        C x[4], y[4];
        load_four(panel_a + d * A::PITCH, x);
        load_four(panel_b + d * B::PITCH, y);
#pragma unroll
        for (int i = 0; i < 16; ++i) sums[i / 4][i % 4] = multiply_add(x[i / 4], y[i % 4], sums[i / 4][i % 4]);
      }
    }
    if (more) {
      loader_a.store(reinterpret_cast<C*>(panels_a + (step & 1) * A::VECTORS));
      loader_b.store(reinterpret_cast<C*>(panels_b + (step & 1) * B::VECTORS));
    }
    __syncthreads();
    if (CHAINED && step > 0 && step % CHAIN == 0 && more) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        C& chain = chains[i * TILE_THREADS + threadIdx.x];
        chain = step == CHAIN ? sums[i / 4][i % 4] : chain + sums[i / 4][i % 4];
        sums[i / 4][i % 4] = 0;
      }
    }
    if (more) continue;
    if (CHAINED && step > CHAIN) {
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[i / 4][i % 4] += chains[i * TILE_THREADS + threadIdx.x];
    }
    return;
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

// Describes a tensor of shape (groups, rows, elements) or (rows, elements). With inner = 1 there is no dimension of
// rows: (groups, elements) or (elements).
inline Strided strided(const Tensor& t, int64_t inner = 2) {
  Strided s;
  s.data = static_cast<const char*>(t.const_data_ptr());
  s.stride = t.stride(t.dim() - 1);
  if (inner == 2) s.row_stride = t.stride(t.dim() - 2);
  if (t.dim() > inner) s.group_stride = t.stride(0);
  s.dtype = t.scalar_type();
  return s;
}
inline Strided strided(const OptionalTensor& t) { return t ? strided(*t) : Strided{}; }

// `shifted`: tiles may begin at a row that is not a multiple of 4.
template <class C>
Operand operand(const Strided& from, int64_t rows, int64_t size, bool shifted = false) {
  Operand o{from, static_cast<int>(rows), from.row_stride == 1 && from.stride != 1, false};
  const int64_t outer = o.along_rows ? from.stride : from.row_stride, count = o.along_rows ? rows : size;
  o.wide = (o.along_rows ? !shifted : from.stride == 1) && count % 4 == 0 && outer % 4 == 0 &&
           from.group_stride % 4 == 0 &&
           reinterpret_cast<uintptr_t>(from.data) % static_cast<uintptr_t>(4 * item_size<C>(from.dtype)) == 0;
  return o;
}

inline Strided transposed(Strided s) {
  std::swap(s.row_stride, s.stride);
  return s;
}

inline int ceil_div(int64_t size, int64_t block) { return static_cast<int>((size + block - 1) / block); }

}  // namespace udml
