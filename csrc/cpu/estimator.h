// The noise estimator: two linear layers with an activation and dropout between them.
#pragma once

#include <cmath>
#include <limits>

#include "gemm.h"
#include "op.h"
#include "random.h"

namespace udml {

// The order matches udml_kernels.reference.noise_regression.ACTIVATIONS.
enum Activation : int64_t { IDENTITY, RELU, GELU, SILU };

// The number of hidden units in a block.
constexpr int64_t UNITS = 64;

// Up to this dropout probability times outputs, folding is faster than two matrix products (measured:
// benchmarks/NOTES.md).
constexpr double FOLDED_DROPOUT = 0.25;

// A tensor as contiguous numbers of the arithmetic type. It copies the tensor only if necessary.
template <class C>
class Dense {
 public:
  explicit Dense(const Tensor& t) {
    if (t.is_contiguous() && t.scalar_type() == scalar_type_of<C>) {
      data_ = static_cast<const C*>(t.const_data_ptr());
      return;
    }
    copy_ = allocate(shape_of(t), scalar_type_of<C>);
    C* out = results_of<C>(*copy_);
    const Reader<C> in(t, 0);
    for (int64_t begin = 0, size = t.numel(); begin < size; begin += TILE) {
      const int64_t n = std::min(TILE, size - begin);
      const C* run = in.run(0, begin, n, out + begin);
      if (run != out + begin) memcpy(out + begin, run, static_cast<size_t>(n) * sizeof(C));
    }
    data_ = out;
  }
  operator const C*() const { return data_; }

 private:
  std::optional<Tensor> copy_;
  const C* data_;
};

// A result that is computed in the arithmetic type and returned in the dtype of `like`.
template <class C>
class Result {
 public:
  Result(const Tensor& like, bool wanted)
      : dtype_(like.scalar_type()),
        sums_(wanted ? allocate(shape_of(like), scalar_type_of<C>) : empty_gradient(scalar_type_of<C>)) {}
  operator C*() const { return results_of<C>(sums_); }
  int64_t size() const { return sums_.numel(); }
  // The largest finite number of the result's dtype. For float16 it is far below that of C.
  double limit() const {
    return dtype_ == ScalarType::Half ? 65504.0 : static_cast<double>(std::numeric_limits<C>::max());
  }

  Tensor tensor() const {
    if (dtype_ == scalar_type_of<C>) return sums_;
    const Tensor out = allocate(shape_of(sums_), dtype_);
    convert_run(results_of<C>(sums_), dtype_, out.mutable_data_ptr(), sums_.numel());
    return out;
  }

 private:
  ScalarType dtype_;
  Tensor sums_;
};

template <class C>
struct Gradients {
  int64_t needs;
  Result<C> std, weight1, bias1, weight2, bias2, target;

  C* at(const Result<C>& result, int64_t bit, int64_t offset) const { return needs & bit ? result + offset : nullptr; }
};

template <class V, class C>
UDML_FN V activate(int64_t activation, V h) {
  if (activation == RELU) return select(h < C(0), V{}, h);
  if (activation == GELU) return h * normal_cdf(h);
  if (activation == SILU) return h / (exponential(-h) + C(1));
  return h;
}

// Computes dL/dh from dL/dactivate(h).
template <class V, class C>
UDML_FN V activation_backward(int64_t activation, V grad, V h) {
  if (activation == RELU) return select(h <= C(0), V{}, grad);  // propagates NaN like torch; 0 * inf is not 0
  if (activation == GELU) return grad * (normal_cdf(h) + h * exponential(h * h * C(-0.5)) * C(0.39894228040143268));
  if (activation == SILU) {
    const V s = C(1) / (exponential(-h) + C(1));
    return grad * (s * (h * (C(1) - s) + C(1)));
  }
  return grad;
}

template <class C>
struct Estimator {
  int64_t groups, batch, features, hidden, outputs, blocks;
  Dense<C> x, weight1, bias1, weight2, bias2;
  int64_t activation;
  double dropout_p;
  C scale;
  Noise noise;

  Estimator(const Tensor& std, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
            int64_t activation, double dropout_p, const OptionalTensor& seed, int64_t stream,
            const OptionalTensor& sample_ids)
      : groups(std.dim() == 3 ? std.size(0) : 1),
        batch(std.size(std.dim() - 2)),
        features(std.size(std.dim() - 1)),
        hidden(w1.size(w1.dim() - 2)),
        outputs(w2.size(w2.dim() - 2)),
        blocks((hidden + UNITS - 1) / UNITS),
        x(std),
        weight1(w1),
        bias1(b1),
        weight2(w2),
        bias2(b2),
        activation(activation),
        dropout_p(dropout_p),
        scale(static_cast<C>(dropout_p < 1 ? 1 / (1 - dropout_p) : 0)),
        noise(seed, stream, sample_ids, std.size(std.dim() - 2)) {
    expect(w1.numel() == groups * hidden * features && b1.numel() == groups * hidden &&
               w2.numel() == groups * outputs * hidden && b2.numel() == groups * outputs,
           "weights: expected (H, D), (H,), (O, H) and (O,), each with the group dimension of std");
    expect(dropout_p <= 0 || seed.has_value(), "seed: expected a tensor");
  }

  // Whether the layers may be folded. Without outputs or samples there is nothing to sum, and the unfolded code zeroes
  // the gradients. If an input is infinite or NaN, folding would combine it with other terms than two layers do. A
  // dropped unit's infinite weight has to give 0 * inf, a NaN.
  bool foldable() const {
    return activation == IDENTITY && batch >= 1 && outputs >= 1 && outputs <= 8 &&
           std::max(dropout_p, 0.0) * outputs <= FOLDED_DROPOUT;
  }
  bool finite_inputs() const {
    return std::isfinite(sum_of_run<C>(x, groups * batch * features)) &&
           std::isfinite(sum_of_run<C>(weight2, groups * outputs * hidden));
  }

  const C* inputs(int64_t m) const { return x + m * batch * features; }
  const C* weight1_of(int64_t m) const { return weight1 + m * hidden * features; }
  const C* weight2_of(int64_t m, int64_t o) const { return weight2 + (m * outputs + o) * hidden; }
  int64_t units(int64_t block) const { return std::min(UNITS, hidden - block * UNITS); }

  // Sets factor[u] to 0 or 1 / (1 - p) for the units of a sample from `begin` on.
  void dropout_factors(int64_t m, int64_t row, int64_t begin, int64_t n, C* factor) const {
    if (dropout_p <= 0) {
      std::fill_n(factor, n, C(1));
      return;
    }
    float buffer[NOISE_TILE];
    const float* u = noise.uniforms(row, m * hidden + begin, n, buffer);
    const float p = static_cast<float>(dropout_p);
    for (int64_t i = 0; i < n; ++i) factor[i] = u[i] >= p ? scale : C(0);
  }

  bool has_dropout() const { return dropout_p > 0; }

  // Sets dropped[unit] to 1 or 0 for all units of a sample, if the estimator has dropout.
  const uint8_t* dropped_units(int64_t m, int64_t row, uint8_t* dropped) const {
    if (!has_dropout()) return dropped;
    float buffer[NOISE_TILE];
    const float p = static_cast<float>(dropout_p);
    for (int64_t begin = 0; begin < hidden; begin += TILE) {
      const int64_t n = std::min(TILE, hidden - begin);
      const float* u = noise.uniforms(row, m * hidden + begin, n, buffer);
      for (int64_t i = 0; i < n; ++i) dropped[begin + i] = u[i] < p;
    }
    return dropped;
  }

  // Computes the first layer for a block of units: out[row * UNITS + unit].
  void first_layer(int64_t m, int64_t block, C* out) const {
    const int64_t begin = block * UNITS, n = units(block);
    std::vector<C> panel(static_cast<size_t>(features * UNITS));
    transpose(weight1_of(m) + begin * features, n, features, panel.data(), UNITS);
    const C* bias = bias1 + m * hidden + begin;
    gemm<C>({inputs(m), features, 1}, panel.data(), UNITS, batch, features, n,
            [&](int64_t row, int64_t u, lanes_of<C> sum, auto lanes) {
      store_lanes(out + row * UNITS + u, lanes_of<C>(sum + load_lanes(bias + u, lanes)), lanes);
    });
  }
};

}  // namespace udml
