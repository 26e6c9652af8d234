// Sums over the terms that dropout keeps. Subtracting the dropped terms from the sum of all terms costs only the
// fraction p of the work, but it leaves the rounding errors of large dropped terms. Therefore the code subtracts only
// if the sizes of the terms, their absolute values, show that the result is not much smaller than the sum it came from.
#pragma once

#include <cmath>

#include "gemm.h"

namespace udml {

template <class V>
UDML_FN V absolute_value(V v) {
  return select(v < 0, V(-v), v);
}

// The dot product, in chains like those of gemm, which limit its rounding error.
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

// The largest absolute value of a row and its Euclidean norm, or an upper bound of the norm if it is not known.
struct Magnitude {
  double largest = 0, norm = 0;

  template <class C>
  static Magnitude of(const C* p, int64_t n) {
    lanes_of<C> top{}, squares{};
    for_each_vector(n, [&](int64_t i, auto lanes) {
      const lanes_of<C> v = load_lanes(p + i, lanes), size = absolute_value(v);
      top = select(size > top, size, top);
      squares += v * v;
    });
    C lane[W];
    store_lanes(lane, top, int64_t{W});
    const double largest = *std::max_element(lane, lane + W), sum = sum_of_lanes(squares);
    // If the sum of squares may have left the range of C, every entry counts as the largest. A NaN stays a NaN.
    const bool within = sum > 1e-25 && sum < 1e35;
    return {largest, within || std::isnan(sum) ? std::sqrt(sum) : largest * std::sqrt(static_cast<double>(n))};
  }

  template <class C>
  static std::vector<Magnitude> of_rows(const C* matrix, int64_t rows, int64_t width) {
    std::vector<Magnitude> magnitudes(static_cast<size_t>(rows));
    for (int64_t k = 0; k < rows; ++k) magnitudes[static_cast<size_t>(k)] = of(matrix + k * width, width);
    return magnitudes;
  }
};

class TermIndices {
 public:
  explicit TermIndices(int64_t terms) : indices_(static_cast<size_t>(terms + 1)) {}

  void collect(const uint8_t* flags, int64_t step, uint8_t wanted) {
    count_ = 0;
    for (int64_t i = 0; i + 1 < static_cast<int64_t>(indices_.size()); ++i) {
      indices_[static_cast<size_t>(count_)] = i;
      count_ += flags[i * step] == wanted;
    }
  }
  const int64_t* begin() const { return indices_.data(); }
  const int64_t* end() const { return indices_.data() + count_; }

 private:
  int64_t count_ = 0;
  std::vector<int64_t> indices_;
};

// The terms of a sum that dropout drops and keeps. Before `find` no term is dropped.
class TermSelection {
 public:
  explicit TermSelection(int64_t terms) : dropped_(terms), kept_(terms) {}

  // flags[k * step] is 1 if term k is dropped, else 0.
  void find(const uint8_t* flags, int64_t step) {
    flags_ = flags, step_ = step, kept_found_ = false;
    dropped_.collect(flags, step, 1);
  }
  const TermIndices& dropped() const { return dropped_; }
  const TermIndices& kept() {
    if (!kept_found_) kept_.collect(flags_, step_, 0);
    kept_found_ = true;
    return kept_;
  }

  // Returns the total size of the dropped terms.
  double dropped(const std::vector<double>& sizes) const {
    double sum = 0;
    for (const int64_t k : dropped_) sum += sizes[static_cast<size_t>(k)];
    return sum;
  }

 private:
  TermIndices dropped_, kept_;
  const uint8_t* flags_ = nullptr;
  int64_t step_ = 0;
  bool kept_found_ = false;
};

// Whether subtracting the dropped terms is accurate. `total_size` is the size of all terms. At least half of it is
// kept, so the error is at most twice that of a sum of the kept terms.
inline bool is_accurate(double dropped, double total_size) {
  return std::isfinite(total_size) && dropped <= 0.5 * total_size;
}

// A sum of numbers c_k a_k.
template <class C>
class ScalarSum {
 public:
  ScalarSum(const C* c, const C* a, int64_t count)
      : c_(c), a_(a), total_(dot(c, a, count)), sizes_(static_cast<size_t>(count)) {
    for (size_t k = 0; k < sizes_.size(); ++k) size_ += sizes_[k] = std::abs(static_cast<double>(c[k]) * a[k]);
  }
  C total() const { return total_; }
  double size() const { return size_; }
  double dropped(const TermSelection& selection) const { return selection.dropped(sizes_); }

  C sum(TermSelection& selection, bool sum_kept) const {
    C sum = 0;
    for (const int64_t k : sum_kept ? selection.kept() : selection.dropped()) sum += c_[k] * a_[k];
    return sum_kept ? sum : total_ - sum;
  }

 private:
  const C *c_, *a_;
  C total_;
  double size_ = 0;
  std::vector<double> sizes_;
};

// A sum of the rows c_k A_k of a matrix. `magnitudes` describes the rows; it is empty if no terms are dropped.
template <class C>
class VectorSum {
 public:
  VectorSum(const C* c, const C* matrix, int64_t count, int64_t width, const std::vector<Magnitude>& magnitudes)
      : c_(c), matrix_(matrix), width_(width), total_(static_cast<size_t>(width)), sizes_(total_) {
    gemm<C>({c, 0, 1}, matrix, width, 1, count, width,
            [&](int64_t, int64_t d, lanes_of<C> sum, auto lanes) { store_lanes(total_.data() + d, sum, lanes); });
    for (size_t k = 0; k < magnitudes.size(); ++k) {
      const double factor = std::abs(static_cast<double>(c[k]));
      largest_.push_back(factor * magnitudes[k].largest);
      norms_.push_back(factor * magnitudes[k].norm);
      for_each_vector(width, [&](int64_t i, auto lanes) {
        const lanes_of<C> size =
            absolute_value(lanes_of<C>(load_lanes(matrix + static_cast<int64_t>(k) * width + i, lanes) * c[k]));
        store_lanes(sizes_.data() + i, lanes_of<C>(load_lanes(sizes_.data() + i, lanes) + size), lanes);
      });
    }
    norm_ = Magnitude::of(sizes_.data(), width).norm;
  }

  const std::vector<C>& total() const { return total_; }

  // Whether the largest sum of kept terms is at least a third of the largest value that was rounded. The largest kept
  // sum is at least the root mean square of all sums minus the dropped part. In the worst case the largest dropped
  // entries share a column.
  bool row_is_accurate(const TermSelection& selection) const {
    const double left =
        (norm_ - selection.dropped(norms_)) / std::sqrt(static_cast<double>(std::max<int64_t>(width_, 1)));
    return std::isfinite(left) && selection.dropped(largest_) <= 2 * left;
  }

  // The same test for the product of the sum with x plus a number. By the Cauchy-Schwarz inequality, each row adds at
  // most the product of the norms.
  bool product_is_accurate(const TermSelection& selection, const C* x, double norm, double dropped = 0,
                           double total_size = 0) const {
    lanes_of<C> total{};
    for_each_vector(width_, [&](int64_t i, auto lanes) {
      total += load_lanes(sizes_.data() + i, lanes) * absolute_value(load_lanes(x + i, lanes));
    });
    return is_accurate(selection.dropped(norms_) * norm + dropped,
                       static_cast<double>(sum_of_lanes(total)) + total_size);
  }

  void sum(TermSelection& selection, bool sum_kept, C* out) const {
    const TermIndices& indices = sum_kept ? selection.kept() : selection.dropped();
    const std::integral_constant<int64_t, W> all_lanes;
    int64_t column = 0;
    for (; column + WIDE * W <= width_; column += WIDE * W) columns<WIDE>(indices, sum_kept, column, all_lanes, out);
    for (; column + W <= width_; column += W) columns<1>(indices, sum_kept, column, all_lanes, out);
    if (column < width_) columns<1>(indices, sum_kept, column, width_ - column, out);
  }

 private:
  static constexpr int WIDE = W == 16 ? 16 : 8;

  template <int N, class Lanes>
  void columns(const TermIndices& indices, bool sum_kept, int64_t column, Lanes lanes, C* out) const {
    lanes_of<C> sum[N];
    for (int v = 0; v < N; ++v) sum[v] = load_lanes(total_.data() + column + v * W, lanes);
    if (sum_kept) std::fill_n(sum, N, lanes_of<C>{});
    for (const int64_t k : indices) {
      const C* row = matrix_ + k * width_ + column;
      const C factor = sum_kept ? c_[k] : -c_[k];
      for (int v = 0; v < N; ++v) sum[v] += load_lanes(row + v * W, lanes) * factor;
    }
    for (int v = 0; v < N; ++v) store_lanes(out + column + v * W, sum[v], lanes);
  }

  const C *c_, *matrix_;
  int64_t width_;
  // The sums of all terms and of their sizes.
  std::vector<C> total_, sizes_;
  double norm_ = 0;
  std::vector<double> largest_, norms_;
};

}  // namespace udml
