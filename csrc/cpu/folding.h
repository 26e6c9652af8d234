// The estimator without activation. Two linear layers are one, of rank `outputs`: o = (sum_h w2_h W1_h) . x.
// Dropout takes its own few h out of every sample's sum. Taken from the whole, term by term, they cost the
// share p of a product with all of them; the gradients with respect to the weights are such sums over the
// batch. Where the dropped ones are most of the whole, so that little would be left of its digits, those that
// are kept are added instead.
#pragma once

#include <atomic>

#include "estimator.h"

namespace udml {

template <class Values>
bool all_finite(const Values& values) {
  return std::all_of(values.begin(), values.end(), [](auto v) { return std::isfinite(v); });
}

template <class C>
C mean_size(const C* p, int64_t n) {
  lanes_of<C> total{};
  for_each_vector(n, [&](int64_t i, auto lanes) {
    const lanes_of<C> v = load_lanes(p + i, lanes);
    total += select(v < C(0), lanes_of<C>(-v), v);
  });
  return sum_of_lanes(total) / static_cast<C>(std::max<int64_t>(n, 1));
}

template <class C>
C dot(const C* a, const C* b, int64_t n) {
  lanes_of<C> total{};
  for_each_vector(n, [&](int64_t i, auto lanes) { total += load_lanes(a + i, lanes) * load_lanes(b + i, lanes); });
  return sum_of_lanes(total);
}

// How much of a sum each term is: of several sums with the same terms, the largest part.
class Shares {
 public:
  explicit Shares(int64_t terms) : largest_(static_cast<size_t>(terms)) {}

  // One more sum, of which term k is as large as size(k) >= 0.
  template <class Size>
  void include(const Size& size) {
    std::vector<double> sizes(largest_.size());
    double total = 0;
    for (size_t k = 0; k < sizes.size(); ++k) total += sizes[k] = size(static_cast<int64_t>(k));
    if (total == 0) return;
    for (size_t k = 0; k < sizes.size(); ++k) largest_[k] = std::max(largest_[k], sizes[k] / total);
  }

  int64_t terms() const { return static_cast<int64_t>(largest_.size()); }
  double operator[](int64_t k) const { return largest_[static_cast<size_t>(k)]; }

 private:
  std::vector<double> largest_;
};

// Which terms of a sum stay: the places of those to take from the whole, or of those to add to nothing.
class Kept {
 public:
  explicit Kept(const Shares& shares) : shares_(shares), places_(static_cast<size_t>(shares.terms() + 1)) {}

  void find(const uint8_t* dropped, int64_t step) {
    collect(dropped, step, 1);
    double taken = 0;
    for (const int64_t k : *this) taken += shares_[k];
    add_ = taken > 0.5;
    if (add_) collect(dropped, step, 0);
  }

  bool add() const { return add_; }
  const int64_t* begin() const { return places_.data(); }
  const int64_t* end() const { return places_.data() + count_; }

 private:
  void collect(const uint8_t* dropped, int64_t step, uint8_t wanted) {
    count_ = 0;
    for (int64_t i = 0; i < shares_.terms(); ++i) {
      places_[static_cast<size_t>(count_)] = i;
      count_ += dropped[i * step] == wanted;
    }
  }

  const Shares& shares_;
  int64_t count_ = 0;
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
  Shares shares;

  Folded(const Estimator<C>& net, int64_t m) : shares(net.hidden) {
    const C* bias = net.bias1 + m * net.hidden;
    std::vector<double> rows(static_cast<size_t>(net.drops() ? net.hidden : 0));
    for (size_t h = 0; h < rows.size(); ++h)
      rows[h] = mean_size(net.first(m) + static_cast<int64_t>(h) * net.features, net.features);
    for (int64_t o = 0; o < net.outputs; ++o) {
      const C* second = net.second(m, o);
      terms.emplace_back(second, net.first(m), net.hidden, net.features);
      constants.push_back(dot(second, bias, net.hidden));
      if (!net.drops()) continue;
      shares.include([&](int64_t h) { return std::abs(second[h]) * rows[static_cast<size_t>(h)]; });
      shares.include([&](int64_t h) { return std::abs(static_cast<double>(second[h]) * bias[h]); });
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
    Kept kept(folded.shares);
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
    // Once for an empty batch too, whose sums are 0.
    for (int64_t begin = 0; begin == 0 || begin < B; begin += GEMM_DEPTH) {
      const int64_t n = std::min(GEMM_DEPTH, B - begin);
      const C* x = net.inputs(m) + begin * D;
      for (int64_t o = 0; o < O; ++o) {
        for (int64_t b = 0; b < n; ++b) g[static_cast<size_t>(b)] = net.scale * by_o[(m * B + begin + b) * O + o];
        const Terms<C> terms(g.data(), x, n, D);
        const C total = dot(g.data(), ones.data(), n);
        Shares shares(n);
        if (net.drops()) {
          const auto size = [&](int64_t b) { return std::abs(static_cast<double>(g[static_cast<size_t>(b)])); };
          shares.include(size);
          shares.include([&](int64_t b) { return size(b) * mean_size(x + b * D, D); });
        }
        Kept kept(shares);
        for (int64_t h = first; h < last; ++h) {
          const C w2 = net.second(m, o)[h];
          if (net.drops()) kept.find(dropped + (m * B + begin) * H + h, H);
          terms.sum(kept, row.data());
          const C one = kept_sum(kept, total, g.data(), ones.data());
          const bool add = begin > 0 || o > 0;
          if (C* out = grads.at(grads.weight1, WEIGHT1, (m * H + h) * D)) add_scaled(out, row.data(), w2, add, D);
          if (C* out = grads.at(grads.bias1, BIAS1, m * H + h)) put(out, w2 * one, add);
          if (C* out = grads.at(grads.weight2, WEIGHT2, (m * O + o) * H + h))
            put(out, dot(net.first(m) + h * D, row.data(), D) + net.bias1[m * H + h] * one, begin > 0);
        }
      }
    }
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
    Kept kept(folded.shares);
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
  if (finite && grads.needs & (WEIGHT1 | BIAS1 | WEIGHT2)) weights_backward_folded(net, by_o, dropped.data(), grads);
  return finite;
}

}  // namespace udml
