// fusion_weights, and weighted_fusion, which reads the features once and multiplies them by their weights.
#include <algorithm>

#include "../op.h"
#include "fused.h"
#include "fusion_locations.h"
#include "fusion_samples.h"
#include "weight_inputs.h"

namespace udml {

template <class C>
static void compute_weights(const WeightInputs<C>& inputs, bool residual, C* weights, C* factors,
                            const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  if (inputs.per_location()) {
    launch("location_weights_kernel", location_weights_kernel<C>, device,
           thread_item_work(weighting.rows * weighting.locations), weighting, Divisor(weighting.locations), residual,
           weights, factors);
  } else {
    launch("fusion_weights_kernel", fusion_weights_kernel<C>, device,
           thread_item_work(weighting.rows << weighting.log2_lanes), weighting, weights);
  }
}

// Computes dL/duncertainty and dL/ddependency from dL/dw: the sum of `grad` and `dots`, either of which may be null.
template <class C>
static void location_weights_backward(const WeightInputs<C>& inputs, const EntryInput<C>& grad, const C* dots,
                                      const Tensor& grad_uncertainty, const Tensor& grad_dependency,
                                      bool needs_dependency, const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  const int64_t rows = weighting.rows, modalities = weighting.modalities, segments = (weighting.locations + 31) / 32;
  const Tensor partial =
      allocate({needs_dependency ? modalities : 0, rows, segments}, ScalarType::Double, grad_uncertainty);
  // For each value of dL/ddependency, `partial` holds `sums` consecutive partial sums: one per segment of 32 locations
  // of a sample or, if all samples share the dependency, of every sample.
  const int64_t sums = inputs.per_sample() ? segments : rows * segments;
  const int64_t row_stride = inputs.per_sample() ? modalities * segments : segments;
  launch("location_weights_backward_kernel", location_weights_backward_kernel<C>, device,
         warp_item_work(rows * segments), weighting, grad.entries(), dots, results_of<C>(grad_uncertainty),
         needs_dependency ? results_of<double>(partial) : nullptr, Divisor(segments), row_stride, sums);
  if (needs_dependency)
    sum_partials<double>(partial, grad_dependency.numel(), sums, 1.0, results_of<C>(grad_dependency), device);
}

template <class C>
static void sample_weights_backward(const WeightInputs<C>& inputs, const EntryInput<C>& grad, const Dots<C>& dots,
                                    const Tensor& grad_uncertainty, const Tensor& grad_dependency,
                                    bool needs_dependency, const OnDevice& device) {
  Weighting<C> weighting = inputs.weighting();
  const int64_t rows = weighting.rows, modalities = weighting.modalities;
  // The lanes of a row also share its partial sums.
  if (dots.entries > 4 * modalities) weighting.log2_lanes = std::max(weighting.log2_lanes, 4u);
  const Work work = thread_item_work(rows << weighting.log2_lanes);
  const bool summed = needs_dependency && !inputs.per_sample();
  if (!summed) {
    launch("fusion_weights_backward_kernel", fusion_weights_backward_kernel<C, C>, device, work, weighting,
           grad.entries(), dots, results_of<C>(grad_uncertainty),
           needs_dependency ? results_of<C>(grad_dependency) : nullptr, modalities, int64_t{1});
    return;
  }
  // The terms are in double, because over the batch they largely cancel.
  const Tensor terms = allocate({modalities, rows}, ScalarType::Double, grad_uncertainty);
  launch("fusion_weights_backward_kernel", fusion_weights_backward_kernel<C, double>, device, work, weighting,
         grad.entries(), dots, results_of<C>(grad_uncertainty), results_of<double>(terms), int64_t{1}, rows);
  sum_partials<double>(terms, modalities, rows, 1.0, results_of<C>(grad_dependency), device);
}

static Tensor allocate_dependency_gradient(const OptionalTensor& dependency, bool wanted, const Tensor& uncertainty) {
  expect(!wanted || dependency.has_value(), "dependency: expected a tensor");
  return wanted ? allocate_like(*dependency) : empty_gradient(uncertainty.scalar_type(), uncertainty);
}

Tensor fusion_weights(Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask, int64_t g, double temperature,
                      std::optional<double> total, std::optional<double> floor, std::optional<double> reference) {
  const OnDevice device(uncertainty);
  const Tensor out = allocate_like(uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    compute_weights<C>(inputs, false, results_of<C>(out), nullptr, device);
  });
  return out;
}

std::tuple<Tensor, Tensor> fusion_weights_backward(Tensor grad, Tensor uncertainty, OptionalTensor dependency,
                                                   OptionalTensor mask, int64_t g, double temperature,
                                                   std::optional<double> total, std::optional<double> floor,
                                                   std::optional<double> reference, bool needs_dependency) {
  expect_same_shape(grad, uncertainty, "grad and uncertainty");
  expect(grad.scalar_type() == uncertainty.scalar_type(), "grad: expected uncertainty's dtype");
  const OnDevice device(uncertainty);
  const Tensor grad_uncertainty = allocate_like(uncertainty);
  const Tensor grad_dependency = allocate_dependency_gradient(dependency, needs_dependency, uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    const EntryInput<C> incoming(grad);
    if (inputs.per_location()) {
      location_weights_backward<C>(inputs, incoming, nullptr, grad_uncertainty, grad_dependency, needs_dependency,
                                   device);
    } else {
      sample_weights_backward<C>(inputs, incoming, {}, grad_uncertainty, grad_dependency, needs_dependency, device);
    }
  });
  return {grad_uncertainty, grad_dependency};
}

// Allocates the factors of locations. If all modalities are present and the fusion is not residual, the weights are the
// factors.
template <class C>
static std::optional<Tensor> location_factors(const WeightInputs<C>& inputs, bool residual, const Tensor& uncertainty) {
  if (!residual && inputs.weighting().mask.data == nullptr) return std::nullopt;
  return allocate_like(uncertainty);
}

std::tuple<Tensors, Tensor> weighted_fusion(Tensors features, Tensor uncertainty, OptionalTensor dependency,
                                            OptionalTensor mask, int64_t mode, bool residual, int64_t g,
                                            double temperature, std::optional<double> total,
                                            std::optional<double> floor, std::optional<double> reference) {
  const Features in(features, uncertainty, mode);
  const OnDevice device(uncertainty);
  const ScalarType dtype = features[0].scalar_type();
  Tensors fused;
  for (const auto& shape : fused_shapes(features, mode)) fused.push_back(allocate(shape, dtype, uncertainty));
  const Tensor weights = allocate_like(uncertainty);
  with_storage(dtype, in.is_dense(), [&](auto storage) {
    using T = decltype(storage);
    using C = typename Access<T>::C;
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    const Weighting<C>& weighting = inputs.weighting();
    const Tiles tiles(weighting.rows, in.longest(), Access<T>::WIDTH);
    const Fusion fusion = in.fusion(fused, tiles, mode == SCALE);
    if (inputs.per_location()) {
      const auto factors = location_factors(inputs, residual, uncertainty);
      compute_weights<C>(inputs, residual, results_of<C>(weights), factors ? results_of<C>(*factors) : nullptr, device);
      launch("location_fusion_kernel", location_fusion_kernel<T>, device, Work{fusion.across, tiles.groups, BLOCK},
             fusion, results_of<C>(factors ? *factors : weights), Divisor(weighting.locations), tiles);
    } else {
      // The weights are needed even if the features have no elements.
      launch("weighted_fusion_kernel", weighted_fusion_kernel<T>, device,
             Work{std::max(fusion.across, 1u), tiles.groups, BLOCK}, fusion, weighting, tiles, residual,
             results_of<C>(weights));
    }
  });
  return {fused, weights};
}

// Computes the gradients of the features and, per location, the sums of grad * feature.
template <class T>
static Tensor backward_features(const WeightInputs<typename Access<T>::C>& inputs, const Fusion& fusion, bool residual,
                                const Tensor& uncertainty, const OnDevice& device) {
  using C = typename Access<T>::C;
  const Weighting<C>& weighting = inputs.weighting();
  const int64_t pairs = weighting.rows * fusion.count;
  const Tensor weights = allocate_like(uncertainty), dots = allocate_like(uncertainty);
  const auto factors = location_factors(inputs, residual, uncertainty);
  compute_weights<C>(inputs, residual, results_of<C>(weights), factors ? results_of<C>(*factors) : nullptr, device);
  launch("location_fusion_backward_kernel", location_fusion_backward_kernel<T>, device,
         Work{(weighting.locations + 31) / 32, pairs, BLOCK}, fusion, results_of<C>(factors ? *factors : weights),
         Tiles::counted(pairs), weighting.locations, results_of<C>(dots));
  return dots;
}

// The same per sample. `dots` describes the partial sums of grad * feature, which the returned tensor holds.
template <class T>
static Tensor backward_features(const WeightInputs<typename Access<T>::C>& inputs, const Fusion& fusion,
                                const Tiles& tiles, bool residual, const Tensor& uncertainty,
                                Dots<typename Access<T>::C>& dots, const OnDevice& device) {
  using C = typename Access<T>::C;
  const int64_t per_tile = int64_t{tiles.partials_per_row} / tiles.across;
  for (int m = 0; m < fusion.count; ++m) {
    dots.first_partial[m] = fusion.modalities[m].first_tile * per_tile;
    dots.first_partial[m + 1] =
        dots.first_partial[m] + (fusion.modalities[m].size + tiles.step - 1) / tiles.step * per_tile;
  }
  dots.entries = dots.first_partial[fusion.count];
  const Tensor partial = allocate({inputs.weighting().rows, dots.entries}, scalar_type_of<C>, uncertainty);
  dots.partial = results_of<C>(partial);
  const unsigned across = dots.entries == 0 ? 0 : fusion.across;
  launch("weighted_fusion_backward_kernel", weighted_fusion_backward_kernel<T>, device,
         Work{across, tiles.groups, BLOCK}, fusion, inputs.weighting(), tiles, residual, dots.entries,
         results_of<C>(partial));
  return partial;
}

std::tuple<Tensors, Tensor, Tensor> weighted_fusion_backward(Tensors grads, OptionalTensor grad_weights,
                                                             Tensors features, Tensor uncertainty,
                                                             OptionalTensor dependency, OptionalTensor mask,
                                                             int64_t mode, bool residual, int64_t g, double temperature,
                                                             std::optional<double> total, std::optional<double> floor,
                                                             std::optional<double> reference, bool needs_dependency) {
  Features in(features, uncertainty, mode);
  const auto shapes = fused_shapes(features, mode);
  expect(grads.size() == shapes.size(), "grads: expected one for every fused tensor");
  for (size_t i = 0; i < grads.size(); ++i)
    expect(shape_of(grads[i]) == shapes[i] && grads[i].scalar_type() == features[0].scalar_type(),
           "grads: expected the fused shapes and the features' dtype");
  if (grad_weights) {
    expect_same_shape(*grad_weights, uncertainty, "grad_weights and uncertainty");
    expect(grad_weights->scalar_type() == uncertainty.scalar_type(), "grad_weights: expected uncertainty's dtype");
  }
  in.add_gradients(grads);
  const OnDevice device(uncertainty);
  Tensors grad_features;
  for (const Tensor& t : features) grad_features.push_back(allocate_like(t));
  const Tensor grad_uncertainty = allocate_like(uncertainty);
  const Tensor grad_dependency = allocate_dependency_gradient(dependency, needs_dependency, uncertainty);
  with_storage(features[0].scalar_type(), in.is_dense(), [&](auto storage) {
    using T = decltype(storage);
    using C = typename Access<T>::C;
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    const EntryInput<C> incoming(grad_weights);
    const Tiles tiles(inputs.weighting().rows, in.longest(), Access<T>::WIDTH);
    const Fusion fusion = in.fusion(grad_features, tiles, true);
    if (inputs.per_location()) {
      const Tensor dots = backward_features<T>(inputs, fusion, residual, uncertainty, device);
      location_weights_backward<C>(inputs, incoming, results_of<C>(dots), grad_uncertainty, grad_dependency,
                                   needs_dependency, device);
    } else {
      Dots<C> dots;
      const Tensor partial = backward_features<T>(inputs, fusion, tiles, residual, uncertainty, dots, device);
      sample_weights_backward<C>(inputs, incoming, dots, grad_uncertainty, grad_dependency, needs_dependency, device);
    }
  });
  return {grad_features, grad_uncertainty, grad_dependency};
}

}  // namespace udml

UDML_REGISTER(fusion_weights)
UDML_REGISTER(fusion_weights_backward)
UDML_REGISTER(weighted_fusion)
UDML_REGISTER(weighted_fusion_backward)
