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
