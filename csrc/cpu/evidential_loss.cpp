#include "tensor.h"

#include "../gamma.h"

namespace udml {

UDML_FN f64 dirichlet_term(f64 x) {
  return each_lane(x, [](double v) { return dirichlet_term(v); });
}

UDML_FN f64 dirichlet_slope(f64 e, f64 offset_lanes, f64 one_minus_offset_lanes) {
  for (int i = 0; i < W; ++i) e[i] = dirichlet_slope(e[i], offset_lanes[i], one_minus_offset_lanes[i]);
  return e;
}

namespace {

// The target class and the Dirichlet parameters of a row.
struct Row {
  int64_t target;
  bool valid;
  Strengths strengths;
};

// Calls body(first class, lanes, mask of the lanes that are not the true class) for every W classes.
template <class C, class Body>
UDML_FN void for_each_class(int64_t classes, int64_t target, const Body& body) {
  for_each_vector(classes, [&](int64_t i, auto lanes) {
    const i32 is_wrong = lane_index() != static_cast<int32_t>(std::clamp<int64_t>(target - i, -1, W));
    if constexpr (sizeof(C) == 8) {
      body(i, lanes, __builtin_convertvector(is_wrong, i64));
    } else {
      body(i, lanes, is_wrong);
    }
  });
}

// The sum skips the evidence for the true class. Subtracting it afterwards could cancel, as it may be much larger than
// the rest.
template <class C>
Row read_row(const C* evidence, int64_t classes, int64_t target) {
  // The sum of evidence may overflow float. Scaling it down loses only evidence that is negligible beside the 1 of each
  // parameter.
  constexpr C SCALE_DOWN = sizeof(C) == 4 ? 0x1p-32 : 1;
  Row row{target, target >= 0 && target < classes, {}};
  if (!row.valid) return row;
  lanes_of<C> sum{};
  for_each_class<C>(classes, target, [&](int64_t i, auto lanes, auto is_wrong) {
    sum += select(is_wrong, load_lanes(evidence + i, lanes) * SCALE_DOWN, lanes_of<C>{});
  });
  const double wrong_evidence = static_cast<double>(sum_of_lanes(sum)) / SCALE_DOWN;
  row.strengths = {static_cast<double>(evidence[target]) + 1, wrong_evidence + static_cast<double>(classes),
                   wrong_evidence};
  return row;
}

// Sums the terms of the KL divergence for all classes except the true one.
template <class C>
double sum_of_terms(const C* evidence, int64_t classes, int64_t target) {
  lanes_of<C> total{};
  for_each_class<C>(classes, target, [&](int64_t i, auto lanes, auto is_wrong) {
    const lanes_of<C> term = dirichlet_term(load_lanes(evidence + i, lanes) + C(1));
    total += keep_lanes(select(is_wrong, term, lanes_of<C>{}), lanes);
  });
  return sum_of_lanes(total);
}

// Returns a row of any number of classes as contiguous numbers of the arithmetic type.
template <class C>
const C* contiguous_row(const Reader<C>& rows, int64_t row, int64_t classes, std::vector<C>& buffer) {
  if (const C* direct = rows.direct(row)) return direct;
  buffer.resize(static_cast<size_t>(classes));
  for (int64_t begin = 0; begin < classes; begin += TILE) {
    const int64_t n = std::min(TILE, classes - begin);
    C* destination = buffer.data() + begin;
    const C* run = rows.run(row, begin, n, destination);
    if (run != destination) memcpy(destination, run, static_cast<size_t>(n) * sizeof(C));
  }
  return buffer.data();
}

// Adds the rows in order and in double, so that the result does not depend on the number of threads.
Tensor reduce_losses(const Tensor& losses, bool mean) {
  const Tensor out = allocate({}, losses.scalar_type());
  with_compute_type(losses.scalar_type(), [&](auto type) {
    using C = decltype(type);
    double sum = 0;
    for (int64_t r = 0; r < losses.numel(); ++r) sum += values_of<C>(losses)[r];
    *results_of<C>(out) = static_cast<C>(mean ? sum / static_cast<double>(std::max<int64_t>(losses.numel(), 1)) : sum);
  });
  return out;
}

}  // namespace

Tensor evidential_loss(Tensor evidence, Tensor target, double kl_weight, int64_t reduction) {
  const auto shape = losses_shape(evidence, target);
  const int64_t classes = evidence.size(evidence.dim() - 1);
  const Tensor out = allocate(shape, compute_type(evidence.scalar_type()));
  const Tensor targets = torch::stable::contiguous(target);
  with_compute_type(evidence.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const Reader<C> rows(evidence, evidence.dim() - 1);
    const double log_gamma = lgamma(static_cast<double>(classes));
    parallel_items(out.numel(), 16 * classes, [&](int64_t r) {
      std::vector<C> buffer;
      const C* e = contiguous_row(rows, r, classes, buffer);
      const Row row = read_row(e, classes, values_of<int64_t>(targets)[r]);
      C* loss = results_of<C>(out) + r;
      if (!row.valid) {
        *loss = NAN;
        return;
      }
      // In the KL divergence the parameter of the true class is 1, and its term is -1.
      const Strengths& s = row.strengths;
      const double terms = sum_of_terms(e, classes, row.target) - 1;
      const double kl =
          terms - dirichlet_term(s.kl_strength) + static_cast<double>(classes - 1) * digamma(s.kl_strength) - log_gamma;
      const double entropy = cross_entropy(s, digamma_less_log(s.strength()), digamma_less_log(s.true_alpha));
      *loss = static_cast<C>(entropy + kl_weight * kl);
    });
  });
  return reduction == REDUCE_NONE ? out : reduce_losses(out, reduction == REDUCE_MEAN);
}

Tensor evidential_loss_backward(Tensor grad, Tensor evidence, Tensor target, double kl_weight, int64_t reduction) {
  const auto shape = losses_shape(evidence, target);
  const int64_t classes = evidence.size(evidence.dim() - 1);
  expect(reduction == REDUCE_NONE ? shape_of(grad) == shape : grad.dim() == 0, "grad: expected the loss's shape");
  const Tensor out = allocate_like(evidence), targets = torch::stable::contiguous(target);
  with_compute_type(evidence.scalar_type(), [&](auto type) {
    using C = decltype(type);
    using V = lanes_of<C>;
    const Reader<C> rows(evidence, evidence.dim() - 1), grads(grad, grad.dim());
    const Writer<C> into(out, classes);
    const C row_scale = reduction == REDUCE_MEAN ? 1 / static_cast<C>(std::max<int64_t>(targets.numel(), 1)) : C(1);
    parallel_items(targets.numel(), 16 * classes, [&](int64_t r) {
      std::vector<C> buffer;
      alignas(64) C out_buffer[TILE];
      const C* e = contiguous_row(rows, r, classes, buffer);
      const Row row = read_row(e, classes, values_of<int64_t>(targets)[r]);
      const C g = row.valid ? grads.at(reduction == REDUCE_NONE ? r : 0, 0) * row_scale : NAN;
      const Strengths& s = row.strengths;
      const double strength_less_reciprocal = trigamma_less_reciprocal(s.strength());
      double offset, one_minus_offset;
      divergence_offset(s, classes, trigamma(s.kl_strength), offset, one_minus_offset);
      const C common = static_cast<C>(common_slope(s, strength_less_reciprocal));
      const V offset_lanes = V{} + static_cast<C>(offset),
              one_minus_offset_lanes = V{} + static_cast<C>(one_minus_offset);
      const C kl_factor = static_cast<C>(kl_weight);
      for (int64_t begin = 0; begin < classes; begin += TILE) {
        const int64_t n = std::min(TILE, classes - begin);
        C* destination = into.run(r, begin, out_buffer);
        for_each_vector(n, [&](int64_t i, auto lanes) {
          const V slope = dirichlet_slope(load_lanes(e + begin + i, lanes), offset_lanes, one_minus_offset_lanes);
          store_lanes(destination + i, V((slope * kl_factor + common) * g), lanes);
        });
        if (row.target >= begin && row.target < begin + n)
          destination[row.target - begin] = static_cast<C>(
              cross_entropy_slope(s, strength_less_reciprocal, trigamma_less_reciprocal(s.true_alpha)) * g);
        into.commit(r, begin, n, destination);
      }
      into.finish();
    });
  });
  return out;
}

}  // namespace udml

UDML_REGISTER(evidential_loss)
UDML_REGISTER(evidential_loss_backward)
