// The noise estimator: two linear layers with an activation and dropout between them.
#pragma once

#include "noise.h"
#include "product_tiles.h"
#include "tiles.h"

namespace udml {

// The order matches udml_kernels.reference.noise_regression.ACTIVATIONS.
enum Activation : int { IDENTITY, RELU, GELU, SILU };

// Returns e^x.
template <class C>
__device__ __forceinline__ C exponential_of(C x) {
  return exponential_of_half<C>(x + x);
}

// Computes value[i] = activation(h[i]) and, if SLOPE, slope[i] = the derivative at h[i].
template <bool SLOPE, int N, class C>
__device__ __forceinline__ void activate(int activation, const C (&h)[N][4], C (&value)[N][4], C (&slope)[N][4]) {
  const auto for_each_element = [&](const auto& one) {
#pragma unroll
    for (int i = 0; i < 4 * N; ++i) one(h[i / 4][i % 4], value[i / 4][i % 4], slope[i / 4][i % 4]);
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

// The first row and the first hidden unit of a thread. It has the units of quad i (see Estimator) of rows row + 8 r.
// Units before 0 do not exist.
struct Units {
  int64_t group;
  int row, unit;
};

// A thread's numbers of a tile of rows by hidden units: QUADS times four neighboring units of ROWS rows. Element
// [QUADS * r + q] is row + 8 r, units unit + 16 q, ..., + 3.
template <class Shape>
struct Quads {
  static constexpr int ROWS = 2 * Shape::SIXTEENS, QUADS = Shape::EIGHTS / 2, N = ROWS * QUADS;
};

// Partial sums over hidden units have this many units each, whatever the tile is.
inline constexpr int UNIT_BLOCK = 32;

template <class T>
struct Estimator {
  using C = Arithmetic<T>;
  Operand x, weight1;
  Strided bias1, weight2;
  int64_t groups;
  int batch, features, hidden, outputs, activation, unit_blocks;
  float dropout_p;
  C scale;
  Noise noise;

  // A hidden unit is element group * hidden + unit of its sample, and random numbers come in groups of four. If
  // `hidden` is not a multiple of 4, tiles of units therefore begin up to 3 units early.
  template <class Shape>
  __device__ __forceinline__ Units units(int64_t group, int row_tile, int unit_tile) const {
    const int early = static_cast<int>(group * hidden % 4);
    return {group, row_tile * Shape::ROWS + Shape::row_of(0),
            unit_tile * Shape::COLUMNS + Shape::template column_of<true>(0) - early};
  }

  // h = weight1 . x + bias1
  template <class Shape>
  __device__ __forceinline__ void first_layer(const Units& at, C (&h)[Quads<Shape>::N][4]) const {
    using Q = Quads<Shape>;
    C sums[Shape::SIXTEENS][Shape::EIGHTS][4];
    multiply_tile<Shape, T, T, false, false>(x, weight1, at.group, at.row - Shape::row_of(0),
                                             at.unit - Shape::template column_of<true>(0), 0, features, sums);
#pragma unroll
    for (int q = 0; q < Q::QUADS; ++q) {
      C bias[4];
      load_units(bias1, at, q, 0, bias);
#pragma unroll
      for (int r = 0; r < Q::ROWS; ++r)
#pragma unroll
        for (int j = 0; j < 4; ++j) h[Q::QUADS * r + q][j] = sums[r / 2][2 * q + j / 2][r % 2 * 2 + j % 2] + bias[j];
    }
  }

  // Loads the value of each unit of quad q from a row of `from`; units that do not exist get 0.
  __device__ __forceinline__ void load_units(const Strided& from, const Units& at, int q, int row, C (&x)[4]) const {
    const int unit = at.unit + 16 * q;
    const T* p = from.pointer<T>(at.group, row, unit);
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = exists(unit + j) ? number(p[j * from.stride]) : C(0);
  }
  __device__ __forceinline__ bool exists(int unit) const { return unit >= 0 && unit < hidden; }

  // Returns a bit for each of the thread's numbers that is set if the number exists and dropout keeps it.
  template <class Shape>
  __device__ __forceinline__ auto kept(const Units& at) const {
    using Q = Quads<Shape>;
    std::conditional_t<Q::N <= 8, uint32_t, uint64_t> all = 0;
#pragma unroll
    for (int i = 0; i < Q::N; ++i) {
      const int row = at.row + 8 * (i / Q::QUADS), unit = at.unit + 16 * (i % Q::QUADS);
      uint32_t keep = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) keep |= static_cast<uint32_t>(row < batch && exists(unit + j)) << j;
      if (keep != 0 && opaque(noise.seed) != nullptr) {
        float u[4];
        sample_of(noise, row).uniforms<4>(at.group * hidden + unit, 0, u);
#pragma unroll
        for (int j = 0; j < 4; ++j) keep &= ~(static_cast<uint32_t>(!(u[j] >= dropout_p)) << j);
      }
      all |= static_cast<decltype(all)>(keep) << 4 * i;
    }
    return all;
  }
};

// The sizes of o (M, B, O), and access to tensors of this shape.
struct Outputs {
  int64_t groups, batch, outputs;
  __host__ __device__ int64_t size() const { return groups * batch * outputs; }
  template <class C>
  __device__ __forceinline__ C at(const Strided& from, int64_t i) const {
    const int64_t row = i / outputs, group = row / batch;
    return from.at<C>(group, row - group * batch, i - row * outputs);
  }
};

// ---- Host code.

template <class T>
Estimator<T> estimator(const Tensor& std, const Tensor& weight1, const Tensor& bias1, const Tensor& weight2,
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
  for (int64_t n : {batch, features, hidden, outputs}) Tiles::counted(n + LargeTile::COLUMNS);
  const bool shifted = groups > 1 && hidden % 4 != 0;
  Estimator<T> net;
  net.x = operand<T, T>(strided(std), batch, features);
  net.weight1 = operand<T, T>(strided(weight1), hidden, features);
  net.bias1 = strided(bias1, 1);
  net.weight2 = strided(weight2);
  net.groups = groups;
  net.batch = static_cast<int>(batch), net.features = static_cast<int>(features);
  net.hidden = static_cast<int>(hidden), net.outputs = static_cast<int>(outputs);
  net.activation = static_cast<int>(activation);
  net.unit_blocks = hidden == 0 ? 0 : ceil_div(hidden + (shifted ? 3 : 0), UNIT_BLOCK);
  net.dropout_p = static_cast<float>(dropout_p);
  net.scale = static_cast<Arithmetic<T>>(dropout_p > 0 ? dropout_p < 1 ? 1 / (1 - dropout_p) : 0 : 1);
  net.noise = noise_of(dropout_p > 0 ? seed : std::nullopt, stream, sample_ids, batch);
  return net;
}

// Calls f with the type of stored numbers.
template <class Function>
void with_stored_type(ScalarType dtype, Function&& f) {
  if (dtype == ScalarType::Double) return f(double{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  if (dtype == ScalarType::Half) return f(__half{});
  f(float{});
}

}  // namespace udml
