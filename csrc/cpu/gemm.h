// A small matrix product C = A B for the noise estimator. The rows of B are contiguous; A may have any strides, so A^T
// needs no copy. Every element is a sum of chains of GEMM_DEPTH fused multiply-adds in the order of k. A result
// therefore depends neither on its tile nor on the number of rows.
#pragma once

#include "tensor.h"

namespace udml {

// 6 x 4 accumulators fill the 32 registers of AVX-512. The other levels have 16 registers.
inline constexpr int GEMM_ROWS = W == 16 ? 6 : 4;
inline constexpr int GEMM_VECTORS = W == 16 ? 4 : 2;

// The rounding error of a chain grows with its length: a float32 chain of 10,000 terms exceeds the tolerance.
inline constexpr int64_t GEMM_DEPTH = 512;

template <class C>
struct Strided {
  const C* data;
  int64_t row, column;
};

template <class C, int R, int N, class Lanes, class Sink>
UDML_FN void gemm_tile(Strided<C> a, const C* b, int64_t ldb, int64_t depth, int64_t row, int64_t column, Lanes lanes,
                       const Sink& sink) {
  lanes_of<C> total[R][N] = {};
  for (int64_t begin = 0; begin < depth; begin += GEMM_DEPTH) {
    lanes_of<C> sum[R][N] = {};
    for (int64_t k = begin; k < std::min(depth, begin + GEMM_DEPTH); ++k) {
      lanes_of<C> right[N];
      for (int v = 0; v < N; ++v) right[v] = load_lanes(b + k * ldb + column + v * W, lanes);
      for (int r = 0; r < R; ++r) {
        const C left = a.data[(row + r) * a.row + k * a.column];
        for (int v = 0; v < N; ++v) sum[r][v] += right[v] * left;
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < N; ++v) total[r][v] += sum[r][v];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < N; ++v) sink(row + r, column + v * W, total[r][v], lanes);
}

template <class C, int N, class Lanes, class Sink>
inline void gemm_columns(Strided<C> a, const C* b, int64_t ldb, int64_t rows, int64_t depth, int64_t column,
                         Lanes lanes, const Sink& sink) {
  int64_t row = 0;
  for (; row + GEMM_ROWS <= rows; row += GEMM_ROWS)
    gemm_tile<C, GEMM_ROWS, N>(a, b, ldb, depth, row, column, lanes, sink);
  for (; row + 2 <= rows; row += 2) gemm_tile<C, 2, N>(a, b, ldb, depth, row, column, lanes, sink);
  for (; row < rows; ++row) gemm_tile<C, 1, N>(a, b, ldb, depth, row, column, lanes, sink);
}

// Computes A (rows x depth) times B (depth x columns, row stride ldb) and calls sink(row, column, sums, lanes) for
// every W columns of every row; `lanes` of the sums are valid.
template <class C, class Sink>
inline void gemm(Strided<C> a, const C* b, int64_t ldb, int64_t rows, int64_t depth, int64_t columns,
                 const Sink& sink) {
  const std::integral_constant<int64_t, W> all;
  int64_t column = 0;
  for (; column + GEMM_VECTORS * W <= columns; column += GEMM_VECTORS * W)
    gemm_columns<C, GEMM_VECTORS>(a, b, ldb, rows, depth, column, all, sink);
  for (; column + W <= columns; column += W) gemm_columns<C, 1>(a, b, ldb, rows, depth, column, all, sink);
  if (column < columns) gemm_columns<C, 1>(a, b, ldb, rows, depth, column, columns - column, sink);
}

// out[k * stride + r] = in[r * depth + k]
template <class C>
inline void transpose(const C* in, int64_t rows, int64_t depth, C* out, int64_t stride) {
  int64_t r = 0;
  if constexpr (sizeof(C) == 4) {
    for (; r + 4 <= rows; r += 4) {
      int64_t k = 0;
      for (; k + W <= depth; k += W) {
        u32 v[4];
        for (int q = 0; q < 4; ++q) v[q] = (u32)load(in + (r + q) * depth + k);
        transpose_in_fours(v[0], v[1], v[2], v[3]);
        for (int q = 0; q < 4; ++q) {
          uint32_t words[W];
          memcpy(words, &v[q], sizeof words);
          for (int i = 0; i < W / 4; ++i) memcpy(out + (k + 4 * i + q) * stride + r, words + 4 * i, 16);
        }
      }
      for (; k < depth; ++k)
        for (int q = 0; q < 4; ++q) out[k * stride + r + q] = in[(r + q) * depth + k];
    }
  }
  for (; r < rows; ++r)
    for (int64_t k = 0; k < depth; ++k) out[k * stride + r] = in[r * depth + k];
}

}  // namespace udml
