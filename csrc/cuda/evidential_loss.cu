// evidential_loss uses one warp per eight rows, and then adds up the rows.
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

// A warp processes ROWS_PER_WARP rows. It adds up the classes of several rows at a time, with `lanes` lanes a row. Then
// each row has LANES_PER_STRENGTHS lanes, which evaluate a function of one of its strengths in double each.
inline constexpr int ROWS_PER_WARP = 8, LANES_PER_STRENGTHS = 3;

// Few lanes a row leave few idle at the end of a row; many keep the chains of float additions short.
__device__ __forceinline__ unsigned lanes_per_row(int64_t classes) { return classes <= 64 ? 8 : 32; }

inline Work loss_work(int64_t rows) { return warp_item_work((rows + ROWS_PER_WARP - 1) / ROWS_PER_WARP); }

// The row of this lane when it evaluates strengths. The last lanes repeat the last row.
__device__ __forceinline__ unsigned own_row() {
  return min(threadIdx.x % 32 / LANES_PER_STRENGTHS, static_cast<unsigned>(ROWS_PER_WARP - 1));
}

// Calls body(step, row in the warp, first class) for the rows that the lanes of a warp add up together.
template <class Body>
__device__ __forceinline__ void for_each_step(unsigned lanes, const Body& body) {
  const unsigned rows_per_step = 32 / lanes;
#pragma unroll 1
  for (unsigned step = 0; step * rows_per_step < ROWS_PER_WARP; ++step)
    body(step, step * rows_per_step + threadIdx.x % 32 / lanes, threadIdx.x % lanes);
}

// Reads the warp's rows from `first` on, and sums term(e) over all classes except the true one. The sum of evidence
// skips the true class too: subtracting it afterwards could cancel, as it may be much larger than the rest. Returns the
// parameters of own_row(). All lanes of a warp call it together.
template <class T, class Term>
__device__ __forceinline__ Row rows_of(const EvidenceRows& evidence_rows, int64_t first, const Term& term,
                                       double& terms) {
  using C = compute_of<T>;
  // The sum of evidence may overflow float. Scaling it down loses only evidence that is negligible beside the 1 of each
  // parameter.
  constexpr C SCALE_DOWN = sizeof(C) == 4 ? static_cast<C>(0x1p-32) : C(1);
  const unsigned lanes = lanes_per_row(evidence_rows.classes), rows_per_step = 32 / lanes, own = own_row();
  C own_sums[2] = {};
  for_each_step(lanes, [&](unsigned step, unsigned row_in_warp, unsigned first_class) {
    const int64_t row = first + row_in_warp;
    C sums[2] = {};
    if (row < evidence_rows.rows) {
      const int64_t target = evidence_rows.targets[row];
      for (int64_t k = first_class; k < evidence_rows.classes; k += lanes) {
        const C e = evidence_rows.at<T>(row, k);
        sums[0] += k == target ? C(0) : e * SCALE_DOWN, sums[1] += k == target ? C(0) : term(e);
      }
    }
    sum_over_lanes(sums, lanes);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const C sum = __shfl_sync(0xffffffffu, sums[i], static_cast<int>(own % rows_per_step * lanes));
      if (own / rows_per_step == step) own_sums[i] = sum;
    }
  });
  terms = static_cast<double>(own_sums[1]);
  const int64_t row = min(first + own, evidence_rows.rows - 1), target = evidence_rows.targets[row];
  const double wrong_evidence = static_cast<double>(own_sums[0]) / static_cast<double>(SCALE_DOWN);
  Row parameters{{1, wrong_evidence + static_cast<double>(evidence_rows.classes), wrong_evidence},
                 target,
                 target >= 0 && target < evidence_rows.classes};
  if (parameters.valid) parameters.strengths.true_alpha += static_cast<double>(evidence_rows.at<T>(row, target));
  return parameters;
}

// Evaluates f at the strength, the true parameter and kl_strength of own_row(), with one lane each.
template <class Function>
__device__ __forceinline__ void for_each_strength(const Strengths& s, const Function& f, double& at_strength,
                                                  double& at_true_alpha, double& at_kl_strength) {
  const unsigned which = threadIdx.x % 32 % LANES_PER_STRENGTHS;
  const int first = static_cast<int>(own_row() * LANES_PER_STRENGTHS);
  const double value = f(which == 0 ? s.strength() : which == 1 ? s.true_alpha : s.kl_strength);
  at_strength = __shfl_sync(0xffffffffu, value, first);
  at_true_alpha = __shfl_sync(0xffffffffu, value, first + 1);
  at_kl_strength = __shfl_sync(0xffffffffu, value, first + 2);
}

template <class T>
__global__ void __launch_bounds__(BLOCK)
    evidential_loss_kernel(EvidenceRows evidence_rows, double kl_weight, double log_gamma, compute_of<T>* losses) {
  using C = compute_of<T>;
  for_each_warp_item((evidence_rows.rows + ROWS_PER_WARP - 1) / ROWS_PER_WARP, [&](int64_t i) {
    double terms, at_strength, at_true_alpha, at_kl_strength;
    const Row parameters =
        rows_of<T>(evidence_rows, i * ROWS_PER_WARP, [](C e) { return dirichlet_term(e + C(1)); }, terms);
    const Strengths& s = parameters.strengths;
    for_each_strength(s, [](double x) { return digamma_less_log(x); }, at_strength, at_true_alpha, at_kl_strength);
    const unsigned lane = threadIdx.x % 32;
    const int64_t row = i * ROWS_PER_WARP + own_row();
    if (lane >= ROWS_PER_WARP * LANES_PER_STRENGTHS || lane % LANES_PER_STRENGTHS != 0 || row >= evidence_rows.rows)
      return;
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
    launch("evidential_loss_kernel", evidential_loss_kernel<T>, device, loss_work(out.numel()),
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
  for_each_warp_item((evidence_rows.rows + ROWS_PER_WARP - 1) / ROWS_PER_WARP, [&](int64_t i) {
    double none, at_strength, at_true_alpha, at_kl_strength, double_offset, double_one_minus_offset;
    const int64_t first = i * ROWS_PER_WARP;
    const Row parameters = rows_of<T>(evidence_rows, first, [](C) { return C(0); }, none);
    const Strengths& s = parameters.strengths;
    for_each_strength(s, [](double x) { return trigamma_less_reciprocal(x); }, at_strength, at_true_alpha,
                      at_kl_strength);
    divergence_offset(s, evidence_rows.classes, 1 / s.kl_strength + at_kl_strength, double_offset,
                      double_one_minus_offset);
    const int64_t own = min(first + own_row(), evidence_rows.rows - 1);
    const C own_grad = parameters.valid ? at<C>(grad, each ? own : 0, 0) * row_scale : static_cast<C>(NAN);
    const C own_values[] = {own_grad, static_cast<C>(common_slope(s, at_strength)), static_cast<C>(double_offset),
                            static_cast<C>(double_one_minus_offset),
                            static_cast<C>(cross_entropy_slope(s, at_strength, at_true_alpha)) * own_grad};
    const unsigned lanes = lanes_per_row(evidence_rows.classes);
    for_each_step(lanes, [&](unsigned, unsigned row_in_warp, unsigned first_class) {
      C values[5];
#pragma unroll
      for (int n = 0; n < 5; ++n)
        values[n] = __shfl_sync(0xffffffffu, own_values[n], static_cast<int>(row_in_warp * LANES_PER_STRENGTHS));
      const auto [g, common, offset, one_minus_offset, true_gradient] = values;
      const int64_t row = first + row_in_warp;
      if (row >= evidence_rows.rows) return;
      const int64_t target = evidence_rows.targets[row];
      for (int64_t k = first_class; k < evidence_rows.classes; k += lanes) {
        const C wrong_gradient =
            (dirichlet_slope(evidence_rows.at<T>(row, k), offset, one_minus_offset) * kl_weight + common) * g;
        store_as(out, dtype_of<T>, row * evidence_rows.classes + k, k == target ? true_gradient : wrong_gradient);
      }
    });
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
    launch("evidential_loss_backward_kernel", evidential_loss_backward_kernel<T>, device, loss_work(target.numel()),
           grads.rows(), each, tensors.evidence_rows(classes), static_cast<C>(kl_weight), row_scale,
           results_of<char>(out));
  });
  return out;
}

}  // namespace udml

UDML_REGISTER(evidential_loss)
UDML_REGISTER(evidential_loss_backward)
