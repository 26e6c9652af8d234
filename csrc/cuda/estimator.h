// The noise estimator: two linear layers, with an activation and dropout between. Its products go by tiles of 32 by
// 64 sums, whatever the batch: a row's results do not depend on the rows beside it.
#pragma once

#include "../ops.h"
#include "noise.h"
#include "tiles.h"

namespace udml {

// In the order of udml_kernels.reference.noise_regression.ACTIVATIONS.
enum Activation : int { IDENTITY, RELU, GELU, SILU };

// A tile: DOWN by ACROSS sums of products, DEPTH terms of each at a time; a thread has 4 by 4 of them.
inline constexpr int DOWN = 32, ACROSS = 64, DEPTH = 16, TILE_THREADS = DOWN * ACROSS / 16;

// Panels of DEPTH terms that are added up in one chain: in float32 the rounding error of a long one is beyond the
// tolerance. The sums of the chains before wait in shared memory, a place to each, and take no registers.
inline constexpr int CHAIN = 512 / DEPTH;

// Blocks of a tile each that a multiprocessor is to have registers for.
template <class C>
inline constexpr int TILE_BLOCKS = sizeof(C) == 4 ? 4 : 2;

// What moves as 16 bytes.
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

// Groups of rows of elements, at any strides.
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

// Four elements `step` apart, of which [first, end) exist, as they lie in memory, one of two bytes to a word. They
// become numbers once they have arrived.
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
__device__ __forceinline__ void fetch(ScalarType dtype, const char* at, int64_t step, int first, int end, float (&x)[4]) {
  if (dtype == ScalarType::Float) return fetch_as<float>(at, step, first, end, x);
  fetch_as<uint16_t>(at, step, first, end, x);
}
__device__ __forceinline__ void fetch(ScalarType, const char* at, int64_t step, int first, int end, double (&x)[4]) {
  fetch_as<double>(at, step, first, end, x);
}

// Four neighbours, those of two bytes as two words.
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
  for (int n = 0; n < N; ++n) dtype == ScalarType::BFloat16 ? widen<__nv_bfloat16>(wide, x[n]) : widen<__half>(wide, x[n]);
}
template <int N>
__device__ __forceinline__ void to_numbers(ScalarType, bool, double (&)[N][4]) {}

template <class C>
__host__ __device__ constexpr int64_t item_size(ScalarType dtype) {
  return sizeof(C) == 8 ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

// One factor of a product: rows of terms. Fours of it lie along its rows' terms or, where those are no neighbours but
// the rows are, along its rows. `wide`: each of them exists as a whole or not at all, and moves at once.
struct Operand {
  Strided from;
  int rows = 0;
  bool along_rows = false, wide = false;
};

// A thread's part of one factor: FOURS fours, SPAN terms apart, of a panel of ROWS by DEPTH. Panels lie in shared
// memory term by term.
template <class C, int ROWS>
struct Feed {
  static constexpr int SPAN = 4 * TILE_THREADS / ROWS, FOURS = DEPTH / SPAN;
  static constexpr int PITCH = ROWS + 16 / sizeof(C), VECTORS = DEPTH * PITCH * sizeof(C) / 16;
  const Operand& operand;
  const char* at;
  int64_t span;
  int row, k, end, slot;
  C x[FOURS][4];

  // Terms [begin, end) of the rows from `first` on; what lies outside of them, or of the operand, is 0. Neighbouring
  // lanes read 8 terms of a row, and no two of a warp write to one bank.
  __device__ __forceinline__ Feed(const Operand& operand, int64_t group, int first, int begin, int end) : operand(operand), end(end) {
    const int i = static_cast<int>(threadIdx.x);
    row = operand.along_rows ? 4 * (i % (ROWS / 4)) : i / 2 % ROWS;
    k = operand.along_rows ? i / (ROWS / 4) : 4 * (i % 2 + i / (2 * ROWS) * 2);
    slot = k * PITCH + row;
    row += first, k += begin;
    const int64_t item = item_size<C>(operand.from.dtype);
    at = operand.from.data + operand.from.offset(group, row, k) * item;
    span = SPAN * operand.from.stride * item;
    if ((operand.wide || !operand.along_rows) && (row < 0 || row >= operand.rows)) this->end = begin;
  }

  __device__ __forceinline__ void load() {
    const ScalarType dtype = operand.from.dtype;
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
      const int left = end - k - f * SPAN;
      if (operand.wide) {
        x[f][0] = x[f][1] = x[f][2] = x[f][3] = 0;
        if (left > 0) fetch_wide(dtype, at + f * span, x[f]);
      } else if (operand.along_rows) {
        fetch(dtype, at + f * span, operand.from.row_stride, -row, left > 0 ? operand.rows - row : 0, x[f]);
      } else {
        fetch(dtype, at + f * span, operand.from.stride, 0, left, x[f]);
      }
    }
    at += FOURS * span, k += DEPTH;
  }

  __device__ __forceinline__ void store(C* panel) {
    to_numbers(operand.from.dtype, operand.wide, x);
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

// A thread's place in a tile.
__device__ __forceinline__ int down_of_thread() { return static_cast<int>(threadIdx.x / (ACROSS / 4)) * 4; }
__device__ __forceinline__ int across_of_thread() { return static_cast<int>(threadIdx.x % (ACROSS / 4)) * 4; }

// sums[i][j] = sum over k of a[row_a + i][k] b[row_b + j][k], in the order of k in [begin, end), for the thread's rows
// i and j of a tile. All threads of the block call it.
template <class C>
__device__ __forceinline__ void multiply_tile(const Operand& a, const Operand& b, int64_t group, int row_a, int row_b,
                                              int begin, int end, C (&sums)[4][4]) {
  using A = Feed<C, DOWN>;
  using B = Feed<C, ACROSS>;
  UDML_SHARED(Vector<C>, panels_a, 2 * A::VECTORS);
  UDML_SHARED(Vector<C>, panels_b, 2 * B::VECTORS);
  constexpr bool CHAINED = sizeof(C) == 4;
  UDML_SHARED(C, chains, CHAINED ? 16 * TILE_THREADS : 1);
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[i / 4][i % 4] = 0;
  A feed_a(a, group, row_a, begin, end);
  B feed_b(b, group, row_b, begin, end);
  // The next panel's numbers are on their way while this one's are multiplied.
#pragma unroll 1
  for (int step = 0, k = begin;; ++step, k += DEPTH) {
    const bool more = k < end;
    if (more) {
      feed_a.load();
      feed_b.load();
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
      feed_a.store(reinterpret_cast<C*>(panels_a + (step & 1) * A::VECTORS));
      feed_b.store(reinterpret_cast<C*>(panels_b + (step & 1) * B::VECTORS));
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

// body(group, tile down, tile across) for every tile of the launch. All threads of a block run it together.
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

// e^x
template <class C>
__device__ __forceinline__ C power(C x) { return exponential_of_half<C>(x + x); }

// value[i] = activation(h[i]) and, if asked for, slope[i] = its slope there.
template <bool SLOPE, class C>
__device__ __forceinline__ void activate(int activation, const C (&h)[4][4], C (&value)[4][4], C (&slope)[4][4]) {
  const auto each = [&](const auto& one) {
#pragma unroll
    for (int i = 0; i < 16; ++i) one(h[i / 4][i % 4], value[i / 4][i % 4], slope[i / 4][i % 4]);
  };
  if (activation == RELU) {
    each([](C x, C& y, C& by_x) {
      y = x < C(0) ? C(0) : x;
      // A NaN passes, as torch has it.
      if (SLOPE) by_x = x <= C(0) ? C(0) : C(1);
    });
  } else if (activation == GELU) {
    each([](C x, C& y, C& by_x) {
      const C cdf = normal_cdf(x);
      y = x * cdf;
      if (SLOPE) by_x = cdf + x * power(x * x * C(-0.5)) * C(0.39894228040143268);
    });
  } else if (activation == SILU) {
    each([](C x, C& y, C& by_x) {
      const C raised = power(-x) + C(1);
      y = x / raised;
      const C s = C(1) / raised;
      if (SLOPE) by_x = s * (x * (C(1) - s) + C(1));
    });
  } else {
    each([](C x, C& y, C& by_x) {
      y = x;
      if (SLOPE) by_x = C(1);
    });
  }
}

// Whether relu lets no gradient through, not even an infinite one.
template <class C>
__device__ __forceinline__ bool is_cut(int activation, C slope) {
  return activation == RELU && slope == C(0);
}

// A thread's units of some rows: the first of each. Units before 0 do not exist either.
struct Units {
  int64_t group;
  int row, unit;
};

template <class C>
struct Estimator {
  Operand x, weight1;
  Strided bias1, weight2;
  int64_t groups;
  int batch, features, hidden, outputs, activation, row_blocks, unit_blocks;
  float dropout_p;
  C scale;
  Noise noise;

  // A unit is element m hidden + unit of its sample, and elements draw their noise in fours: where `hidden` is no
  // multiple of 4, blocks of units begin up to 3 units early.
  __device__ __forceinline__ Units units(int64_t group, int row_block, int unit_block) const {
    const int early = static_cast<int>(group * hidden % 4);
    return {group, row_block * DOWN + down_of_thread(), unit_block * ACROSS + across_of_thread() - early};
  }

  // weight1 . x + bias1
  __device__ __forceinline__ void first_layer(const Units& at, C (&h)[4][4]) const {
    multiply_tile(x, weight1, at.group, at.row - down_of_thread(), at.unit - across_of_thread(), 0, features, h);
    C bias[4];
    of_units(bias1, at, 0, bias);
#pragma unroll
    for (int i = 0; i < 16; ++i) h[i / 4][i % 4] += bias[i % 4];
  }

  // What each unit has in a row of `from`; 0 where it does not exist.
  __device__ __forceinline__ void of_units(const Strided& from, const Units& at, int row, C (&x)[4]) const {
    C values[1][4];
    const char* p = from.data + from.offset(at.group, row, at.unit) * item_size<C>(from.dtype);
    fetch(from.dtype, p, from.stride, -at.unit, hidden - at.unit, values[0]);
    to_numbers(from.dtype, false, values);
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = values[0][j];
  }

  // A bit for each number of the tile that exists and that dropout keeps.
  __device__ __forceinline__ uint32_t kept(const Units& at) const {
    uint32_t exist = 0, all = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) exist |= static_cast<uint32_t>(at.unit + j >= 0 && at.unit + j < hidden) << j;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t keep = at.row + i < batch ? exist : 0;
      if (keep != 0 && opaque(noise.seed) != nullptr) {
        float u[4];
        sample_of(noise, at.row + i).uniforms(at.group * hidden + at.unit, u);
#pragma unroll
        for (int j = 0; j < 4; ++j) keep &= ~(static_cast<uint32_t>(!(u[j] >= dropout_p)) << j);
      }
      all |= keep << 4 * i;
    }
    return all;
  }
};

// ---- The host's side.

// The last `inner` dimensions are rows of elements, or elements alone.
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

// `shifted`: its rows are not counted from a multiple of 4.
template <class C>
Operand operand(const Strided& from, int64_t rows, int64_t size, bool shifted = false) {
  Operand o{from, static_cast<int>(rows), from.row_stride == 1 && from.stride != 1, false};
  const int64_t outer = o.along_rows ? from.stride : from.row_stride, count = o.along_rows ? rows : size;
  o.wide = (o.along_rows ? !shifted : from.stride == 1) && count % 4 == 0 && outer % 4 == 0 && from.group_stride % 4 == 0 &&
           reinterpret_cast<uintptr_t>(from.data) % static_cast<uintptr_t>(4 * item_size<C>(from.dtype)) == 0;
  return o;
}

inline Strided transposed(Strided s) {
  std::swap(s.row_stride, s.stride);
  return s;
}

inline int blocks_of(int64_t size, int64_t block) { return static_cast<int>((size + block - 1) / block); }

template <class C>
Estimator<C> estimator(const Tensor& std, const Tensor& weight1, const Tensor& bias1, const Tensor& weight2, const Tensor& bias2,
                       int64_t activation, double dropout_p, const OptionalTensor& seed, int64_t stream, const OptionalTensor& sample_ids) {
  expect(std.dim() == 2 || std.dim() == 3, "std: expected (B, D) or (M, B, D)");
  expect(weight1.dim() == std.dim() && bias1.dim() == std.dim() - 1 && weight2.dim() == std.dim() && bias2.dim() == std.dim() - 1,
         "weights: expected the group dimension of std");
  for (const Tensor& t : {weight1, bias1, weight2, bias2})
    expect(t.scalar_type() == std.scalar_type(), "weights: expected the dtype of std");
  const int64_t d = std.dim(), groups = d == 3 ? std.size(0) : 1, batch = std.size(d - 2), features = std.size(d - 1);
  const int64_t hidden = weight1.size(d - 2), outputs = weight2.size(d - 2);
  for (const Tensor& t : {weight1, bias1, weight2, bias2})
    expect(d == 2 || t.size(0) == groups, "weights: expected the group dimension of std");
  expect(weight1.size(d - 1) == features && bias1.size(d - 2) == hidden && weight2.size(d - 1) == hidden && bias2.size(d - 2) == outputs,
         "weights: expected (H, D), (H,), (O, H) and (O,), each with the group dimension of std");
  expect(dropout_p <= 0 || seed.has_value(), "seed: expected a tensor");
  for (int64_t n : {batch, features, hidden, outputs}) Tiles::counted(n + ACROSS);
  const bool shifted = groups > 1 && hidden % 4 != 0;
  Estimator<C> net;
  net.x = operand<C>(strided(std), batch, features);
  net.weight1 = operand<C>(strided(weight1), hidden, features, shifted);
  net.bias1 = strided(bias1, 1);
  net.weight2 = strided(weight2);
  net.groups = groups;
  net.batch = static_cast<int>(batch), net.features = static_cast<int>(features);
  net.hidden = static_cast<int>(hidden), net.outputs = static_cast<int>(outputs);
  net.activation = static_cast<int>(activation);
  net.row_blocks = blocks_of(batch, DOWN);
  net.unit_blocks = hidden == 0 ? 0 : blocks_of(hidden + (shifted ? 3 : 0), ACROSS);
  net.dropout_p = static_cast<float>(dropout_p);
  net.scale = static_cast<C>(dropout_p > 0 ? dropout_p < 1 ? 1 / (1 - dropout_p) : 0 : 1);
  net.noise = noise_of(dropout_p > 0 ? seed : std::nullopt, stream, sample_ids, batch);
  return net;
}

}  // namespace udml
