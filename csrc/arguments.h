// Host code that both compiled backends need: the shapes and dtypes of an op's arguments, and their checks. Python has
// checked the arguments. The checks here protect memory when the raw op is called directly.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <type_traits>

#include "op.h"

namespace udml {

template <class C>
inline constexpr ScalarType scalar_type_of = std::is_same_v<C, double> ? ScalarType::Double : ScalarType::Float;

inline ScalarType compute_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a float or a double: the arithmetic type for `dtype`.
template <class Function>
inline auto with_compute_type(ScalarType dtype, Function&& f) {
  return dtype == ScalarType::Double ? f(double{}) : f(float{});
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
  std::vector<int64_t> shape(static_cast<size_t>(t.dim()));
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = t.size(static_cast<int64_t>(i));
  return shape;
}

inline int64_t product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
  int64_t n = 1;
  for (size_t i = begin; i < end; ++i) n *= shape[i];
  return n;
}

// Returns the number of elements per row if the first `first` dimensions count rows.
inline int64_t row_size_of(const Tensor& t, int64_t first = 1) {
  return product(shape_of(t), static_cast<size_t>(std::min<int64_t>(first, t.dim())), static_cast<size_t>(t.dim()));
}

struct Dim {
  int64_t size, stride;
};
using Dims = std::vector<Dim>;

// Merges the dimension with the last one if their strides are compatible, and skips a dimension of size 1.
inline void append(Dims& dims, int64_t size, int64_t stride) {
  if (size == 1) return;
  if (!dims.empty() && dims.back().stride == size * stride) {
    dims.back() = {dims.back().size * size, stride};
  } else {
    dims.push_back({size, stride});
  }
}

inline void expect(bool condition, const char* what) { STD_TORCH_CHECK(condition, what); }

inline void expect_same_shape(const Tensor& a, const Tensor& b, const char* what) {
  STD_TORCH_CHECK(shape_of(a) == shape_of(b), what, ": expected tensors of one shape");
}

// Returns the data of a contiguous tensor of the arithmetic type, int64 or bool.
template <class T>
inline const T* values_of(const Tensor& t) {
  expect(t.is_contiguous(), "expected a contiguous tensor");
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
inline T* results_of(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline void expect_random(const OptionalTensor& seed, const OptionalTensor& sample_ids, int64_t rows) {
  expect(!seed || (seed->scalar_type() == ScalarType::Long && seed->numel() == 1), "seed: expected one int64");
  expect(!sample_ids ||
             (sample_ids->scalar_type() == ScalarType::Long && sample_ids->dim() == 1 && sample_ids->size(0) == rows),
         "sample_ids: expected one int64 a sample");
}

inline void expect_moments(const Tensor& mu, const Tensor& logvar, const Tensor& prior_var) {
  expect(mu.dim() >= 2, "mu: expected (B, C, ...)");
  expect_same_shape(mu, logvar, "mu and logvar");
  expect(mu.scalar_type() == logvar.scalar_type(), "mu and logvar: expected one dtype");
  expect(prior_var.numel() == 1 || prior_var.numel() == mu.size(0), "prior_var: expected 1 value or one a sample");
  expect(prior_var.scalar_type() == compute_type(mu.scalar_type()), "prior_var: expected the arithmetic dtype");
}

// The gradients of z, whose shape is `z_shape`, of std (B, C) and of kl (B,), for the backward passes of the two ops
// that sample mu.
inline void expect_sample_gradients(const Tensor& mu, const std::vector<int64_t>& z_shape, const OptionalTensor& grad_z,
                                    const OptionalTensor& grad_std, const OptionalTensor& grad_kl) {
  const std::vector<int64_t> channels{mu.size(0), mu.size(1)}, rows{mu.size(0)};
  expect(!grad_z || (shape_of(*grad_z) == z_shape && grad_z->scalar_type() == mu.scalar_type()),
         "grad_z: expected the shape and dtype of z");
  expect(!grad_std || shape_of(*grad_std) == channels, "grad_std: expected (B, C)");
  expect(!grad_kl || shape_of(*grad_kl) == rows, "grad_kl: expected (B,)");
}

// Whether a map (B, C, ...) is dense with the channels last, and not contiguous as well.
inline bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous() || t.dim() < 3) return false;
  int64_t expected = 1;
  const auto follows = [&](int64_t d) {
    const bool result = t.size(d) == 1 || t.stride(d) == expected;
    expected *= t.size(d);
    return result;
  };
  bool result = follows(1);
  for (int64_t d = t.dim() - 1; d >= 2; --d) result = follows(d) && result;
  return follows(0) && result;
}

// Whether z and the gradients of these maps have the channels last, as `like_maps` in
// udml_kernels/ops/reparameterize.py has it.
inline bool are_channels_last(const Tensor& mu, const Tensor& logvar) {
  return is_channels_last(mu) && is_channels_last(logvar);
}

// The order matches udml_kernels/ops/fusion.py.
enum Mode : int64_t { CONCAT, SUM, SCALE };

inline std::vector<std::vector<int64_t>> fused_shapes(const Tensors& features, int64_t mode) {
  std::vector<std::vector<int64_t>> shapes;
  for (const Tensor& t : features) shapes.push_back(shape_of(t));
  if (mode == SCALE) return shapes;
  for (size_t m = 1; mode == CONCAT && m < shapes.size(); ++m) shapes[0][1] += shapes[m][1];
  return {shapes[0]};
}

// The bits of noise_regression_backward's `needs`.
enum Needs : int64_t { STD = 1, WEIGHT1 = 2, BIAS1 = 4, WEIGHT2 = 8, BIAS2 = 16, TARGET = 32 };

// The shape of the estimated noise.
inline std::vector<int64_t> noise_shape(const Tensor& std, const Tensor& weight2) {
  expect(std.dim() >= 2 && weight2.dim() >= 2, "std and weight2: expected at least 2 dimensions");
  auto shape = shape_of(std);
  shape.back() = weight2.size(weight2.dim() - 2);
  return shape;
}

// The order matches udml_kernels/ops/evidential.py.
enum Reduction : int64_t { REDUCE_NONE, REDUCE_MEAN, REDUCE_SUM };

// The shape of the losses of rows of evidence.
inline std::vector<int64_t> losses_shape(const Tensor& evidence, const Tensor& target) {
  expect(evidence.dim() >= 1, "evidence: expected (B, K)");
  auto shape = shape_of(evidence);
  shape.pop_back();
  expect(shape_of(target) == shape && target.scalar_type() == ScalarType::Long, "target: expected one int64 a row");
  return shape;
}

}  // namespace udml
