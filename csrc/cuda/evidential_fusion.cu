// evidential_fusion uses one thread per class of a row and needs neither logarithms nor exponentials.
#include "evidential.h"

namespace udml {

// A (B, M, K) tensor of evidence and the mask of the views present.
template <class T>
struct Views {
  using C = compute_of<T>;
  const char* evidence;
  int64_t row_stride, view_stride, stride;
  Divisor classes;
  int64_t elements;
  C inverse_classes;
  int count;
  const uint8_t* mask;
  int64_t mask_row_stride, mask_stride;

  Views(const Tensor& e, const OptionalTensor& present)
      : evidence(static_cast<const char*>(e.const_data_ptr())),
        row_stride(e.stride(0)),
        view_stride(e.stride(1)),
        stride(e.stride(2)),
        classes(e.size(2)),
        elements(e.size(0) * e.size(2)),
        inverse_classes(1 / static_cast<C>(e.size(2))),
        count(static_cast<int>(e.size(1))),
        mask(present ? static_cast<const uint8_t*>(present->const_data_ptr()) : nullptr),
        mask_row_stride(present ? present->stride(0) : 0),
        mask_stride(present ? present->stride(1) : 0) {}

  // The row of an element (row, class). Almost all calls divide integers of 32 bits.
  __device__ __forceinline__ int64_t row_of(int64_t i) const {
    return elements < int64_t{1} << 31 ? classes.quotient(static_cast<uint32_t>(i)) : classes.quotient(i);
  }
  __device__ __forceinline__ bool has(int64_t row, int m) const {
    return opaque(mask) == nullptr || mask[row * mask_row_stride + m * mask_stride] != 0;
  }
  // Returns e / K for a view, or 0 if the view is absent.
  __device__ __forceinline__ C at(int64_t row, int64_t k, int m, bool& present) const {
    present = has(row, m);
    return present ? load(row * row_stride + k * stride + m * view_stride) : C(0);
  }
  __device__ __forceinline__ C load(int64_t offset) const {
    return load_as<C>(evidence, dtype_of<T>, offset) * inverse_classes;
  }
};

static void check_views(const Tensor& evidence, const OptionalTensor& mask) {
  expect(evidence.dim() == 3 && evidence.size(1) >= 1 && evidence.size(1) <= MAX_MODALITIES,
         "evidence: expected 1 to 16 views");
  expect(!mask || shape_of(*mask) == std::vector<int64_t>{evidence.size(0), evidence.size(1)}, "mask: expected (B, M)");
  expect(!mask || mask->element_size() == 1, "mask: expected bool");
}

// Returns 1 + x, or NaN if that is negative, like its logarithm.
template <class C>
__device__ __forceinline__ C factor_of(C x) {
  const C factor = x + 1;
  return factor < 0 ? static_cast<C>(NAN) : factor;
}

// The fused evidence is K (prod_m (1 + x_m) - 1) with x_m = e_m / K. The recurrence p_m = p_{m-1} + x_m + p_{m-1} x_m,
// p_0 = 0, computes p_M = prod_m (1 + x_m) - 1. It has no cancellation, and for nonnegative evidence no partial product
// exceeds the last one.
template <class T>
__global__ void __launch_bounds__(BLOCK) evidential_fusion_kernel(Views<T> views, char* out) {
  using C = compute_of<T>;
  for_each_thread_item(views.elements, [&](int64_t i) {
    const int64_t row = views.row_of(i), k = i - row * views.classes.value;
    int64_t offset = row * views.row_stride + k * views.stride;
    C p = 0, product = 1;
#pragma unroll 4
    for (int m = 0; m < views.count; ++m, offset += views.view_stride) {
      if (!views.has(row, m)) continue;
      const C x = views.load(offset);
      product *= factor_of(x);
      p = multiply_add(p, x, p + x);
    }
    // If a factor is infinite, p may be NaN (inf - inf). The product of the factors is still right.
    store_as(out, dtype_of<T>, i, (product < INFINITY ? p : product) * static_cast<C>(views.classes.value));
  });
}

Tensor evidential_fusion(Tensor evidence, OptionalTensor mask) {
  check_views(evidence, mask);
  const OnDevice device(evidence);
  const Tensor out = allocate({evidence.size(0), evidence.size(2)}, evidence.scalar_type(), evidence);
  with_dtype(evidence.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    const Views<T> views(evidence, mask);
    launch("evidential_fusion_kernel", evidential_fusion_kernel<T>, device, thread_item_work(views.elements), views,
           results_of<char>(out));
  });
  return out;
}

// Returns the gradient times the factors of all views except `own`. The arithmetic is double, because the product of
// the factors may overflow although this product does not.
template <class T>
__device__ __forceinline__ compute_of<T> gradient_times_other_factors(const Views<T>& views, int64_t row, int64_t k,
                                                                      int own, double grad) {
  bool present;
#pragma unroll 1
  for (int m = 0; m < views.count; ++m)
    if (m != own) grad *= factor_of(views.at(row, k, m, present));
  return static_cast<compute_of<T>>(grad);
}

// de/de_m is the product of the factors of the views before m and behind m. It is NaN where the own factor is 0 or
// infinite, because the logarithm has no derivative there.
template <class T>
__global__ void __launch_bounds__(BLOCK) evidential_fusion_backward_kernel(Rows grad, Views<T> views, char* out) {
  using C = compute_of<T>;
  for_each_thread_item(views.elements, [&](int64_t i) {
    const int64_t row = views.row_of(i), k = i - row * views.classes.value;
    const C fused_gradient = load_as<C>(grad.data, dtype_of<T>, row * grad.row_stride + k * grad.inner_stride);
    C before = 1;
#pragma unroll 1
    for (int m = 0; m < views.count; ++m) {
      bool present, other;
      const C factor = factor_of(views.at(row, k, m, present));
      C product = before;
#pragma unroll 1
      for (int behind = m + 1; behind < views.count; ++behind) product *= factor_of(views.at(row, k, behind, other));
      C slope = fused_gradient * product;
      if (!(product < INFINITY)) slope = gradient_times_other_factors(views, row, k, m, fused_gradient);
      slope = factor > 0 && factor < INFINITY ? slope : static_cast<C>(NAN);
      store_as(out, dtype_of<T>, (row * views.count + m) * views.classes.value + k, present ? slope : C(0));
      before *= factor;
    }
  });
}

Tensor evidential_fusion_backward(Tensor grad, Tensor evidence, OptionalTensor mask) {
  check_views(evidence, mask);
  expect(shape_of(grad) == std::vector<int64_t>{evidence.size(0), evidence.size(2)}, "grad: expected (B, K)");
  expect(grad.scalar_type() == evidence.scalar_type(), "grad: expected evidence's dtype");
  const OnDevice device(evidence);
  const Tensor out = allocate_like(evidence);
  const Input grad_rows(grad);
  with_dtype(evidence.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    const Views<T> views(evidence, mask);
    launch("evidential_fusion_backward_kernel", evidential_fusion_backward_kernel<T>, device,
           thread_item_work(views.elements), grad_rows.rows(), views, results_of<char>(out));
  });
  return out;
}

}  // namespace udml

UDML_REGISTER(evidential_fusion)
UDML_REGISTER(evidential_fusion_backward)
