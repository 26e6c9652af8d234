// evidential_loss uses one warp per row, and then adds up the rows.
#include <cmath>

#include "evidential.h"

namespace udml {

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

UDML_REGISTER(evidential_loss)
UDML_REGISTER(evidential_loss_backward)
