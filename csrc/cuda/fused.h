// The features that a fusion combines, for kernels and host code, and the gradient computations that weights per sample
// and weights per location share.
#pragma once

#include <algorithm>
#include <vector>

#include "../op.h"
#include "tiles.h"
#include "weighting.h"

namespace udml {

// One modality: its features, its result and, in backward kernels, the incoming gradient. `first_tile` is the index of
// its first tile among the tiles of all modalities.
struct Modality {
  Rows feature, grad;
  Results result;
  int64_t size;
  unsigned first_tile;
};

// The modalities of a launch. If `all_modalities`, each tile covers all of them, else one.
struct Fusion {
  Modality modalities[MAX_MODALITIES];
  int count;
  bool all_modalities;
  unsigned across;
};

// The modalities [begin, end) of a tile, and a thread's elements in them.
struct FusionTile {
  int begin, end;
  Place at;
};

template <class A>
__device__ __forceinline__ FusionTile fusion_tile_of(const Fusion& fusion, Tiles tiles, unsigned group, unsigned tile) {
  FusionTile fusion_tile{0, fusion.count, {}};
  if (!fusion.all_modalities) {
    while (fusion_tile.begin + 1 < fusion.count && tile >= fusion.modalities[fusion_tile.begin + 1].first_tile)
      ++fusion_tile.begin;
    fusion_tile.end = fusion_tile.begin + 1;
    tile -= fusion.modalities[fusion_tile.begin].first_tile;
  }
  tiles.size = fusion.modalities[fusion_tile.begin].size;
  fusion_tile.at = place_in<A>(tiles, group, tile);
  return fusion_tile;
}

// dL/dw relative to its mean: g_m - sum_j p_j g_j. All g_m are relative to the gradient of the largest share. The
// difference is then exactly 0 if all g are equal, and has only small terms if p_m is almost 1, like
// sum_j p_j (g_m - g_j). For a single modality and the reference it is infinite if g is.
template <class C>
__device__ __forceinline__ C subtract_mean(C relative, C mean, C count) {
  return count == C(1) && fabs(relative) == C(INFINITY) ? relative : relative - mean;
}

// Computes dL/duncertainty and dL/ddependency from `difference`, dL/dw relative to its mean, which is divided by
// 2^missing_exponent so that it does not overflow. `slope` is the derivative of s.
template <class C>
struct TermGradient {
  C uncertainty, dependency;
};
template <class C>
__device__ __forceinline__ TermGradient<C> term_gradient(const Weighting<C>& weighting, const Term<C>& term,
                                                         const Scaled<C>& slope, C weight, C difference,
                                                         C missing_exponent) {
  const Scaled<C> share = split<C>(weight), factor = split<C>(difference);
  C log_gradient = share.mantissa * factor.mantissa * -weighting.inverse_temperature.mantissa;
  C exponent = share.exponent + factor.exponent + (missing_exponent + weighting.inverse_temperature.exponent);
  if (!weighting.inverse) log_gradient *= term.inverse, exponent += term.power;
  return {scale<C>(log_gradient / term.s.mantissa * slope.mantissa, exponent - term.s.exponent + slope.exponent),
          scale<C>(log_gradient / term.alpha.mantissa, exponent - term.alpha.exponent)};
}

// Relative gradients of at least this size are divided by 2^MISSING_EXPONENT.
inline constexpr double HUGE_GRADIENT = 0x1p125;
inline constexpr int MISSING_EXPONENT = 3;
template <class C>
__device__ __forceinline__ C relative_gradient(double difference, bool is_huge) {
  return static_cast<C>(is_huge ? difference / (1 << MISSING_EXPONENT) : difference);
}

// Other gradients are taken relative to that of the largest share, or to 0 if that one is not finite.
__device__ __forceinline__ double finite_or_zero(double x) { return fabs(x) < INFINITY ? x : 0; }

// The features of a forward or backward call and the layout of the tensors into which they are fused.
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

  void add_gradients(const Tensors& grads) {
    for (const Tensor& t : grads) {
      grads_.push_back(input_of(t));
      dense_ = dense_ && grads_.back().is_dense();
    }
  }

  bool is_dense() const { return dense_; }
  int64_t longest() const { return *std::max_element(sizes_.begin(), sizes_.end()); }

  // `results_in` holds the fused tensors or, if `per_modality`, one tensor per modality.
  Fusion fusion(const Tensors& results_in, const Tiles& tiles, bool per_modality) const {
    Fusion fusion{};
    fusion.count = static_cast<int>(sizes_.size());
    fusion.all_modalities = mode_ == SUM;
    int64_t offset = 0, first = 0;
    for (size_t m = 0; m < sizes_.size(); ++m) {
      Modality& modality = fusion.modalities[m];
      const size_t tensor = mode_ == SCALE ? m : 0;
      const int64_t begin = mode_ == CONCAT ? offset : 0;
      modality.feature = inputs_[m].rows();
      modality.size = sizes_[m];
      modality.first_tile = Tiles::counted(first);
      modality.result =
          results(results_in[per_modality ? m : tensor], row_size_of(results_in[per_modality ? m : tensor]));
      if (!per_modality) modality.result.data += begin * item_;
      if (!grads_.empty()) modality.grad = part_of(tensor, begin);
      offset += sizes_[m];
      first += (sizes_[m] + tiles.step - 1) / tiles.step;
    }
    fusion.across = fusion.all_modalities ? tiles.across : Tiles::counted(first);
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

  // Returns the rows from element `begin` on, where the elements of a modality start. `begin` is a multiple of `inner`
  // or lies in the first `inner` elements.
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
