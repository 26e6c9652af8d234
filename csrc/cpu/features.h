// The features of a fusion as rows, the factors that scale them, and the fused results.
#pragma once

#include "op.h"
#include "weight_gradient.h"

namespace udml {

// Kernels process the features of sample `row` and modality m in runs of elements. If the weights are per location, a
// run covers locations of one channel; otherwise it covers any part of the flattened sample.
template <class C>
struct Features {
  std::vector<Reader<C>> rows;
  std::vector<int64_t> sizes, offsets;
  int64_t total = 0;

  explicit Features(const Tensors& tensors) {
    for (const Tensor& t : tensors) {
      expect(t.scalar_type() == tensors[0].scalar_type() && t.size(0) == tensors[0].size(0),
             "features: expected one dtype and one batch");
      rows.emplace_back(t);
      sizes.push_back(row_size_of(t));
      offsets.push_back(total);
      total += sizes.back();
    }
  }
};

// The fused tensors. For modality m, `tensor` selects the fused tensor and `offset` the first element in its rows.
template <class C>
struct FusedTensors {
  int64_t mode;
  const Features<C>& features;
  std::vector<Writer<C>> writers;
  bool nontemporal = false;

  size_t tensor(size_t m) const { return mode == SCALE ? m : 0; }
  int64_t offset(size_t m) const { return mode == CONCAT ? features.offsets[m] : 0; }
};

// Calls body(sample row, first element, count, weight index) for every run of a block. The weight index belongs to the
// whole run or, if weights are per location, to its first element.
template <class C, class Body>
void for_each_run(const Weighting& weighting, const Block& block, int64_t size, const Body& body) {
  if (weighting.per_location()) {
    const int64_t channels = size / weighting.locations;
    for (int64_t c = 0; c < channels; ++c) body(block.row, c * weighting.locations + block.location, block.count, 0);
    return;
  }
  for (int64_t i = 0; i < block.count; ++i)
    for (int64_t begin = 0; begin < size; begin += TILE) body(block.row + i, begin, std::min(TILE, size - begin), i);
}

// out = f * factor, or out += f * factor.
template <class C>
void scale_run(const C* f, C factor, bool add, bool nontemporal, int64_t n, C* out) {
  using V = lanes_of<C>;
  if (nontemporal && !add && can_store_nontemporal(out)) {
    for_each_vector(
        n, [&](int64_t j, auto lanes) { put_lanes<true>(out + j, V(load_lanes(f + j, lanes) * factor), lanes); });
  } else if (add) {
    for_each_vector(n, [&](int64_t j, auto lanes) {
      store_lanes(out + j, V(load_lanes(f + j, lanes) * factor + load_lanes(out + j, lanes)), lanes);
    });
  } else {
    for_each_vector(n,
                    [&](int64_t j, auto lanes) { store_lanes(out + j, V(load_lanes(f + j, lanes) * factor), lanes); });
  }
}

// The same with one factor per location. Where `enabled` is 0 the product counts as 0, even if f is NaN.
template <class C>
void scale_run(const C* f, const C* factor, const C* enabled, bool add, int64_t n, C* out) {
  using V = lanes_of<C>;
  for_each_vector(n, [&](int64_t j, auto lanes) {
    const V scaled = load_lanes(f + j, lanes) * load_lanes(factor + j, lanes);
    const V passed = select(load_lanes(enabled + j, lanes) != C(0), scaled, V{});
    store_lanes(out + j, add ? V(passed + load_lanes(out + j, lanes)) : passed, lanes);
  });
}

// The factors that scale the modalities at the positions of a block, and whether each modality contributes there.
template <class C>
struct Factors {
  alignas(64) C value[MAX_MODALITIES][WeightBlock<C>::SIZE];
  alignas(64) C enabled[MAX_MODALITIES][WeightBlock<C>::SIZE];

  void compute(const Weighting& weighting, const Block& block, const WeightBlock<C>& weights, bool residual) {
    for (int64_t m = 0; m < weighting.modalities; ++m)
      for (int64_t i = 0; i < block.count; ++i) {
        value[m][i] = residual ? 1 + weights.weight[m][i] : weights.weight[m][i];
        enabled[m][i] = residual ? C(1) : weights.present[m][i];
      }
  }
};

}  // namespace udml
