// The estimator without activation. Its two linear layers form one layer: o = (sum_h w2_h W1_h) . x. For each sample,
// dropout removes some h from this sum (kept_sums.h). The gradients of the weights are similar sums over the batch.
#pragma once

#include <atomic>

#include "estimator.h"
#include "kept_sums.h"

namespace udml {

template <class Values>
bool all_finite(const Values& values) {
  return std::all_of(values.begin(), values.end(), [](auto v) { return std::isfinite(v); });
}

// The number of samples, or hidden units, that share the sum over all terms.
inline constexpr int64_t FOLDED_ROWS = 64;

// Calls body(group, first, last) in parallel for blocks of `rows` in each group. Each row sums up to `terms` terms.
template <class C, class Body>
void for_folded_blocks(const Estimator<C>& net, int64_t rows, int64_t terms, const Body& body) {
  const int64_t blocks = (rows + FOLDED_ROWS - 1) / FOLDED_ROWS;
  const double expected_terms = static_cast<double>(terms) * (net.dropout_p + 1.0 / FOLDED_ROWS);
  const int64_t cost =
      std::min(rows, FOLDED_ROWS) * net.outputs * static_cast<int64_t>(1 + expected_terms) * net.features / 8;
  parallel_items(net.groups * blocks, cost, [&](int64_t item) {
    const int64_t first = item % blocks * FOLDED_ROWS;
    body(item / blocks, first, std::min(first + FOLDED_ROWS, rows));
  });
}

// The folded weights and biases of the first layer, for each output of a group.
template <class C>
struct Folded {
  std::vector<VectorSum<C>> terms;
  std::vector<ScalarSum<C>> constants;

  Folded(const Estimator<C>& net, int64_t m) {
    const C *first = net.weight1_of(m), *bias = net.bias1 + m * net.hidden;
    const auto magnitudes = Magnitude::of_rows(first, net.has_dropout() ? net.hidden : 0, net.features);
    for (int64_t o = 0; o < net.outputs; ++o) {
      terms.emplace_back(net.weight2_of(m, o), first, net.hidden, net.features, magnitudes);
      constants.emplace_back(net.weight2_of(m, o), bias, net.hidden);
    }
  }

  bool finite() const {
    return std::all_of(constants.begin(), constants.end(), [](const auto& c) { return std::isfinite(c.total()); }) &&
           std::all_of(terms.begin(), terms.end(), [](const auto& t) { return all_finite(t.total()); });
  }
};

// Computes o (M, B, O) without the bias of the second layer.
template <class C>
void second_layer_folded(const Estimator<C>& net, double* result) {
  const int64_t D = net.features, H = net.hidden, O = net.outputs;
  for_folded_blocks(net, net.batch, H, [&](int64_t m, int64_t first, int64_t last) {
    const Folded<C> folded(net, m);
    TermSelection selection(H);
    std::vector<uint8_t> dropped(static_cast<size_t>(H));
    std::vector<C> row(static_cast<size_t>(D));
    for (int64_t b = first; b < last; ++b) {
      const C* x = net.inputs(m) + b * D;
      if (net.has_dropout()) selection.find(net.dropped_units(m, b, dropped.data()), 1);
      const double norm = net.has_dropout() ? Magnitude::of(x, D).norm : 0;
      for (size_t o = 0; o < folded.terms.size(); ++o) {
        const VectorSum<C>& terms = folded.terms[o];
        const ScalarSum<C>& constants = folded.constants[o];
        const bool sum_kept =
            net.has_dropout() &&
            !terms.product_is_accurate(selection, x, norm, constants.dropped(selection), constants.size());
        terms.sum(selection, sum_kept, row.data());
        result[(m * net.batch + b) * O + static_cast<int64_t>(o)] =
            net.scale * (dot(row.data(), x, D) + constants.sum(selection, sum_kept));
      }
    }
  });
}

// y += factor * x, or y = factor * x
template <class C>
void add_scaled(C* y, const C* x, C factor, bool add, int64_t n) {
  for_each_vector(n, [&](int64_t i, auto lanes) {
    const lanes_of<C> old = add ? load_lanes(y + i, lanes) : lanes_of<C>{};
    store_lanes(y + i, lanes_of<C>(old + load_lanes(x + i, lanes) * factor), lanes);
  });
}

// y = x, or y += x
template <class C>
void put(C* y, C x, bool add) {
  *y = add ? *y + x : x;
}

// Computes the gradients of weight1, bias1 and weight2. The sums over the batch are split into pieces, because a long
// chain of float32 additions loses digits.
template <class C>
void weights_backward_folded(const Estimator<C>& net, const C* o_gradient, const uint8_t* dropped,
                             const Gradients<C>& grads) {
  const int64_t B = net.batch, D = net.features, H = net.hidden, O = net.outputs;
  for_folded_blocks(net, H, B, [&](int64_t m, int64_t first, int64_t last) {
    std::vector<C> row(static_cast<size_t>(D)), g(static_cast<size_t>(GEMM_DEPTH));
    const std::vector<C> ones(static_cast<size_t>(GEMM_DEPTH), C(1));
    const auto units = Magnitude::of_rows(net.weight1_of(m) + first * D, net.has_dropout() ? last - first : 0, D);
    // An empty batch runs once too, so that its gradients are 0.
    for (int64_t begin = 0; begin == 0 || begin < B; begin += GEMM_DEPTH) {
      const int64_t n = std::min(GEMM_DEPTH, B - begin);
      const C* x = net.inputs(m) + begin * D;
      const auto samples = Magnitude::of_rows(x, net.has_dropout() ? n : 0, D);
      for (int64_t o = 0; o < O; ++o) {
        for (int64_t b = 0; b < n; ++b) g[static_cast<size_t>(b)] = net.scale * o_gradient[(m * B + begin + b) * O + o];
        const VectorSum<C> terms(g.data(), x, n, D, samples);
        const ScalarSum<C> constants(g.data(), ones.data(), n);
        TermSelection selection(n);
        for (int64_t h = first; h < last; ++h) {
          const C w2 = net.weight2_of(m, o)[h], b1 = net.bias1[m * H + h];
          bool sum_kept = false;
          if (net.has_dropout()) {
            selection.find(dropped + (m * B + begin) * H + h, H);
            const double dropped_size = constants.dropped(selection), total_size = constants.size(),
                         bias = std::abs(static_cast<double>(b1));
            sum_kept = (grads.needs & WEIGHT1 && !terms.row_is_accurate(selection)) ||
                       (grads.needs & BIAS1 && !is_accurate(dropped_size, total_size)) ||
                       (grads.needs & WEIGHT2 && !terms.product_is_accurate(selection, net.weight1_of(m) + h * D,
                                                                            units[static_cast<size_t>(h - first)].norm,
                                                                            bias * dropped_size, bias * total_size));
          }
          terms.sum(selection, sum_kept, row.data());
          const C kept_sum = constants.sum(selection, sum_kept);
          const bool add = begin > 0 || o > 0;
          if (C* out = grads.at(grads.weight1, WEIGHT1, (m * H + h) * D)) add_scaled(out, row.data(), w2, add, D);
          if (C* out = grads.at(grads.bias1, BIAS1, m * H + h)) put(out, w2 * kept_sum, add);
          if (C* out = grads.at(grads.weight2, WEIGHT2, (m * O + o) * H + h))
            put(out, dot(net.weight1_of(m) + h * D, row.data(), D) + b1 * kept_sum, begin > 0);
        }
      }
    }
  });
}

template <class C>
bool overflows(const Result<C>& result) {
  const Magnitude extent = Magnitude::of<C>(result, result.size());
  return std::isnan(extent.norm) || extent.largest > result.limit();
}

// Computes all gradients except that of bias2. It returns false if the folded weights are not finite or a gradient
// overflows. Rounding errors are small relative to the largest gradient of a row; if that one overflows, the others
// need separate sums.
template <class C>
bool backward_folded(const Estimator<C>& net, const C* o_gradient, const Gradients<C>& grads) {
  const int64_t B = net.batch, D = net.features, H = net.hidden, O = net.outputs;
  std::vector<uint8_t> dropped(static_cast<size_t>(net.groups * B * H));
  std::atomic<bool> finite{true};
  for_folded_blocks(net, B, H, [&](int64_t m, int64_t first, int64_t last) {
    const Folded<C> folded(net, m);
    if (!folded.finite()) finite = false;
    TermSelection selection(H);
    std::vector<C> row(static_cast<size_t>(D));
    for (int64_t b = first; b < last; ++b) {
      const uint8_t* dropped_row = net.dropped_units(m, b, dropped.data() + (m * B + b) * H);
      C* std = grads.at(grads.std, STD, (m * B + b) * D);
      if (!std) continue;
      if (net.has_dropout()) selection.find(dropped_row, 1);
      for (int64_t o = 0; o < O; ++o) {
        const VectorSum<C>& terms = folded.terms[static_cast<size_t>(o)];
        terms.sum(selection, net.has_dropout() && !terms.row_is_accurate(selection), row.data());
        add_scaled(std, row.data(), net.scale * o_gradient[(m * B + b) * O + o], o > 0, D);
      }
    }
  });
  if (finite && grads.needs & (WEIGHT1 | BIAS1 | WEIGHT2))
    weights_backward_folded(net, o_gradient, dropped.data(), grads);
  // Without dropout nothing is subtracted.
  const auto accurate = [&](const auto&... results) { return !net.has_dropout() || !(overflows(results) || ...); };
  return finite && accurate(grads.std, grads.weight1, grads.bias1, grads.weight2);
}

}  // namespace udml
