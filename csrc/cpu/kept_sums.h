// Sums over the terms that dropout keeps. Taken from the sum of all terms, those that are dropped cost the share p of
// the work; but what is left of a large term that is taken away again is its rounding error. So that is done only where
// the sizes of the terms, |c_k a_k|, show that the result has not become much smaller than what it was taken from.
#pragma once

#include <cmath>

#include "gemm.h"

namespace udml {

template <class V>
UDML_FN V size_of(V v) {
  return select(v < 0, V(-v), v);
}

// In chains as those of gemm, for their rounding errors.
template <class C>
C dot(const C* a, const C* b, int64_t n) {
  lanes_of<C> total{};
  for (int64_t begin = 0; begin < n; begin += GEMM_DEPTH) {
    lanes_of<C> chain{};
    for_each_vector(std::min(GEMM_DEPTH, n - begin), [&](int64_t i, auto lanes) {
      chain += load_lanes(a + begin + i, lanes) * load_lanes(b + begin + i, lanes);
    });
    total += chain;
  }
  return sum_of_lanes(total);
}

// Of the entries of a row: the largest size, and the root of the sum of their squares, or more where that is not known.
struct Extent {
  double largest = 0, norm = 0;

  template <class C>
  static Extent of(const C* p, int64_t n) {
    lanes_of<C> top{}, squares{};
    for_each_vector(n, [&](int64_t i, auto lanes) {
      const lanes_of<C> v = load_lanes(p + i, lanes), size = size_of(v);
      top = select(size > top, size, top);
      squares += v * v;
    });
    C lane[W];
    store_lanes(lane, top, int64_t{W});
    const double largest = *std::max_element(lane, lane + W), sum = sum_of_lanes(squares);
    // Where squares may have left the numbers' range every entry counts as the largest; a NaN stays one.
    const bool within = sum > 1e-25 && sum < 1e35;
    return {largest, within || std::isnan(sum) ? std::sqrt(sum) : largest * std::sqrt(static_cast<double>(n))};
  }

  template <class C>
  static std::vector<Extent> of_rows(const C* matrix, int64_t rows, int64_t width) {
    std::vector<Extent> extents(static_cast<size_t>(rows));
    for (int64_t k = 0; k < rows; ++k) extents[static_cast<size_t>(k)] = of(matrix + k * width, width);
    return extents;
  }
};

// Places of terms.
class Places {
 public:
  explicit Places(int64_t terms) : places_(static_cast<size_t>(terms + 1)) {}

  void collect(const uint8_t* flags, int64_t step, uint8_t wanted) {
    count_ = 0;
    for (int64_t i = 0; i + 1 < static_cast<int64_t>(places_.size()); ++i) {
      places_[static_cast<size_t>(count_)] = i;
      count_ += flags[i * step] == wanted;
    }
  }
  const int64_t* begin() const { return places_.data(); }
  const int64_t* end() const { return places_.data() + count_; }

 private:
  int64_t count_ = 0;
  std::vector<int64_t> places_;
};

// Which terms of a sum dropout takes; none before `find`.
class Chosen {
 public:
  explicit Chosen(int64_t terms) : dropped_(terms), kept_(terms) {}

  // flags[k * step] is 1 where term k is dropped, else 0.
  void find(const uint8_t* flags, int64_t step) {
    flags_ = flags, step_ = step, found_ = false;
    dropped_.collect(flags, step, 1);
  }
  const Places& dropped() const { return dropped_; }
  const Places& kept() {
    if (!found_) kept_.collect(flags_, step_, 0);
    found_ = true;
    return kept_;
  }

  // How much of the sizes of all terms is dropped.
  double dropped(const std::vector<double>& sizes) const {
    double sum = 0;
    for (const int64_t k : dropped_) sum += sizes[static_cast<size_t>(k)];
    return sum;
  }

 private:
  Places dropped_, kept_;
  const uint8_t* flags_ = nullptr;
  int64_t step_ = 0;
  bool found_ = false;
};

// Whether a sum may be taken from that of all terms, of the size `all`: half of it stays, so its error is at most twice
// that of a sum of what is kept.
inline bool stays(double dropped, double all) { return std::isfinite(all) && dropped <= 0.5 * all; }

// Sums of numbers c_k a_k.
template <class C>
class Numbers {
 public:
  Numbers(const C* c, const C* a, int64_t count) : c_(c), a_(a), whole_(dot(c, a, count)), sizes_(static_cast<size_t>(count)) {
    for (size_t k = 0; k < sizes_.size(); ++k) size_ += sizes_[k] = std::abs(static_cast<double>(c[k]) * a[k]);
  }
  C whole() const { return whole_; }
  double size() const { return size_; }
  double dropped(const Chosen& chosen) const { return chosen.dropped(sizes_); }

  C sum(Chosen& chosen, bool by_terms) const {
    C sum = 0;
    for (const int64_t k : by_terms ? chosen.kept() : chosen.dropped()) sum += c_[k] * a_[k];
    return by_terms ? sum : whole_ - sum;
  }

 private:
  const C *c_, *a_;
  C whole_;
  double size_ = 0;
  std::vector<double> sizes_;
};

// Sums of rows c_k A_k of a matrix. `extents` of its rows are needed where terms are dropped, and empty elsewhere.
template <class C>
class Terms {
 public:
  Terms(const C* c, const C* matrix, int64_t count, int64_t width, const std::vector<Extent>& extents)
      : c_(c), matrix_(matrix), width_(width), whole_(static_cast<size_t>(width)), sizes_(whole_) {
    gemm<C>({c, 0, 1}, matrix, width, 1, count, width,
            [&](int64_t, int64_t d, lanes_of<C> sum, auto lanes) { store_lanes(whole_.data() + d, sum, lanes); });
    for (size_t k = 0; k < extents.size(); ++k) {
      const double factor = std::abs(static_cast<double>(c[k]));
      largest_.push_back(factor * extents[k].largest);
      norms_.push_back(factor * extents[k].norm);
      for_each_vector(width, [&](int64_t i, auto lanes) {
        const lanes_of<C> size = size_of(lanes_of<C>(load_lanes(matrix + static_cast<int64_t>(k) * width + i, lanes) * c[k]));
        store_lanes(sizes_.data() + i, lanes_of<C>(load_lanes(sizes_.data() + i, lanes) + size), lanes);
      });
    }
    norm_ = Extent::of(sizes_.data(), width).norm;
  }

  const std::vector<C>& whole() const { return whole_; }

  // Whether the sums of what is kept are, at their largest, a third of the largest that rounding saw. Their largest is
  // at least what is left of the root mean square of all; the largest of those dropped meet in one column at worst.
  bool row_stays(const Chosen& chosen) const {
    const double left = (norm_ - chosen.dropped(norms_)) / std::sqrt(static_cast<double>(std::max<int64_t>(width_, 1)));
    return std::isfinite(left) && chosen.dropped(largest_) <= 2 * left;
  }

  // The same of the product with x, and of a number that is added to it: by Cauchy and Schwarz no row's part in the
  // product exceeds that of the norms.
  bool product_stays(const Chosen& chosen, const C* x, double norm, double dropped = 0, double all = 0) const {
    lanes_of<C> total{};
    for_each_vector(width_, [&](int64_t i, auto lanes) {
      total += load_lanes(sizes_.data() + i, lanes) * size_of(load_lanes(x + i, lanes));
    });
    return stays(chosen.dropped(norms_) * norm + dropped, static_cast<double>(sum_of_lanes(total)) + all);
  }

  void sum(Chosen& chosen, bool by_terms, C* out) const {
    const Places& places = by_terms ? chosen.kept() : chosen.dropped();
    const std::integral_constant<int64_t, W> all;
    int64_t column = 0;
    for (; column + WIDE * W <= width_; column += WIDE * W) columns<WIDE>(places, by_terms, column, all, out);
    for (; column + W <= width_; column += W) columns<1>(places, by_terms, column, all, out);
    if (column < width_) columns<1>(places, by_terms, column, width_ - column, out);
  }

 private:
  static constexpr int WIDE = W == 16 ? 16 : 8;

  template <int N, class Lanes>
  void columns(const Places& places, bool by_terms, int64_t column, Lanes lanes, C* out) const {
    lanes_of<C> sum[N];
    for (int v = 0; v < N; ++v) sum[v] = load_lanes(whole_.data() + column + v * W, lanes);
    if (by_terms) std::fill_n(sum, N, lanes_of<C>{});
    for (const int64_t k : places) {
      const C* row = matrix_ + k * width_ + column;
      const C factor = by_terms ? c_[k] : -c_[k];
      for (int v = 0; v < N; ++v) sum[v] += load_lanes(row + v * W, lanes) * factor;
    }
    for (int v = 0; v < N; ++v) store_lanes(out + column + v * W, sum[v], lanes);
  }

  const C *c_, *matrix_;
  int64_t width_;
  // Of all terms, and of their sizes.
  std::vector<C> whole_, sizes_;
  double norm_ = 0;
  std::vector<double> largest_, norms_;
};

}  // namespace udml
