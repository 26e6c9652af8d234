// evidential_fusion uses one thread per class of a row and needs neither logarithms nor exponentials. evidential_loss
// uses one warp per row, and then adds up the rows.
#include <cmath>

#include "lanes.h"
#include "../op.h"
#include "tiles.h"

namespace udml {

// These kernels read single elements with any strides, so they are only instantiated per dtype.
template <class T>
struct Arithmetic {
  using C = float;
};
template <>
struct Arithmetic<double> {
  using C = double;
};
template <class T>
using compute_of = typename Arithmetic<T>::C;
template <class T>
inline constexpr ScalarType dtype_of = std::is_same_v<T, double>          ? ScalarType::Double
                                       : std::is_same_v<T, __nv_bfloat16> ? ScalarType::BFloat16
                                       : std::is_same_v<T, __half>        ? ScalarType::Half
                                                                          : ScalarType::Float;

// Calls f with a value of the storage type for `dtype`.
template <class Function>
static void with_dtype(ScalarType dtype, Function&& f) {
  if (dtype == ScalarType::Double) return f(double{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  if (dtype == ScalarType::Half) return f(__half{});
  expect(dtype == ScalarType::Float, "evidence: expected floats");
  f(float{});
}

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

  // Returns e / K for a view, or 0 if the view is absent.
  __device__ __forceinline__ C at(int64_t row, int64_t k, int m, bool& present) const {
    const uint8_t* presence = opaque(mask);
    present = presence == nullptr || presence[row * mask_row_stride + m * mask_stride] != 0;
    return present
               ? load_as<C>(evidence, dtype_of<T>, row * row_stride + m * view_stride + k * stride) * inverse_classes
               : C(0);
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
    const int64_t row = views.classes.quotient(i), k = i - row * views.classes.value;
    C p = 0, product = 1;
#pragma unroll 1
    for (int m = 0; m < views.count; ++m) {
      bool present;
      const C x = views.at(row, k, m, present);
      product *= factor_of(x);
      p = multiply_add(p, x, p + x);
    }
    // If a factor is infinite, p may be inf - inf, but the product is correct.
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
    const int64_t row = views.classes.quotient(i), k = i - row * views.classes.value;
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

// Rows of evidence for the classes, and the true class of each row.
struct EvidenceRows {
  Rows evidence;
  const int64_t* targets;
  int64_t rows, classes;

  template <class T>
  __device__ __forceinline__ compute_of<T> at(int64_t row, int64_t k) const {
    return load_as<compute_of<T>>(evidence.data, dtype_of<T>, row * evidence.row_stride + k * evidence.inner_stride);
  }
};

// The tensors whose data EvidenceRows points to.
struct EvidenceTensors {
  Input evidence;
  Tensor targets;

  EvidenceTensors(const Tensor& e, const Tensor& target)
      : evidence(e, e.dim() - 1), targets(torch::stable::contiguous(target)) {}
  EvidenceRows evidence_rows(int64_t classes) const {
    return {evidence.rows(), values_of<int64_t>(targets), targets.numel(), classes};
  }
};

// The Dirichlet parameters of a row. They are meaningless if the target is not a class.
struct Row {
  Strengths strengths;
  int64_t target;
  bool valid;
};

// Reads a row, and sums term(e) over all classes except the true one. The sum of evidence skips the true class too:
// subtracting it afterwards could cancel, as it may be much larger than the rest. All lanes of a warp call it together.
template <class T, class Term>
__device__ __forceinline__ Row row_of(const EvidenceRows& evidence_rows, int64_t row, const Term& term, double& terms) {
  using C = compute_of<T>;
  // The sum of evidence may overflow float. Scaling it down loses only evidence that is negligible beside the 1 of each
  // parameter.
  constexpr C SCALE_DOWN = sizeof(C) == 4 ? static_cast<C>(0x1p-32) : C(1);
  const int64_t target = evidence_rows.targets[row];
  C sums[2] = {};
  for (int64_t k = threadIdx.x % 32; k < evidence_rows.classes; k += 32) {
    const C e = evidence_rows.at<T>(row, k);
    sums[0] += k == target ? C(0) : e * SCALE_DOWN, sums[1] += k == target ? C(0) : term(e);
  }
  sum_over_lanes(sums, 32);
  terms = static_cast<double>(sums[1]);
  const double wrong_evidence = static_cast<double>(sums[0]) / static_cast<double>(SCALE_DOWN);
  Row parameters{{1, wrong_evidence + static_cast<double>(evidence_rows.classes), wrong_evidence},
                 target,
                 target >= 0 && target < evidence_rows.classes};
  if (parameters.valid) parameters.strengths.true_alpha += static_cast<double>(evidence_rows.at<T>(row, target));
  return parameters;
}

// Evaluates f at the strength, the true parameter and kl_strength, with one lane each.
template <class Function>
__device__ __forceinline__ void for_each_strength(const Strengths& s, const Function& f, double& at_strength,
                                                  double& at_true_alpha, double& at_kl_strength) {
  const unsigned lane = threadIdx.x % 32;
  const double value = f(lane == 0 ? s.strength() : lane == 1 ? s.true_alpha : s.kl_strength);
  at_strength = __shfl_sync(0xffffffffu, value, 0);
  at_true_alpha = __shfl_sync(0xffffffffu, value, 1);
  at_kl_strength = __shfl_sync(0xffffffffu, value, 2);
}

template <class T>
__global__ void __launch_bounds__(BLOCK)
    evidential_loss_kernel(EvidenceRows evidence_rows, double kl_weight, double log_gamma, compute_of<T>* losses) {
  using C = compute_of<T>;
  for_each_warp_item(evidence_rows.rows, [&](int64_t row) {
    double terms, at_strength, at_true_alpha, at_kl_strength;
    const Row parameters = row_of<T>(evidence_rows, row, [](C e) { return dirichlet_term(e + C(1)); }, terms);
    const Strengths& s = parameters.strengths;
    for_each_strength(s, [](double x) { return digamma_less_log(x); }, at_strength, at_true_alpha, at_kl_strength);
    if (threadIdx.x % 32 != 0) return;
    // In the KL divergence the parameter of the true class is 1, and its term is -1.
    const double kl = terms - 1 - dirichlet_term(s.kl_strength) +
                      static_cast<double>(evidence_rows.classes - 1) * (log(s.kl_strength) + at_kl_strength) -
                      log_gamma;
    const double loss = cross_entropy(s, at_strength, at_true_alpha) + kl_weight * kl;
    losses[row] = parameters.valid ? static_cast<C>(loss) : static_cast<C>(NAN);
  });
}

// The number of rows that one warp adds up.
inline constexpr int64_t ROWS_PER_SUM = 1024;

template <class C>
__global__ void __launch_bounds__(BLOCK) loss_sums_kernel(const C* losses, int64_t rows, double* sums) {
  for_each_warp_item((rows + ROWS_PER_SUM - 1) / ROWS_PER_SUM, [&](int64_t i) {
    const double sum = warp_sum(min(ROWS_PER_SUM, rows - i * ROWS_PER_SUM),
                                [&](int64_t j) { return static_cast<double>(losses[i * ROWS_PER_SUM + j]); });
    if (threadIdx.x % 32 == 0) sums[i] = sum;
  });
}

template <class C>
static Tensor reduce_losses(const Tensor& losses, bool mean, const OnDevice& device) {
  const int64_t rows = losses.numel(), runs = (rows + ROWS_PER_SUM - 1) / ROWS_PER_SUM;
  const double scale = mean ? 1 / static_cast<double>(std::max<int64_t>(rows, 1)) : 1;
  const Tensor out = allocate({}, scalar_type_of<C>, losses);
  if (runs <= 1) {
    sum_partials<C>(losses, 1, rows, scale, results_of<C>(out), device);
    return out;
  }
  const Tensor sums = allocate({runs}, ScalarType::Double, losses);
  launch("loss_sums_kernel", loss_sums_kernel<C>, device, warp_item_work(runs), results_of<C>(losses), rows,
         results_of<double>(sums));
  sum_partials<double>(sums, 1, runs, scale, results_of<C>(out), device);
  return out;
}

Tensor evidential_loss(Tensor evidence, Tensor target, double kl_weight, int64_t reduction) {
  const auto shape = losses_shape(evidence, target);
  const OnDevice device(evidence);
  const int64_t classes = evidence.size(evidence.dim() - 1);
  Tensor out = allocate(shape, compute_type(evidence.scalar_type()), evidence);
  const EvidenceTensors tensors(evidence, target);
  with_dtype(evidence.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using C = compute_of<T>;
    launch("evidential_loss_kernel", evidential_loss_kernel<T>, device, warp_item_work(out.numel()),
           tensors.evidence_rows(classes), kl_weight, std::lgamma(static_cast<double>(classes)), results_of<C>(out));
    if (reduction != REDUCE_NONE) out = reduce_losses<C>(out, reduction == REDUCE_MEAN, device);
  });
  return out;
}

// The gradient of a row is the incoming gradient times `row_scale`. If `each`, every row has its own incoming gradient.
template <class T>
__global__ void __launch_bounds__(BLOCK)
    evidential_loss_backward_kernel(Rows grad, bool each, EvidenceRows evidence_rows, compute_of<T> kl_weight,
                                    compute_of<T> row_scale, char* out) {
  using C = compute_of<T>;
  for_each_warp_item(evidence_rows.rows, [&](int64_t row) {
    double none, at_strength, at_true_alpha, at_kl_strength, double_offset, double_one_minus_offset;
    const Row parameters = row_of<T>(evidence_rows, row, [](C) { return C(0); }, none);
    const Strengths& s = parameters.strengths;
    for_each_strength(s, [](double x) { return trigamma_less_reciprocal(x); }, at_strength, at_true_alpha,
                      at_kl_strength);
    divergence_offset(s, evidence_rows.classes, 1 / s.kl_strength + at_kl_strength, double_offset,
                      double_one_minus_offset);
    const C g = parameters.valid ? at<C>(grad, each ? row : 0, 0) * row_scale : static_cast<C>(NAN);
    const C common = static_cast<C>(common_slope(s, at_strength)), offset = static_cast<C>(double_offset),
            one_minus_offset = static_cast<C>(double_one_minus_offset);
    const C true_gradient = static_cast<C>(cross_entropy_slope(s, at_strength, at_true_alpha)) * g;
    for (int64_t k = threadIdx.x % 32; k < evidence_rows.classes; k += 32) {
      const C wrong_gradient =
          (dirichlet_slope(evidence_rows.at<T>(row, k), offset, one_minus_offset) * kl_weight + common) * g;
      store_as(out, dtype_of<T>, row * evidence_rows.classes + k,
               k == parameters.target ? true_gradient : wrong_gradient);
    }
  });
}

Tensor evidential_loss_backward(Tensor grad, Tensor evidence, Tensor target, double kl_weight, int64_t reduction) {
  const auto shape = losses_shape(evidence, target);
  const bool each = reduction == REDUCE_NONE;
  expect(each ? shape_of(grad) == shape : grad.dim() == 0, "grad: expected the loss's shape");
  const OnDevice device(evidence);
  const int64_t classes = evidence.size(evidence.dim() - 1);
  const Tensor out = allocate_like(evidence);
  const EvidenceTensors tensors(evidence, target);
  const Input grads(grad, grad.dim());
  with_dtype(evidence.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using C = compute_of<T>;
    const C row_scale = reduction == REDUCE_MEAN ? 1 / static_cast<C>(std::max<int64_t>(target.numel(), 1)) : C(1);
    launch("evidential_loss_backward_kernel", evidential_loss_backward_kernel<T>, device,
           warp_item_work(target.numel()), grads.rows(), each, tensors.evidence_rows(classes),
           static_cast<C>(kl_weight), row_scale, results_of<char>(out));
  });
  return out;
}

}  // namespace udml

UDML_REGISTER(evidential_fusion)
UDML_REGISTER(evidential_fusion_backward)
UDML_REGISTER(evidential_loss)
UDML_REGISTER(evidential_loss_backward)
