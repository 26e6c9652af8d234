// The estimator without activation. Two linear layers are one, of rank `outputs`: o = (sum_h w2_h W1_h) . x.
// Dropout takes its own few h out of every sample's sum. Taken from the whole, term by term, they cost the
// share p of a product with all of them; the gradients with respect to the weights are such sums over the
// batch. Where more than half are dropped, those that are kept are added instead.
#pragma once

#include <atomic>

#include "estimator.h"

namespace udml {

template <class Values>
bool all_finite(const Values& values) {
  return std::all_of(values.begin(), values.end(), [](auto v) { return std::isfinite(v); });
}

template <class C>
C dot(const C* a, const C* b, int64_t n) {
  lanes_of<C> total{};
  for_each_vector(n, [&](int64_t i, auto lanes) { total += load_lanes(a + i, lanes) * load_lanes(b + i, lanes); });
  return sum_of_lanes(total);
}

// Which terms of a sum stay: the places of the rarer kind.
class Kept {
 public:
  explicit Kept(int64_t terms) : terms_(terms), places_(static_cast<size_t>(terms + 1)) {}

  void find(const uint8_t* dropped, int64_t step) {
    add_ = false;
    collect(dropped, step, 1);
    if (2 * count_ <= terms_) return;
    add_ = true;
    collect(dropped, step, 0);
  }

  // Whether the places are those to add to nothing, else those to take from the whole.
  bool add() const { return add_; }
  const int64_t* begin() const { return places_.data(); }
  const int64_t* end() const { return places_.data() + count_; }

 private:
  void collect(const uint8_t* dropped, int64_t step, uint8_t wanted) {
    count_ = 0;
    for (int64_t i = 0; i < terms_; ++i) {
      places_[static_cast<size_t>(count_)] = i;
      count_ += dropped[i * step] == wanted;
    }
  }

  int64_t terms_, count_ = 0;
  bool add_ = false;
  std::vector<int64_t> places_;
};

// Sums of c_k A_k over the terms that are kept, for the rows A_k of a matrix.
template <class C>
class Terms {
 public:
  Terms(const C* c, const C* matrix, int64_t count, int64_t width)
      : c_(c), matrix_(matrix), width_(width), whole_(static_cast<size_t>(width)) {
    gemm<C>({c, 0, 1}, matrix, width, 1, count, width,
            [&](int64_t, int64_t d, lanes_of<C> sum, auto lanes) { store_lanes(&whole_[0] + d, sum, lanes); });
  }

  const std::vector<C>& whole() const { return whole_; }

  void sum(const Kept& kept, C* out) const {
    const std::integral_constant<int64_t, W> all;
    int64_t column = 0;
    for (; column + WIDE * W <= width_; column += WIDE * W) columns<WIDE>(kept, column, all, out);
    for (; column + W <= width_; column += W) columns<1>(kept, column, all, out);
    if (column < width_) columns<1>(kept, column, width_ - column, out);
  }

 private:
  static constexpr int WIDE = W == 16 ? 16 : 8;

  template <int N, class Lanes>
  void columns(const Kept& kept, int64_t column, Lanes lanes, C* out) const {
    lanes_of<C> sum[N];
    for (int v = 0; v < N; ++v) sum[v] = load_lanes(&whole_[0] + column + v * W, lanes);
    if (kept.add()) std::fill_n(sum, N, lanes_of<C>{});
    for (const int64_t k : kept) {
      const C* row = matrix_ + k * width_ + column;
      const C factor = kept.add() ? c_[k] : -c_[k];
      for (int v = 0; v < N; ++v) sum[v] += load_lanes(row + v * W, lanes) * factor;
    }
    for (int v = 0; v < N; ++v) store_lanes(out + column + v * W, sum[v], lanes);
  }

  const C *c_, *matrix_;
  int64_t width_;
  std::vector<C> whole_;
};

// The same of numbers: the sum of c_k a_k, `whole` over all of them.
template <class C>
C kept_sum(const Kept& kept, C whole, const C* c, const C* a) {
  C sum = 0;
  for (const int64_t k : kept) sum += c[k] * a[k];
  return kept.add() ? sum : whole - sum;
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

// The folded first layer and its constant, an output of a group.
template <class C>
struct Folded {
  std::vector<Terms<C>> terms;
  std::vector<C> constants;

  Folded(const Estimator<C>& net, int64_t m) {
    for (int64_t o = 0; o < net.outputs; ++o) {
      terms.emplace_back(net.second(m, o), net.first(m), net.hidden, net.features);
      constants.push_back(dot(net.second(m, o), net.bias1 + m * net.hidden, net.hidden));
    }
  }

  bool finite() const {
    return all_finite(constants) &&
           std::all_of(terms.begin(), terms.end(), [](const auto& t) { return all_finite(t.whole()); });
  }
};

// o (M, B, O), before the bias of the second layer.
template <class C>
void second_layer_folded(const Estimator<C>& net, double* result) {
  const int64_t D = net.features, H = net.hidden, O = net.outputs;
  for_folded_blocks(net, net.batch, H, [&](int64_t m, int64_t first, int64_t last) {
    const Folded<C> folded(net, m);
    Kept kept(H);
    std::vector<uint8_t> dropped(static_cast<size_t>(H));
    std::vector<C> row(static_cast<size_t>(D));
    for (int64_t b = first; b < last; ++b) {
      if (net.drops()) kept.find(net.dropped_units(m, b, dropped.data()), 1);
      for (int64_t o = 0; o < O; ++o) {
        folded.terms[static_cast<size_t>(o)].sum(kept, row.data());
        const C constant = kept_sum(kept, folded.constants[static_cast<size_t>(o)], net.second(m, o), net.bias1 + m * H);
        result[(m * net.batch + b) * O + o] = net.scale * (dot(row.data(), net.inputs(m) + b * D, D) + constant);
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

// All gradients but the second bias's; false where the weights are not finite.
template <class C>
bool backward_folded(const Estimator<C>& net, const C* by_o, const Gradients<C>& grads) {
  const int64_t B = net.batch, D = net.features, H = net.hidden, O = net.outputs;
  std::vector<uint8_t> dropped(static_cast<size_t>(net.groups * B * H));
  std::atomic<bool> finite{true};
  for_folded_blocks(net, B, H, [&](int64_t m, int64_t first, int64_t last) {
    const Folded<C> folded(net, m);
    if (!folded.finite()) finite = false;
    Kept kept(H);
    std::vector<C> row(static_cast<size_t>(D));
    for (int64_t b = first; b < last; ++b) {
      const uint8_t* mine = net.dropped_units(m, b, &dropped[0] + (m * B + b) * H);
      C* std = grads.at(grads.std, STD, (m * B + b) * D);
      if (!std) continue;
      if (net.drops()) kept.find(mine, 1);
      for (int64_t o = 0; o < O; ++o) {
        folded.terms[static_cast<size_t>(o)].sum(kept, row.data());
        add_scaled(std, row.data(), net.scale * by_o[(m * B + b) * O + o], o > 0, D);
      }
    }
  });
  if (!finite || !(grads.needs & (WEIGHT1 | BIAS1 | WEIGHT2))) return finite;
  for_folded_blocks(net, H, B, [&](int64_t m, int64_t first, int64_t last) {
    Kept kept(B);
    std::vector<C> row(static_cast<size_t>(D)), g(static_cast<size_t>(B));
    const std::vector<C> ones(static_cast<size_t>(B), C(1));
    for (int64_t o = 0; o < O; ++o) {
      for (int64_t b = 0; b < B; ++b) g[static_cast<size_t>(b)] = net.scale * by_o[(m * B + b) * O + o];
      const Terms<C> terms(g.data(), net.inputs(m), B, D);
      const C total = dot(g.data(), ones.data(), B);
      for (int64_t h = first; h < last; ++h) {
        const C w2 = net.second(m, o)[h];
        if (net.drops()) kept.find(&dropped[0] + m * B * H + h, H);
        terms.sum(kept, row.data());
        const C one = kept_sum(kept, total, g.data(), ones.data());
        if (C* out = grads.at(grads.weight1, WEIGHT1, (m * H + h) * D)) add_scaled(out, row.data(), w2, o > 0, D);
        if (C* out = grads.at(grads.bias1, BIAS1, m * H + h)) *out = w2 * one + (o > 0 ? *out : C(0));
        if (C* out = grads.at(grads.weight2, WEIGHT2, (m * O + o) * H + h))
          *out = dot(net.first(m) + h * D, row.data(), D) + net.bias1[m * H + h] * one;
      }
    }
  });
  return true;
}

}  // namespace udml
