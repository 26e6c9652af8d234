// The division of a call's positions into blocks, and the gradient of the dependency, which is a sum over the blocks.
#pragma once

#include "weight_gradient.h"

namespace udml {

// Divides the positions into blocks. The division depends on the tensors' shapes alone.
struct Blocks {
  int64_t block_size, blocks_per_row, count;

  // `cost` is the number of elements per position.
  Blocks(const Weighting& weighting, int64_t cost) {
    const int64_t longest = weighting.per_location() ? weighting.locations : weighting.rows;
    block_size = std::clamp<int64_t>(16384 / std::max<int64_t>(cost, 1), 1, WeightBlock<float>::SIZE);
    // Each run of a channel is as long as a block. For short runs the setup would cost more than the arithmetic.
    if (weighting.per_location()) block_size = WeightBlock<float>::SIZE;
    blocks_per_row = (longest + block_size - 1) / block_size;
    count = weighting.per_location() ? weighting.rows * blocks_per_row : blocks_per_row;
  }

  Block at(const Weighting& weighting, int64_t index) const {
    if (weighting.per_location()) {
      const int64_t begin = index % blocks_per_row * block_size;
      return {index / blocks_per_row, begin, std::min(block_size, weighting.locations - begin)};
    }
    return {index * block_size, 0, std::min(block_size, weighting.rows - index * block_size)};
  }
};

// dL/ddependency, (M,) or (B, M). It adds the sums of the blocks in a fixed order.
template <class C>
class DependencyGradient {
 public:
  DependencyGradient(const Weighting& weighting, const Blocks& blocks, bool wanted, int64_t dependency_step)
      : weighting_(weighting), blocks_(blocks), wanted_(wanted), step_(dependency_step) {
    if (!wanted) return;
    const bool rowwise = step_ != 0 && !weighting.per_location();
    partial_.resize(static_cast<size_t>((rowwise ? weighting.rows : blocks.count) * weighting.modalities));
  }

  void add(int64_t index, const Block& block, const WeightBlock<C>& weights,
           const C (*grad_uncertainty)[WeightBlock<C>::SIZE], const C (*dependency_gradient)[WeightBlock<C>::SIZE]) {
    if (!wanted_) return;
    const int64_t modalities = weighting_.modalities;
    for (int64_t m = 0; m < modalities; ++m) {
      if (step_ != 0 && !weighting_.per_location()) {
        for (int64_t i = 0; i < block.count; ++i) at((block.row + i) * modalities + m) = dependency_gradient[m][i];
      } else {
        // The sum is in double, because over the batch these terms largely cancel.
        double sum = 0;
        for (int64_t i = 0; i < block.count; ++i) sum += dependency_gradient[m][i];
        // Terms may overflow where their sum does not.
        if (!std::isfinite(sum) && !weighting_.floor && !weighting_.reference)
          sum = weights.dependency_sum(m, block.count, grad_uncertainty);
        at(index * modalities + m) = sum;
      }
    }
  }

  Tensor result(const std::optional<Tensor>& dependency) {
    if (!wanted_) return empty_gradient(scalar_type_of<C>);
    const Tensor out = allocate_like(*dependency);
    std::vector<double> sum(static_cast<size_t>(out.numel()));
    const int64_t modalities = weighting_.modalities, entries = static_cast<int64_t>(partial_.size()) / modalities;
    const int64_t entries_per_row = step_ == 0 || !weighting_.per_location() ? 1 : blocks_.blocks_per_row;
    for (int64_t e = 0; e < entries; ++e)
      for (int64_t m = 0; m < modalities; ++m)
        sum[static_cast<size_t>(e / entries_per_row * step_ * modalities + m)] += at(e * modalities + m);
    for (size_t i = 0; i < sum.size(); ++i) results_of<C>(out)[i] = static_cast<C>(sum[i]);
    return out;
  }

 private:
  double& at(int64_t i) { return partial_[static_cast<size_t>(i)]; }

  const Weighting& weighting_;
  const Blocks& blocks_;
  bool wanted_;
  int64_t step_;
  std::vector<double> partial_;
};

}  // namespace udml
