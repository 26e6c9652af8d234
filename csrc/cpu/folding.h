// The estimator without activation. Two linear layers are one, of rank `outputs`: o = (sum_h w2_h W1_h) . x.
// Dropout takes its own few h out of every sample's sum (kept_sums.h); the gradients with respect to the weights
// are such sums over the batch.
#pragma once

#include <atomic>

#include "estimator.h"
#include "kept_sums.h"

namespace udml {

template <class Values>
bool all_finite(const Values& values) {
  return std::all_of(values.begin(), values.end(), [](auto v) { return std::isfinite(v); });
}

// Samples, or hidden units, that share the sum over all terms.
inline constexpr int64_t FOLDED_ROWS = 64;

// body(first, last) in parallel over blocks of `rows`, for each of the groups; a row sums up to `terms` terms.
template <class C, class Body>
void for_folded_blocks(const Estimator<C>& net, int64_t rows, int64_t terms, const Body& body) {
  const int64_t blocks = (rows + FOLDED_ROWS - 1) / FOLDED_ROWS;
  const double chosen = static_cast<double>(terms) * (net.dropout_p + 1.0 / FOLDED_ROWS);
  const int64_t cost = std::min(rows, FOLDED_ROWS) * net.outputs * static_cast<int64_t>(1 + chosen) * net.features / 8;
  parallel_items(net.groups * blocks, cost, [&](int64_t item) {
    const int64_t first = item % blocks * FOLDED_ROWS;
    body(item / blocks, first, std::min(first + FOLDED_ROWS, rows));
  });
}

// The folded first layer and its constant, for each output of a group.
template <class C>
struct Folded {
  std::vector<Terms<C>> terms;
  std::vector<Numbers<C>> constants;

  Folded(const Estimator<C>& net, int64_t m) {
    const C *first = net.first(m), *bias = net.bias1 + m * net.hidden;
    const auto extents = Extent::of_rows(first, net.drops() ? net.hidden : 0, net.features);
    for (int64_t o = 0; o < net.outputs; ++o) {
      terms.emplace_back(net.second(m, o), first, net.hidden, net.features, extents);
      constants.emplace_back(net.second(m, o), bias, net.hidden);
    }
  }

  bool finite() const {
    return std::all_of(constants.begin(), constants.end(), [](const auto& c) { return std::isfinite(c.whole()); }) &&
           std::all_of(terms.begin(), terms.end(), [](const auto& t) { return all_finite(t.whole()); });
  }
};

// o (M, B, O), before the bias of the second layer.
template <class C>
void second_layer_folded(const Estimator<C>& net, double* result) {
  const int64_t D = net.features, H = net.hidden, O = net.outputs;
  for_folded_blocks(net, net.batch, H, [&](int64_t m, int64_t first, int64_t last) {
    const Folded<C> folded(net, m);
    Chosen chosen(H);
    std::vector<uint8_t> dropped(static_cast<size_t>(H));
    std::vector<C> row(static_cast<size_t>(D));
    for (int64_t b = first; b < last; ++b) {
      const C* x = net.inputs(m) + b * D;
      if (net.drops()) chosen.find(net.dropped_units(m, b, dropped.data()), 1);
      const double norm = net.drops() ? Extent::of(x, D).norm : 0;
      for (size_t o = 0; o < folded.terms.size(); ++o) {
        const Terms<C>& terms = folded.terms[o];
        const Numbers<C>& constants = folded.constants[o];
        const bool by_terms =
            net.drops() && !terms.product_stays(chosen, x, norm, constants.dropped(chosen), constants.size());
        terms.sum(chosen, by_terms, row.data());
        result[(m * net.batch + b) * O + static_cast<int64_t>(o)] =
            net.scale * (dot(row.data(), x, D) + constants.sum(chosen, by_terms));
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

// The gradients of the first layer and of the second's weights: sums over the batch, in pieces, as a long chain
// of float32 additions loses digits.
template <class C>
void weights_backward_folded(const Estimator<C>& net, const C* by_o, const uint8_t* dropped, const Gradients<C>& grads) {
  const int64_t B = net.batch, D = net.features, H = net.hidden, O = net.outputs;
  for_folded_blocks(net, H, B, [&](int64_t m, int64_t first, int64_t last) {
    std::vector<C> row(static_cast<size_t>(D)), g(static_cast<size_t>(GEMM_DEPTH));
    const std::vector<C> ones(static_cast<size_t>(GEMM_DEPTH), C(1));
    const auto units = Extent::of_rows(net.first(m) + first * D, net.drops() ? last - first : 0, D);
    // Once for an empty batch too, whose sums are 0.
    for (int64_t begin = 0; begin == 0 || begin < B; begin += GEMM_DEPTH) {
      const int64_t n = std::min(GEMM_DEPTH, B - begin);
      const C* x = net.inputs(m) + begin * D;
      const auto samples = Extent::of_rows(x, net.drops() ? n : 0, D);
      for (int64_t o = 0; o < O; ++o) {
        for (int64_t b = 0; b < n; ++b) g[static_cast<size_t>(b)] = net.scale * by_o[(m * B + begin + b) * O + o];
        const Terms<C> terms(g.data(), x, n, D, samples);
        const Numbers<C> constants(g.data(), ones.data(), n);
        Chosen chosen(n);
        for (int64_t h = first; h < last; ++h) {
          const C w2 = net.second(m, o)[h], b1 = net.bias1[m * H + h];
          bool by_terms = false;
          if (net.drops()) {
            chosen.find(dropped + (m * B + begin) * H + h, H);
            const double gone = constants.dropped(chosen), all = constants.size(), bias = std::abs(static_cast<double>(b1));
            by_terms = (grads.needs & WEIGHT1 && !terms.row_stays(chosen)) || (grads.needs & BIAS1 && !stays(gone, all)) ||
                       (grads.needs & WEIGHT2 &&
                        !terms.product_stays(chosen, net.first(m) + h * D, units[static_cast<size_t>(h - first)].norm,
                                             bias * gone, bias * all));
          }
          terms.sum(chosen, by_terms, row.data());
          const C one = constants.sum(chosen, by_terms);
          const bool add = begin > 0 || o > 0;
          if (C* out = grads.at(grads.weight1, WEIGHT1, (m * H + h) * D)) add_scaled(out, row.data(), w2, add, D);
          if (C* out = grads.at(grads.bias1, BIAS1, m * H + h)) put(out, w2 * one, add);
          if (C* out = grads.at(grads.weight2, WEIGHT2, (m * O + o) * H + h))
            put(out, dot(net.first(m) + h * D, row.data(), D) + b1 * one, begin > 0);
        }
      }
    }
  });
}

template <class C>
bool overflows(const Result<C>& result) {
  const Extent extent = Extent::of<C>(result, result.size());
  return std::isnan(extent.norm) || extent.largest > result.limit();
}

// All gradients but the second bias's. False where the weights are not finite, and where a gradient overflows: rounding
// errors are small beside the largest gradient of a row, so where that one is lost, the others must be summed up alone.
template <class C>
bool backward_folded(const Estimator<C>& net, const C* by_o, const Gradients<C>& grads) {
  const int64_t B = net.batch, D = net.features, H = net.hidden, O = net.outputs;
  std::vector<uint8_t> dropped(static_cast<size_t>(net.groups * B * H));
  std::atomic<bool> finite{true};
  for_folded_blocks(net, B, H, [&](int64_t m, int64_t first, int64_t last) {
    const Folded<C> folded(net, m);
    if (!folded.finite()) finite = false;
    Chosen chosen(H);
    std::vector<C> row(static_cast<size_t>(D));
    for (int64_t b = first; b < last; ++b) {
      const uint8_t* mine = net.dropped_units(m, b, dropped.data() + (m * B + b) * H);
      C* std = grads.at(grads.std, STD, (m * B + b) * D);
      if (!std) continue;
      if (net.drops()) chosen.find(mine, 1);
      for (int64_t o = 0; o < O; ++o) {
        const Terms<C>& terms = folded.terms[static_cast<size_t>(o)];
        terms.sum(chosen, net.drops() && !terms.row_stays(chosen), row.data());
        add_scaled(std, row.data(), net.scale * by_o[(m * B + b) * O + o], o > 0, D);
      }
    }
  });
  if (finite && grads.needs & (WEIGHT1 | BIAS1 | WEIGHT2)) weights_backward_folded(net, by_o, dropped.data(), grads);
  return finite && !overflows(grads.std) && !overflows(grads.weight1) && !overflows(grads.bias1) && !overflows(grads.weight2);
}

}  // namespace udml
