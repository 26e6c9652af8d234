// The features that are fused: what kernels know of them, and the host's side of that; and what the gradients of the
// weights of samples and of locations share.
#pragma once

#include <algorithm>
#include <vector>

#include "../ops.h"
#include "tiles.h"
#include "weighting.h"

namespace udml {

enum Mode : int64_t { CONCAT, SUM, SCALE };

// One modality's features, what is made of them and, backward, the gradient that comes in. `first` is the first of its
// tiles among those of all modalities.
struct Modality {
  Rows feature, grad;
  Results result;
  int64_t size;
  unsigned first;
};

// The modalities of a launch. `together`: a tile is that of all of them, else of one.
struct Fusion {
  Modality of[MAX_MODALITIES];
  int count;
  bool together;
  unsigned across;
};

// The modalities [begin, end) of a tile, and a thread's place in them.
struct Share {
  int begin, end;
  Place at;
};

template <int WIDTH>
__device__ __forceinline__ Share share_of(const Fusion& fusion, Tiles tiles, unsigned group, unsigned tile) {
  Share share{0, fusion.count, {}};
  if (!fusion.together) {
    while (share.begin + 1 < fusion.count && tile >= fusion.of[share.begin + 1].first) ++share.begin;
    share.end = share.begin + 1;
    tile -= fusion.of[share.begin].first;
  }
  tiles.size = fusion.of[share.begin].size;
  share.at = place_in<WIDTH>(tiles, group, tile);
  return share;
}

// From dL/dw, taken relative to that of the largest share, to dL/ds and dL/dalpha. sum_j p_j (g_m - g_j) is exactly 0
// where all g are alike, and made of small terms alone where p_m is almost 1; g_m - sum_j p_j g_j then has both
// properties too. Both come divided by 2^missing, with which their difference is a number of C.
template <class C>
struct TermGradient {
  C by_s, by_alpha;
};
template <class C>
__device__ __forceinline__ TermGradient<C> term_gradient(const Weighting<C>& weighting, const Term<C>& term, C weight,
                                                         C relative, C mean, C missing) {
  const Scaled<C> share = split<C>(weight), difference = split<C>(relative - mean);
  C by_log = share.mantissa * difference.mantissa * -weighting.coldness.mantissa;
  C exponent = share.exponent + difference.exponent + (missing + weighting.coldness.exponent);
  if (!weighting.inverse) by_log *= term.inverse, exponent += term.power;
  return {scale<C>(by_log / term.s.mantissa, exponent - term.s.exponent),
          scale<C>(by_log / term.alpha.mantissa, exponent - term.alpha.exponent)};
}

// Gradients as large, relative to each other, come divided by 2^MISSING.
inline constexpr double HUGE_GRADIENT = 0x1p125;
inline constexpr int MISSING = 3;

// The gradient of the largest share, which others are taken relative to; 0 where it is no number.
__device__ __forceinline__ double finite_or_zero(double x) { return fabs(x) < INFINITY ? x : 0; }

// The features of a call and the tensors they are fused into, forward or backward.
class Features {
 public:
  Features(const Tensors& features, const Tensor& uncertainty, int64_t mode) : mode_(mode) {
    expect(!features.empty() && static_cast<int64_t>(features.size()) == uncertainty.size(1) &&
               features.size() <= MAX_MODALITIES,
           "features and uncertainty: expected the same modalities");
    const int64_t locations = row_size_of(uncertainty, 2);
    for (const Tensor& t : features) {
      check(t, features[0], uncertainty, locations);
      inputs_.push_back(input_of(t));
      sizes_.push_back(row_size_of(t));
      dense_ = dense_ && inputs_.back().is_dense();
    }
  }

  std::vector<std::vector<int64_t>> fused_shapes(const Tensors& features) const {
    std::vector<std::vector<int64_t>> shapes;
    for (const Tensor& t : features) shapes.push_back(shape_of(t));
    if (mode_ == SCALE) return shapes;
    for (size_t m = 1; mode_ == CONCAT && m < shapes.size(); ++m) shapes[0][1] += shapes[m][1];
    return {shapes[0]};
  }

  void add_gradients(const Tensors& grads) {
    for (const Tensor& t : grads) {
      grads_.push_back(input_of(t));
      dense_ = dense_ && grads_.back().is_dense();
    }
  }

  bool is_dense() const { return dense_; }
  int64_t longest() const { return *std::max_element(sizes_.begin(), sizes_.end()); }

  // Results are the fused tensors or, `apart`, one a modality.
  Fusion fusion(const Tensors& results_in, const Tiles& tiles, bool apart) const {
    Fusion fusion{};
    fusion.count = static_cast<int>(sizes_.size());
    fusion.together = mode_ == SUM;
    int64_t offset = 0, first = 0;
    for (size_t m = 0; m < sizes_.size(); ++m) {
      Modality& modality = fusion.of[m];
      const size_t tensor = mode_ == SCALE ? m : 0;
      const int64_t begin = mode_ == CONCAT ? offset : 0;
      modality.feature = inputs_[m].rows();
      modality.size = sizes_[m];
      modality.first = Tiles::counted(first);
      modality.result = results(results_in[apart ? m : tensor], row_size_of(results_in[apart ? m : tensor]));
      if (!apart) modality.result.data += begin * item_;
      if (!grads_.empty()) modality.grad = part_of(tensor, begin);
      offset += sizes_[m];
      first += (sizes_[m] + tiles.step - 1) / tiles.step;
    }
    fusion.across = fusion.together ? tiles.across : Tiles::counted(first);
    return fusion;
  }

 private:
  void check(const Tensor& t, const Tensor& first, const Tensor& uncertainty, int64_t locations) {
    expect(t.dim() >= 2 && t.scalar_type() == first.scalar_type() && t.size(0) == uncertainty.size(0),
           "features: expected one dtype and the batch of uncertainty");
    expect(uncertainty.scalar_type() == compute_type(t.scalar_type()), "uncertainty: expected the arithmetic dtype");
    expect(locations == 1 || row_size_of(t, 2) == locations, "features: expected the locations of uncertainty");
    expect(mode_ != SUM || shape_of(t) == shape_of(first), "features: expected tensors of one shape");
    expect(mode_ != CONCAT || row_size_of(t, 2) == row_size_of(first, 2), "features: expected one shape but for dim 1");
    item_ = static_cast<int64_t>(t.element_size());
  }

  static Input input_of(const Tensor& t) { return t.numel() > 0 ? Input(t) : Input(); }

  // Elements from `begin` on, where a modality's share begins: whole rows of `inner` elements or a part of the only
  // one.
  Rows part_of(size_t tensor, int64_t begin) const {
    Rows rows = grads_[tensor].rows();
    if (begin == 0 || rows.inner == 0) return rows;
    rows.data += (begin < rows.inner ? begin * rows.inner_stride : begin / rows.inner * rows.outer_stride) * item_;
    return rows;
  }

  int64_t mode_, item_ = 1;
  bool dense_ = true;
  std::vector<Input> inputs_, grads_;
  std::vector<int64_t> sizes_;
};

}  // namespace udml
