// evidential_fusion: a thread to a class of a row, with neither logarithms nor exponentials. evidential_loss: a warp to a
// row, then the rows added up.
#include <cmath>

#include "lanes.h"
#include "../ops.h"
#include "tiles.h"

namespace udml {

// Evidence is read one by one, at any strides: dtypes alone tell the instances of a kernel apart.
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

// Call f with the type that `dtype` is stored in.
template <class Function>
static void with_dtype(ScalarType dtype, Function&& f) {
  if (dtype == ScalarType::Double) return f(double{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  if (dtype == ScalarType::Half) return f(__half{});
  expect(dtype == ScalarType::Float, "evidence: expected floats");
  f(float{});
}

// One (B, M, K) tensor of evidence with its views' presence.
template <class T>
struct Views {
  using C = compute_of<T>;
  const char* evidence;
  int64_t row_stride, view_stride, stride;
  Divisor classes;
  int64_t elements;
  C share;
  int count;
  const uint8_t* mask;
  int64_t mask_row_stride, mask_stride;

  Views(const Tensor& e, const OptionalTensor& present)
      : evidence(static_cast<const char*>(e.const_data_ptr())), row_stride(e.stride(0)), view_stride(e.stride(1)), stride(e.stride(2)),
        classes(e.size(2)), elements(e.size(0) * e.size(2)), share(1 / static_cast<C>(e.size(2))), count(static_cast<int>(e.size(1))),
        mask(present ? static_cast<const uint8_t*>(present->const_data_ptr()) : nullptr),
        mask_row_stride(present ? present->stride(0) : 0), mask_stride(present ? present->stride(1) : 0) {}

  // e / K of a class's view, 0 of an absent one.
  __device__ __forceinline__ C at(int64_t row, int64_t k, int m, bool& present) const {
    const uint8_t* presence = opaque(mask);
    present = presence == nullptr || presence[row * mask_row_stride + m * mask_stride] != 0;
    return present ? load_as<C>(evidence, dtype_of<T>, row * row_stride + m * view_stride + k * stride) * share : C(0);
  }
};

static void check_views(const Tensor& evidence, const OptionalTensor& mask) {
  expect(evidence.dim() == 3 && evidence.size(1) >= 1 && evidence.size(1) <= MAX_MODALITIES, "evidence: expected 1 to 16 views");
  expect(!mask || shape_of(*mask) == std::vector<int64_t>{evidence.size(0), evidence.size(1)}, "mask: expected (B, M)");
  expect(!mask || mask->element_size() == 1, "mask: expected bool");
}

// 1 + x, NaN below 0 as its logarithm is.
template <class C>
__device__ __forceinline__ C factor_of(C x) {
  const C factor = x + 1;
  return factor < 0 ? static_cast<C>(NAN) : factor;
}

// p_0 = 0, p_m = p_{m-1} + x_m + p_{m-1} x_m with x_m = e_m / K gives K p_M = K (prod_m (1 + x_m) - 1). Nothing cancels in
// it, and no partial product of evidence that is not negative exceeds the last one.
template <class T>
__global__ void __launch_bounds__(BLOCK) evidential_fusion_kernel(Views<T> views, char* out) {
  using C = compute_of<T>;
  for_each_by_thread(views.elements, [&](int64_t i) {
    const int64_t row = views.classes.quotient(i), k = i - row * views.classes.value;
    C p = 0, product = 1;
#pragma unroll 1
    for (int m = 0; m < views.count; ++m) {
      bool present;
      const C x = views.at(row, k, m, present);
      product *= factor_of(x);
      p = multiply_add(p, x, p + x);
    }
    // Where a factor is infinite p may be inf - inf, while the product is right.
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
    launch("evidential_fusion_kernel", evidential_fusion_kernel<T>, device, work_by_thread(views.elements), views, results_of<char>(out));
  });
  return out;
}

// The gradient times the factors of all views but `own`, in double: the factors' product may overflow where this does not.
template <class T>
__device__ __forceinline__ compute_of<T> by_other_views(const Views<T>& views, int64_t row, int64_t k, int own, double grad) {
  bool present;
#pragma unroll 1
  for (int m = 0; m < views.count; ++m)
    if (m != own) grad *= factor_of(views.at(row, k, m, present));
  return static_cast<compute_of<T>>(grad);
}

// de/de_m is the product of the other views' factors: of those before m, and of those behind. The logarithm of 0 and of
// infinity has no slope: NaN.
template <class T>
__global__ void __launch_bounds__(BLOCK) evidential_fusion_backward_kernel(Rows grad, Views<T> views, char* out) {
  using C = compute_of<T>;
  for_each_by_thread(views.elements, [&](int64_t i) {
    const int64_t row = views.classes.quotient(i), k = i - row * views.classes.value;
    const C by_fused = load_as<C>(grad.data, dtype_of<T>, row * grad.row_stride + k * grad.inner_stride);
    C before = 1;
#pragma unroll 1
    for (int m = 0; m < views.count; ++m) {
      bool present, other;
      const C factor = factor_of(views.at(row, k, m, present));
      C product = before;
#pragma unroll 1
      for (int behind = m + 1; behind < views.count; ++behind) product *= factor_of(views.at(row, k, behind, other));
      C slope = by_fused * product;
      if (!(product < INFINITY)) slope = by_other_views(views, row, k, m, by_fused);
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
    launch("evidential_fusion_backward_kernel", evidential_fusion_backward_kernel<T>, device, work_by_thread(views.elements),
           grad_rows.rows(), views, results_of<char>(out));
  });
  return out;
}

// Rows of evidence for the classes, and the true class of each.
struct Beliefs {
  Rows evidence;
  const int64_t* targets;
  int64_t rows, classes;

  template <class T>
  __device__ __forceinline__ compute_of<T> at(int64_t row, int64_t k) const {
    return load_as<compute_of<T>>(evidence.data, dtype_of<T>, row * evidence.row_stride + k * evidence.inner_stride);
  }
};

// The tensors that Beliefs point into.
struct Held {
  Input evidence;
  Tensor targets;

  Held(const Tensor& e, const Tensor& target) : evidence(e, e.dim() - 1), targets(torch::stable::contiguous(target)) {}
  Beliefs beliefs(int64_t classes) const { return {evidence.rows(), values_of<int64_t>(targets), targets.numel(), classes}; }
};

// The shape of the losses.
static std::vector<int64_t> check_rows(const Tensor& evidence, const Tensor& target) {
  expect(evidence.dim() >= 1, "evidence: expected (B, K)");
  auto shape = shape_of(evidence);
  shape.pop_back();
  expect(shape_of(target) == shape && target.scalar_type() == ScalarType::Long, "target: expected one int64 a row");
  return shape;
}

// A row's Dirichlet parameters; where the target is no class they mean empty_gradient.
struct Row {
  Strengths strengths;
  int64_t target;
  bool valid;
};

// Also adds up term(e) of the classes but the true one, whose evidence is left out of the sum of evidence too, not
// subtracted: it may dwarf the rest. A warp's lanes call it together.
template <class T, class Term>
__device__ __forceinline__ Row row_of(const Beliefs& beliefs, int64_t row, const Term& term, double& terms) {
  using C = compute_of<T>;
  // Exact, but for what is empty_gradient beside the parameters' ones; their sum may be no float.
  constexpr C SHRUNK = sizeof(C) == 4 ? static_cast<C>(0x1p-32) : C(1);
  const int64_t target = beliefs.targets[row];
  C sums[2] = {};
  for (int64_t k = threadIdx.x % 32; k < beliefs.classes; k += 32) {
    const C e = beliefs.at<T>(row, k);
    sums[0] += k == target ? C(0) : e * SHRUNK, sums[1] += k == target ? C(0) : term(e);
  }
  sum_over_lanes(sums, 32);
  terms = static_cast<double>(sums[1]);
  const double wrong = static_cast<double>(sums[0]) / static_cast<double>(SHRUNK);
  Row found{{1, wrong + static_cast<double>(beliefs.classes), wrong}, target, target >= 0 && target < beliefs.classes};
  if (found.valid) found.strengths.true_alpha += static_cast<double>(beliefs.at<T>(row, target));
  return found;
}

// f of the strength of all classes, of the true one's parameter, and of the strength with 1 in its place: a lane to each.
template <class Function>
__device__ __forceinline__ void each_of(const Strengths& s, const Function& f, double& all, double& true_alpha, double& wrong) {
  const unsigned lane = threadIdx.x % 32;
  const double value = f(lane == 0 ? s.strength() : lane == 1 ? s.true_alpha : s.kl_strength);
  all = __shfl_sync(0xffffffffu, value, 0);
  true_alpha = __shfl_sync(0xffffffffu, value, 1);
  wrong = __shfl_sync(0xffffffffu, value, 2);
}

template <class T>
__global__ void __launch_bounds__(BLOCK)
    evidential_loss_kernel(Beliefs beliefs, double kl_weight, double log_gamma, compute_of<T>* losses) {
  using C = compute_of<T>;
  for_each_by_warp(beliefs.rows, [&](int64_t row) {
    double terms, all, true_alpha, wrong;
    const Row found = row_of<T>(beliefs, row, [](C e) { return dirichlet_term(e + C(1)); }, terms);
    const Strengths& s = found.strengths;
    each_of(s, [](double x) { return digamma_less_log(x); }, all, true_alpha, wrong);
    if (threadIdx.x % 32 != 0) return;
    // The true class has parameter 1 in the divergence, whose term is -1.
    const double kl = terms - 1 - dirichlet_term(s.kl_strength) +
                      static_cast<double>(beliefs.classes - 1) * (log(s.kl_strength) + wrong) - log_gamma;
    const double loss = cross_entropy(s, all, true_alpha) + kl_weight * kl;
    losses[row] = found.valid ? static_cast<C>(loss) : static_cast<C>(NAN);
  });
}

// Rows enough for a warp to add up.
inline constexpr int64_t RUN = 1024;

template <class C>
__global__ void __launch_bounds__(BLOCK) loss_sums_kernel(const C* losses, int64_t rows, double* sums) {
  for_each_by_warp((rows + RUN - 1) / RUN, [&](int64_t i) {
    const double sum = sum_by_lanes(min(RUN, rows - i * RUN), [&](int64_t j) { return static_cast<double>(losses[i * RUN + j]); });
    if (threadIdx.x % 32 == 0) sums[i] = sum;
  });
}

// In the order of udml_kernels/ops/evidential.py.
enum Reduction : int64_t { REDUCE_NONE, REDUCE_MEAN, REDUCE_SUM };

template <class C>
static Tensor reduced(const Tensor& losses, bool mean, const OnDevice& device) {
  const int64_t rows = losses.numel(), runs = (rows + RUN - 1) / RUN;
  const double scale = mean ? 1 / static_cast<double>(std::max<int64_t>(rows, 1)) : 1;
  const Tensor out = allocate({}, scalar_type_of<C>, losses);
  if (runs <= 1) {
    sum_partials<C>(losses, 1, rows, scale, results_of<C>(out), device);
    return out;
  }
  const Tensor sums = allocate({runs}, ScalarType::Double, losses);
  launch("loss_sums_kernel", loss_sums_kernel<C>, device, work_by_warp(runs), results_of<C>(losses), rows, results_of<double>(sums));
  sum_partials<double>(sums, 1, runs, scale, results_of<C>(out), device);
  return out;
}

Tensor evidential_loss(Tensor evidence, Tensor target, double kl_weight, int64_t reduction) {
  const auto shape = check_rows(evidence, target);
  const OnDevice device(evidence);
  const int64_t classes = evidence.size(evidence.dim() - 1);
  Tensor out = allocate(shape, compute_type(evidence.scalar_type()), evidence);
  const Held held(evidence, target);
  with_dtype(evidence.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using C = compute_of<T>;
    launch("evidential_loss_kernel", evidential_loss_kernel<T>, device, work_by_warp(out.numel()), held.beliefs(classes), kl_weight,
           std::lgamma(static_cast<double>(classes)), results_of<C>(out));
    if (reduction != REDUCE_NONE) out = reduced<C>(out, reduction == REDUCE_MEAN, device);
  });
  return out;
}

// `share` of the incoming gradient reaches a row: of its own one, or of the only one there is.
template <class T>
__global__ void __launch_bounds__(BLOCK)
    evidential_loss_backward_kernel(Rows grad, bool each, Beliefs beliefs, compute_of<T> kl_weight,
                                    compute_of<T> share, char* out) {
  using C = compute_of<T>;
  for_each_by_warp(beliefs.rows, [&](int64_t row) {
    double none, all, true_alpha, wrong, from_each, from_1;
    const Row found = row_of<T>(beliefs, row, [](C) { return C(0); }, none);
    const Strengths& s = found.strengths;
    each_of(s, [](double x) { return trigamma_less_reciprocal(x); }, all, true_alpha, wrong);
    divergence_offset(s, beliefs.classes, 1 / s.kl_strength + wrong, from_each, from_1);
    const C g = found.valid ? at<C>(grad, each ? row : 0, 0) * share : static_cast<C>(NAN);
    const C common = static_cast<C>(common_slope(s, all)), divergence = static_cast<C>(from_each), rest = static_cast<C>(from_1);
    const C by_true = static_cast<C>(cross_entropy_slope(s, all, true_alpha)) * g;
    for (int64_t k = threadIdx.x % 32; k < beliefs.classes; k += 32) {
      const C by_wrong = (dirichlet_slope(beliefs.at<T>(row, k), divergence, rest) * kl_weight + common) * g;
      store_as(out, dtype_of<T>, row * beliefs.classes + k, k == found.target ? by_true : by_wrong);
    }
  });
}

Tensor evidential_loss_backward(Tensor grad, Tensor evidence, Tensor target, double kl_weight, int64_t reduction) {
  const auto shape = check_rows(evidence, target);
  const bool each = reduction == REDUCE_NONE;
  expect(each ? shape_of(grad) == shape : grad.dim() == 0, "grad: expected the loss's shape");
  const OnDevice device(evidence);
  const int64_t classes = evidence.size(evidence.dim() - 1);
  const Tensor out = allocate_like(evidence);
  const Held held(evidence, target);
  const Input grads(grad, grad.dim());
  with_dtype(evidence.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using C = compute_of<T>;
    const C share = reduction == REDUCE_MEAN ? 1 / static_cast<C>(std::max<int64_t>(target.numel(), 1)) : C(1);
    launch("evidential_loss_backward_kernel", evidential_loss_backward_kernel<T>, device, work_by_warp(target.numel()), grads.rows(), each,
           held.beliefs(classes), static_cast<C>(kl_weight), share, results_of<char>(out));
  });
  return out;
}

}  // namespace udml
