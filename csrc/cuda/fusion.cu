// fusion_weights, and weighted_fusion: the features read once, multiplied by their weights on the way.
#include <algorithm>

#include "../ops.h"
#include "fused.h"
#include "fusion_locations.h"
#include "fusion_samples.h"

namespace udml {

template <class C>
static void compute_weights(const WeightInputs<C>& inputs, bool residual, C* weights, C* factors,
                            const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  if (inputs.per_location()) {
    launch("location_weights_kernel", location_weights_kernel<C>, device,
           work_by_thread(weighting.rows * weighting.locations), weighting, Divisor(weighting.locations), residual,
           weights, factors);
  } else {
    launch("fusion_weights_kernel", fusion_weights_kernel<C>, device, work_by_warp((weighting.rows + 1) / 2), weighting,
           weights);
  }
}

// dL/ds and dL/dalpha from dL/dw: from `grad` and, where they are not null, the sums of the features.
template <class C>
static void backward_of_locations(const WeightInputs<C>& inputs, const EntryInput<C>& grad, const C* dots,
                                  const Tensor& grad_s, const Tensor& grad_alpha, bool needs_dependency,
                                  const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  const int64_t rows = weighting.rows, modalities = weighting.modalities, segments = (weighting.locations + 31) / 32;
  const Tensor partial = allocate({needs_dependency ? modalities : 0, rows, segments}, ScalarType::Double, grad_s);
  // Of each value of dL/dalpha so many sums, side by side.
  const int64_t sums = inputs.by_sample() ? segments : rows * segments;
  const int64_t row_stride = inputs.by_sample() ? modalities * segments : segments;
  launch("location_weights_backward_kernel", location_weights_backward_kernel<C>, device, work_by_warp(rows * segments),
         weighting, grad.entries(), dots, results_of<C>(grad_s),
         needs_dependency ? results_of<double>(partial) : nullptr, Divisor(segments), row_stride, sums);
  if (needs_dependency)
    sum_partials<double>(partial, grad_alpha.numel(), sums, 1.0, results_of<C>(grad_alpha), device);
}

template <class C>
static void backward_of_samples(const WeightInputs<C>& inputs, const EntryInput<C>& grad, const Dots<C>& dots,
                                const Tensor& grad_s, const Tensor& grad_alpha, bool needs_dependency,
                                const OnDevice& device) {
  const Weighting<C>& weighting = inputs.weighting();
  const int64_t rows = weighting.rows, modalities = weighting.modalities;
  const bool summed = needs_dependency && !inputs.by_sample();
  if (!summed) {
    launch("fusion_weights_backward_kernel", fusion_weights_backward_kernel<C, C>, device, work_by_warp(rows),
           weighting, grad.entries(), dots, results_of<C>(grad_s),
           needs_dependency ? results_of<C>(grad_alpha) : nullptr, modalities, int64_t{1});
    return;
  }
  // In double: over the batch these terms largely cancel.
  const Tensor terms = allocate({modalities, rows}, ScalarType::Double, grad_s);
  launch("fusion_weights_backward_kernel", fusion_weights_backward_kernel<C, double>, device, work_by_warp(rows),
         weighting, grad.entries(), dots, results_of<C>(grad_s), results_of<double>(terms), int64_t{1}, rows);
  sum_partials<double>(terms, modalities, rows, 1.0, results_of<C>(grad_alpha), device);
}

static Tensor dependency_gradient(const OptionalTensor& dependency, bool wanted, const Tensor& uncertainty) {
  expect(!wanted || dependency.has_value(), "dependency: expected a tensor");
  return wanted ? allocate_like(*dependency) : empty_gradient(uncertainty.scalar_type(), uncertainty);
}

Tensor fusion_weights(Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask, int64_t g, double temperature,
                      std::optional<double> total) {
  const OnDevice device(uncertainty);
  const Tensor out = allocate_like(uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    compute_weights<C>(inputs, false, results_of<C>(out), nullptr, device);
  });
  return out;
}

std::tuple<Tensor, Tensor> fusion_weights_backward(Tensor grad, Tensor uncertainty, OptionalTensor dependency,
                                                   OptionalTensor mask, int64_t g, double temperature,
                                                   std::optional<double> total, bool needs_dependency) {
  expect_same_shape(grad, uncertainty, "grad and uncertainty");
  expect(grad.scalar_type() == uncertainty.scalar_type(), "grad: expected uncertainty's dtype");
  const OnDevice device(uncertainty);
  const Tensor grad_s = allocate_like(uncertainty);
  const Tensor grad_alpha = dependency_gradient(dependency, needs_dependency, uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    const EntryInput<C> incoming(grad);
    if (inputs.per_location()) {
      backward_of_locations<C>(inputs, incoming, nullptr, grad_s, grad_alpha, needs_dependency, device);
    } else {
      backward_of_samples<C>(inputs, incoming, {}, grad_s, grad_alpha, needs_dependency, device);
    }
  });
  return {grad_s, grad_alpha};
}

// The factors of locations: the weights themselves, where every modality is there and w is what features are scaled by.
template <class C>
static std::optional<Tensor> location_factors(const WeightInputs<C>& inputs, bool residual, const Tensor& uncertainty) {
  if (!residual && inputs.weighting().mask.data == nullptr) return std::nullopt;
  return allocate_like(uncertainty);
}

std::tuple<Tensors, Tensor> weighted_fusion(Tensors features, Tensor uncertainty, OptionalTensor dependency,
                                            OptionalTensor mask, int64_t mode, bool residual, int64_t g,
                                            double temperature, std::optional<double> total) {
  const Features in(features, uncertainty, mode);
  const OnDevice device(uncertainty);
  const ScalarType dtype = features[0].scalar_type();
  Tensors fused;
  for (const auto& shape : in.fused_shapes(features)) fused.push_back(allocate(shape, dtype, uncertainty));
  const Tensor weights = allocate_like(uncertainty);
  with_storage(dtype, in.is_dense(), [&](auto storage) {
    using T = decltype(storage);
    using C = typename Access<T>::C;
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    const Weighting<C>& weighting = inputs.weighting();
    const Tiles tiles(weighting.rows, in.longest(), Access<T>::WIDTH);
    const Fusion fusion = in.fusion(fused, tiles, mode == SCALE);
    if (inputs.per_location()) {
      const auto factors = location_factors(inputs, residual, uncertainty);
      compute_weights<C>(inputs, residual, results_of<C>(weights), factors ? results_of<C>(*factors) : nullptr, device);
      launch("location_fusion_kernel", location_fusion_kernel<T>, device, Work{fusion.across, tiles.groups, BLOCK},
             fusion, results_of<C>(factors ? *factors : weights), Divisor(weighting.locations), tiles);
    } else {
      // Without a feature there are weights all the same.
      launch("weighted_fusion_kernel", weighted_fusion_kernel<T>, device,
             Work{std::max(fusion.across, 1u), tiles.groups, BLOCK}, fusion, weighting, tiles, residual,
             results_of<C>(weights));
    }
  });
  return {fused, weights};
}

// The features' gradients and the sums of grad * feature, per location.
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

// The same per sample. Of the sums there are parts, which `dots` describes.
template <class T>
static Tensor backward_features(const WeightInputs<typename Access<T>::C>& inputs, const Fusion& fusion,
                                const Tiles& tiles, bool residual, const Tensor& uncertainty,
                                Dots<typename Access<T>::C>& dots, const OnDevice& device) {
  using C = typename Access<T>::C;
  const int64_t per_tile = int64_t{tiles.entries} / tiles.across;
  for (int m = 0; m < fusion.count; ++m) {
    dots.first[m] = fusion.of[m].first * per_tile;
    dots.first[m + 1] = dots.first[m] + (fusion.of[m].size + tiles.step - 1) / tiles.step * per_tile;
  }
  dots.entries = dots.first[fusion.count];
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
                                                             std::optional<double> total, bool needs_dependency) {
  Features in(features, uncertainty, mode);
  const auto shapes = in.fused_shapes(features);
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
  const Tensor grad_s = allocate_like(uncertainty);
  const Tensor grad_alpha = dependency_gradient(dependency, needs_dependency, uncertainty);
  with_storage(features[0].scalar_type(), in.is_dense(), [&](auto storage) {
    using T = decltype(storage);
    using C = typename Access<T>::C;
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total);
    const EntryInput<C> incoming(grad_weights);
    const Tiles tiles(inputs.weighting().rows, in.longest(), Access<T>::WIDTH);
    const Fusion fusion = in.fusion(grad_features, tiles, true);
    if (inputs.per_location()) {
      const Tensor dots = backward_features<T>(inputs, fusion, residual, uncertainty, device);
      backward_of_locations<C>(inputs, incoming, results_of<C>(dots), grad_s, grad_alpha, needs_dependency, device);
    } else {
      Dots<C> dots;
      const Tensor partial = backward_features<T>(inputs, fusion, tiles, residual, uncertainty, dots, device);
      backward_of_samples<C>(inputs, incoming, dots, grad_s, grad_alpha, needs_dependency, device);
    }
  });
  return {grad_features, grad_s, grad_alpha};
}

}  // namespace udml
