// The noise estimator: two linear layers with an activation and dropout between them. Its matrix products use tiles of
// 32 by 64 sums for every batch size, so the results of a row do not depend on the number of rows.
#pragma once

#include "../op.h"
#include "noise.h"
#include "tiles.h"

namespace udml {

// The order matches udml_kernels.reference.noise_regression.ACTIVATIONS.
enum Activation : int { IDENTITY, RELU, GELU, SILU };

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

// One factor of a matrix product: rows of terms. Threads load groups of four neighboring terms of a row or, if only the
// rows are contiguous (`along_rows`), of four neighboring rows. `wide`: each group exists as a whole or not at all, so
// it is loaded at once.
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

  // Loads terms [begin, end) of the rows from `first` on; numbers outside them or outside the operand are 0.
  // Neighboring lanes read 8 terms of a row, and the stores of a warp have no bank conflicts.
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

// Returns e^x.
template <class C>
__device__ __forceinline__ C exponential_of(C x) { return exponential_of_half<C>(x + x); }

// Computes value[i] = activation(h[i]) and, if SLOPE, slope[i] = the derivative at h[i].
template <bool SLOPE, class C>
__device__ __forceinline__ void activate(int activation, const C (&h)[4][4], C (&value)[4][4], C (&slope)[4][4]) {
  const auto for_each_element = [&](const auto& one) {
#pragma unroll
    for (int i = 0; i < 16; ++i) one(h[i / 4][i % 4], value[i / 4][i % 4], slope[i / 4][i % 4]);
  };
  if (activation == RELU) {
    for_each_element([](C x, C& y, C& derivative) {
      y = x < C(0) ? C(0) : x;
      // Like torch, this propagates NaN.
      if (SLOPE) derivative = x <= C(0) ? C(0) : C(1);
    });
  } else if (activation == GELU) {
    for_each_element([](C x, C& y, C& derivative) {
      const C cdf = normal_cdf(x);
      y = x * cdf;
      if (SLOPE) derivative = cdf + x * exponential_of(x * x * C(-0.5)) * C(0.39894228040143268);
    });
  } else if (activation == SILU) {
    for_each_element([](C x, C& y, C& derivative) {
      const C denominator = exponential_of(-x) + C(1);
      y = x / denominator;
      const C s = C(1) / denominator;
      if (SLOPE) derivative = s * (x * (C(1) - s) + C(1));
    });
  } else {
    for_each_element([](C x, C& y, C& derivative) {
      y = x;
      if (SLOPE) derivative = C(1);
    });
  }
}

// Whether ReLU blocks the gradient, even an infinite one.
template <class C>
__device__ __forceinline__ bool blocks_gradient(int activation, C slope) {
  return activation == RELU && slope == C(0);
}

// The first row and the first hidden unit of a thread. Units before 0 do not exist.
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

  // A hidden unit is element group * hidden + unit of its sample, and random numbers come in groups of four. If
  // `hidden` is not a multiple of 4, blocks of units therefore begin up to 3 units early.
  __device__ __forceinline__ Units units(int64_t group, int row_block, int unit_block) const {
    const int early = static_cast<int>(group * hidden % 4);
    return {group, row_block * DOWN + down_of_thread(), unit_block * ACROSS + across_of_thread() - early};
  }

  // h = weight1 . x + bias1
  __device__ __forceinline__ void first_layer(const Units& at, C (&h)[4][4]) const {
    multiply_tile(x, weight1, at.group, at.row - down_of_thread(), at.unit - across_of_thread(), 0, features, h);
    C bias[4];
    load_units(bias1, at, 0, bias);
#pragma unroll
    for (int i = 0; i < 16; ++i) h[i / 4][i % 4] += bias[i % 4];
  }

  // Loads the value of each unit from a row of `from`; units that do not exist get 0.
  __device__ __forceinline__ void load_units(const Strided& from, const Units& at, int row, C (&x)[4]) const {
    C values[1][4];
    const char* p = from.data + from.offset(at.group, row, at.unit) * item_size<C>(from.dtype);
    fetch(from.dtype, p, from.stride, -at.unit, hidden - at.unit, values[0]);
    to_numbers(from.dtype, false, values);
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = values[0][j];
  }

  // Returns a bit for each of the thread's numbers that is set if the number exists and dropout keeps it.
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

// ---- Host code.

// The last two dimensions are rows and elements; with inner = 1, only the last dimension is elements.
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

template <class C>
Estimator<C> estimator(const Tensor& std, const Tensor& weight1, const Tensor& bias1, const Tensor& weight2,
                       const Tensor& bias2, int64_t activation, double dropout_p, const OptionalTensor& seed,
                       int64_t stream, const OptionalTensor& sample_ids) {
  expect(std.dim() == 2 || std.dim() == 3, "std: expected (B, D) or (M, B, D)");
  expect(weight1.dim() == std.dim() && bias1.dim() == std.dim() - 1 && weight2.dim() == std.dim() &&
             bias2.dim() == std.dim() - 1,
         "weights: expected the group dimension of std");
  for (const Tensor& t : {weight1, bias1, weight2, bias2})
    expect(t.scalar_type() == std.scalar_type(), "weights: expected the dtype of std");
  const int64_t d = std.dim(), groups = d == 3 ? std.size(0) : 1, batch = std.size(d - 2), features = std.size(d - 1);
  const int64_t hidden = weight1.size(d - 2), outputs = weight2.size(d - 2);
  for (const Tensor& t : {weight1, bias1, weight2, bias2})
    expect(d == 2 || t.size(0) == groups, "weights: expected the group dimension of std");
  expect(weight1.size(d - 1) == features && bias1.size(d - 2) == hidden && weight2.size(d - 1) == hidden &&
             bias2.size(d - 2) == outputs,
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
  net.row_blocks = ceil_div(batch, DOWN);
  net.unit_blocks = hidden == 0 ? 0 : ceil_div(hidden + (shifted ? 3 : 0), ACROSS);
  net.dropout_p = static_cast<float>(dropout_p);
  net.scale = static_cast<C>(dropout_p > 0 ? dropout_p < 1 ? 1 / (1 - dropout_p) : 0 : 1);
  net.noise = noise_of(dropout_p > 0 ? seed : std::nullopt, stream, sample_ids, batch);
  return net;
}

}  // namespace udml
