// Host code that checks and allocates tensors and describes them to kernels (rows.h).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../arguments.h"
#include "../out_of_memory.h"
#include "launch.h"
#include "rows.h"

namespace udml {

// Allocates a tensor on the device of `like`.
inline Tensor allocate(const std::vector<int64_t>& shape, ScalarType dtype, const Tensor& like) {
  try {
    return kept(torch::stable::new_empty(like, {shape.data(), shape.size()}, dtype));
  } catch (const std::runtime_error& error) {
    allocation_failed(describe_allocation(shape, dtype), error.what());
  }
}
inline Tensor allocate_like(const Tensor& t) { return allocate(shape_of(t), t.scalar_type(), t); }

// Allocates a map of t's shape, contiguous or with the channels last in memory.
inline Tensor allocate_map(const Tensor& t, bool channels_last) {
  if (!channels_last) return allocate_like(t);
  auto shape = shape_of(t);
  std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  Tensor map = allocate(shape, t.scalar_type(), t);
  for (int64_t d = t.dim() - 1; d >= 2; --d) map = torch::stable::transpose(map, d - 1, d);
  return map;
}

// A backward kernel returns this for a gradient that is not requested.
inline Tensor empty_gradient(ScalarType dtype, const Tensor& like) { return allocate({0}, dtype, like); }

inline void expect_float(ScalarType dtype) {
  expect(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
             dtype == ScalarType::Half,
         "dtype: expected float32, float64, bfloat16 or float16");
}

inline Results results(const Tensor& t, int64_t row_size) {
  return {static_cast<char*>(t.mutable_data_ptr()), row_size, t.scalar_type()};
}

// Describes a tensor as Rows. It copies a tensor whose layout Rows cannot express, and keeps the copy until the launch.
class Input {
 public:
  Input() = default;
  explicit Input(const Tensor& t, int64_t first = 1) : tensor_(t) {
    if (!describe(first)) {
      tensor_ = kept(torch::stable::contiguous(t));
      describe(first);
    }
  }
  explicit Input(const std::optional<Tensor>& t, int64_t first = 1) {
    if (t) *this = Input(*t, first);
  }
  const Rows& rows() const { return rows_; }
  explicit operator bool() const { return tensor_.has_value(); }

  // Whether all rows consist of aligned vectors (see Access), which kernels move as a whole.
  bool is_dense() const {
    if (!tensor_) return true;
    const int64_t item = static_cast<int64_t>(tensor_->element_size()), bytes = item == 1 ? 4 : 16;
    return item <= 4 && rows_.inner_stride == 1 && rows_.inner == size_ && size_ < int64_t{1} << 31 &&
           size_ * item % bytes == 0 && rows_.row_stride * item % bytes == 0 &&
           reinterpret_cast<uintptr_t>(rows_.data) % bytes == 0;
  }

 private:
  bool describe(int64_t first) {
    const Tensor& t = *tensor_;
    Dims outer, inner;
    for (int64_t d = 0; d < t.dim(); ++d) append(d < first ? outer : inner, t.size(d), t.stride(d));
    size_ = row_size_of(t, first);
    if (outer.size() > 1 || inner.size() > 2 || (inner.size() == 2 && size_ >= int64_t{1} << 31)) return false;
    rows_ = {static_cast<const char*>(t.const_data_ptr()),
             outer.empty() ? 0 : outer[0].stride,
             size_,
             0,
             1,
             0,
             0,
             t.scalar_type()};
    if (!inner.empty()) rows_.inner = inner.back().size, rows_.inner_stride = inner.back().stride;
    if (inner.size() == 2 && size_ > 0)
      rows_.outer_stride = inner[0].stride, set_magic(rows_.inner, rows_.magic, rows_.shift);
    return true;
  }

  std::optional<Tensor> tensor_;
  Rows rows_;
  int64_t size_ = 0;
};

// Describes a tensor (rows,) or (rows, columns). A missing tensor yields a null pointer.
template <class C>
Matrix<C> matrix_of(const std::optional<Tensor>& t) {
  if (!t) return {};
  expect(t->scalar_type() == scalar_type_of<C> && t->dim() >= 1 && t->dim() <= 2,
         "expected (B,) or (B, C) of the arithmetic dtype");
  return {static_cast<const C*>(t->const_data_ptr()), t->stride(0), t->dim() == 2 ? t->stride(1) : 0};
}

// Calls f with the storage type of dense rows, or with Any of the arithmetic type.
template <class Function>
void with_storage(ScalarType dtype, bool dense, Function&& f) {
  if (dtype == ScalarType::Double) return f(Any<double>{});
  if (dense && dtype == ScalarType::Float) return f(float{});
  if (dense && dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  if (dense && dtype == ScalarType::Half) return f(__half{});
  f(Any<float>{});
}

}  // namespace udml
