#include "dependency_gradient.h"
#include "features.h"
#include "op.h"

namespace udml {
namespace {

template <class C>
struct WeightInputs {
  Weighting weighting;
  Reader<C> uncertainties, dependencies, mask;
  int64_t dependency_step = 0;
  bool mask_per_location = false;

  WeightInputs(const Tensor& uncertainty, const OptionalTensor& dependency, const OptionalTensor& present, int64_t g,
               double temperature, std::optional<double> total, std::optional<double> floor,
               std::optional<double> reference)
      : weighting(uncertainty, g, temperature, total, floor, reference), uncertainties(uncertainty) {
    if (dependency) {
      expect(dependency->dim() <= 2 && dependency->size(dependency->dim() - 1) == weighting.modalities,
             "dependency: expected (M,) or (B, M)");
      dependency_step = dependency->dim() == 2;
      expect(dependency_step == 0 || dependency->size(0) == weighting.rows, "dependency: expected one row a sample");
      dependencies = Reader<C>(*dependency, dependency_step);
    }
    if (present) {
      expect(present->dim() >= 2 && present->size(0) == weighting.rows && present->size(1) == weighting.modalities,
             "mask: expected (B, M) or uncertainty's shape");
      mask_per_location = weighting.per_location() && present->dim() > 2;
      mask = Reader<C>(*present);
    }
  }

  void compute(const Block& block, WeightBlock<C>& out) const {
    out.compute(weighting, block, uncertainties, dependencies, dependency_step, mask, mask_per_location);
  }
};

// dL/dweights and dL/ddependency at the positions of a block.
template <class C>
struct WeightGradients {
  alignas(64) C weight_gradient[MAX_MODALITIES][WeightBlock<C>::SIZE],
      dependency_gradient[MAX_MODALITIES][WeightBlock<C>::SIZE];
};

// The index of modality m at position i of a block in a contiguous (B, M) or (B, M, L) tensor.
template <class C>
int64_t position(const Weighting& weighting, const Block& block, int64_t m, int64_t i) {
  return weighting.per_location() ? (block.row * weighting.modalities + m) * weighting.locations + block.location + i
                                  : (block.row + i) * weighting.modalities + m;
}

template <class C>
void scatter(const Weighting& weighting, const Block& block, const C (*values)[WeightBlock<C>::SIZE], C* out) {
  for (int64_t m = 0; m < weighting.modalities; ++m)
    for (int64_t i = 0; i < block.count; ++i) out[position<C>(weighting, block, m, i)] = values[m][i];
}

// Reads or, if `add`, adds the gradient. A missing gradient counts as 0.
template <class C>
void gather_grad(const Weighting& weighting, const Block& block, const Reader<C>& grad, bool add,
                 C (*values)[WeightBlock<C>::SIZE]) {
  for (int64_t m = 0; m < weighting.modalities; ++m)
    for (int64_t i = 0; i < block.count; ++i) {
      const bool rows = !weighting.per_location();
      const C g =
          !grad ? C(0) : grad.at(block.row + (rows ? i : 0), rows ? m : m * weighting.locations + block.location + i);
      values[m][i] = add ? values[m][i] + g : g;
    }
}

template <class C>
void fuse_block(const Weighting& weighting, const Block& block, const Factors<C>& factors, const Features<C>& features,
                const FusedTensors<C>& fused) {
  const size_t count = features.rows.size(), tensors = fused.mode == SUM ? 1 : count;
  for (size_t t = 0; t < tensors; ++t) {
    for_each_run<C>(weighting, block, features.sizes[t], [&](int64_t row, int64_t begin, int64_t n, int64_t i) {
      alignas(64) C in_buffer[TILE], out_buffer[TILE];
      const int64_t destination = fused.offset(t) + begin;
      const Writer<C>& writer = fused.writers[fused.tensor(t)];
      C* out = writer.run(row, destination, out_buffer);
      // In SUM mode all modalities add to `out`. In the other modes each modality has its own output.
      for (size_t m = t; m < (fused.mode == SUM ? count : t + 1); ++m) {
        const C *factor = factors.value[m] + i, *enabled = factors.enabled[m] + i;
        const bool add = m > t;
        if (!weighting.per_location() && *enabled == C(0)) {
          if (!add) std::fill_n(out, n, C(0));
          continue;
        }
        const C* f = features.rows[m].run(row, begin, n, in_buffer);
        weighting.per_location() ? scale_run(f, factor, enabled, add, n, out)
                                 : scale_run(f, *factor, add, fused.nontemporal, n, out);
      }
      writer.commit(row, destination, n, out);
    });
  }
}

template <class C>
void fuse_backward_block(const Weighting& weighting, const Block& block, const Factors<C>& factors,
                         const WeightBlock<C>& weights, const Features<C>& features,
                         const std::vector<Reader<C>>& grads, const FusedTensors<C>& into,
                         C (*weight_gradient)[WeightBlock<C>::SIZE]) {
  using V = lanes_of<C>;
  for (size_t m = 0; m < features.rows.size(); ++m) {
    C* dots = weight_gradient[m];
    std::fill_n(dots, block.count, C(0));
    for_each_run<C>(weighting, block, features.sizes[m], [&](int64_t row, int64_t begin, int64_t n, int64_t i) {
      alignas(64) C in_buffer[TILE], grad_buffer[TILE], out_buffer[TILE];
      const C* f = features.rows[m].run(row, begin, n, in_buffer);
      const C* g = grads[into.tensor(m)].run(row, into.offset(m) + begin, n, grad_buffer);
      C* out = into.writers[m].run(row, begin, out_buffer);
      const C *factor = factors.value[m] + i, *enabled = factors.enabled[m] + i, *present = weights.present[m] + i;
      if (weighting.per_location()) {
        scale_run(g, factor, enabled, false, n, out);
        for_each_vector(n, [&](int64_t j, auto lanes) {
          const V product = load_lanes(g + j, lanes) * load_lanes(f + j, lanes);
          const V passed = select(load_lanes(present + j, lanes) != C(0), product, V{});
          store_lanes(dots + j, V(load_lanes(dots + j, lanes) + passed), lanes);
        });
      } else if (*enabled == C(0)) {
        std::fill_n(out, n, C(0));
      } else {
        V dot{};
        const C scale = *factor;
        with_flag(into.nontemporal && can_store_nontemporal(out), [&](auto nontemporal) {
          for_each_vector(n, [&](int64_t j, auto lanes) {
            const V grad = load_lanes(g + j, lanes);
            dot += grad * load_lanes(f + j, lanes);
            put_lanes<nontemporal.value>(out + j, V(grad * scale), lanes);
          });
        });
        // An absent modality's features pass through a residual fusion, but its weight is constant, so it has no
        // gradient.
        if (*present != C(0)) dots[i] += sum_of_lanes(dot);
      }
      into.writers[m].commit(row, begin, n, out);
    });
  }
}

void check(const Tensors& features, const Tensor& uncertainty) {
  expect(!features.empty() && static_cast<int64_t>(features.size()) == uncertainty.size(1) &&
             features[0].size(0) == uncertainty.size(0),
         "features and uncertainty: expected the same modalities and batch");
  expect(uncertainty.scalar_type() == compute_type(features[0].scalar_type()),
         "uncertainty: expected the arithmetic dtype");
}

}  // namespace

Tensor fusion_weights(Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask, int64_t g, double temperature,
                      std::optional<double> total, std::optional<double> floor, std::optional<double> reference) {
  const Tensor out = allocate_like(uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    const Blocks blocks(inputs.weighting, 8 * inputs.weighting.modalities);
    parallel_items(blocks.count, blocks.block_size * 8 * inputs.weighting.modalities, [&](int64_t index) {
      WeightBlock<C>& weights = scratch<WeightBlock<C>>();
      const Block block = blocks.at(inputs.weighting, index);
      inputs.compute(block, weights);
      scatter<C>(inputs.weighting, block, weights.weight, results_of<C>(out));
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> fusion_weights_backward(Tensor grad, Tensor uncertainty, OptionalTensor dependency,
                                                   OptionalTensor mask, int64_t g, double temperature,
                                                   std::optional<double> total, std::optional<double> floor,
                                                   std::optional<double> reference, bool needs_dependency) {
  expect_same_shape(grad, uncertainty, "grad and uncertainty");
  const Tensor grad_uncertainty = allocate_like(uncertainty);
  return with_compute_type(uncertainty.scalar_type(), [&](auto type) -> std::tuple<Tensor, Tensor> {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    const Blocks blocks(inputs.weighting, 8 * inputs.weighting.modalities);
    DependencyGradient<C> grad_dependency(inputs.weighting, blocks, needs_dependency, inputs.dependency_step);
    const Reader<C> grad_rows(grad);
    parallel_items(blocks.count, blocks.block_size * 8 * inputs.weighting.modalities, [&](int64_t index) {
      WeightBlock<C>& weights = scratch<WeightBlock<C>>();
      auto& [weight_gradient, dependency_gradient] = scratch<WeightGradients<C>>();
      const Block block = blocks.at(inputs.weighting, index);
      inputs.compute(block, weights);
      gather_grad<C>(inputs.weighting, block, grad_rows, false, weight_gradient);
      weights.backward(inputs.weighting, block.count, weight_gradient, dependency_gradient);
      scatter<C>(inputs.weighting, block, weight_gradient, results_of<C>(grad_uncertainty));
      grad_dependency.add(index, block, weights, weight_gradient, dependency_gradient);
    });
    return {grad_uncertainty, grad_dependency.result(dependency)};
  });
}

std::tuple<Tensors, Tensor> weighted_fusion(Tensors features, Tensor uncertainty, OptionalTensor dependency,
                                            OptionalTensor mask, int64_t mode, bool residual, int64_t g,
                                            double temperature, std::optional<double> total,
                                            std::optional<double> floor, std::optional<double> reference) {
  check(features, uncertainty);
  Tensors fused;
  for (const auto& shape : fused_shapes(features, mode)) fused.push_back(allocate(shape, features[0].scalar_type()));
  const Tensor weights_out = allocate_like(uncertainty);
  with_compute_type(uncertainty.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    const Features<C> in(features);
    FusedTensors<C> into{mode, in, {}, false};
    for (const Tensor& t : fused) into.writers.emplace_back(t, row_size_of(t));
    into.nontemporal = fused[0].scalar_type() == scalar_type_of<C> &&
                       inputs.weighting.rows * in.total * static_cast<int64_t>(sizeof(C)) > NONTEMPORAL_BYTES;
    const int64_t cost = in.total / std::max<int64_t>(inputs.weighting.locations, 1);
    const Blocks blocks(inputs.weighting, cost);
    parallel_items(blocks.count, blocks.block_size * cost / 4, [&](int64_t index) {
      WeightBlock<C>& weights = scratch<WeightBlock<C>>();
      const Block block = blocks.at(inputs.weighting, index);
      inputs.compute(block, weights);
      scatter<C>(inputs.weighting, block, weights.weight, results_of<C>(weights_out));
      Factors<C>& factors = scratch<Factors<C>>();
      factors.compute(inputs.weighting, block, weights, residual);
      fuse_block(inputs.weighting, block, factors, in, into);
      fence();
    });
  });
  return {fused, weights_out};
}

std::tuple<Tensors, Tensor, Tensor> weighted_fusion_backward(Tensors grads, OptionalTensor grad_weights,
                                                             Tensors features, Tensor uncertainty,
                                                             OptionalTensor dependency, OptionalTensor mask,
                                                             int64_t mode, bool residual, int64_t g, double temperature,
                                                             std::optional<double> total, std::optional<double> floor,
                                                             std::optional<double> reference, bool needs_dependency) {
  check(features, uncertainty);
  const auto shapes = fused_shapes(features, mode);
  expect(grads.size() == shapes.size(), "grads: expected one for every fused tensor");
  for (size_t i = 0; i < grads.size(); ++i) expect(shape_of(grads[i]) == shapes[i], "grads: expected the fused shapes");
  Tensors grad_features;
  for (const Tensor& f : features) grad_features.push_back(allocate_like(f));
  const Tensor grad_uncertainty = allocate_like(uncertainty);
  return with_compute_type(uncertainty.scalar_type(), [&](auto type) -> std::tuple<Tensors, Tensor, Tensor> {
    using C = decltype(type);
    const WeightInputs<C> inputs(uncertainty, dependency, mask, g, temperature, total, floor, reference);
    const Features<C> in(features);
    FusedTensors<C> into{mode, in, {}, false};
    for (size_t m = 0; m < grad_features.size(); ++m) into.writers.emplace_back(grad_features[m], in.sizes[m]);
    std::vector<Reader<C>> grad_rows;
    for (const Tensor& t : grads) grad_rows.emplace_back(t);
    const Reader<C> grad_weight_rows = optional_reader<C>(grad_weights);
    into.nontemporal = grad_features[0].scalar_type() == scalar_type_of<C> &&
                       inputs.weighting.rows * in.total * static_cast<int64_t>(sizeof(C)) > NONTEMPORAL_BYTES;
    const int64_t cost = in.total / std::max<int64_t>(inputs.weighting.locations, 1);
    const Blocks blocks(inputs.weighting, cost);
    DependencyGradient<C> grad_dependency(inputs.weighting, blocks, needs_dependency, inputs.dependency_step);
    parallel_items(blocks.count, blocks.block_size * cost / 4, [&](int64_t index) {
      WeightBlock<C>& weights = scratch<WeightBlock<C>>();
      auto& [weight_gradient, dependency_gradient] = scratch<WeightGradients<C>>();
      const Block block = blocks.at(inputs.weighting, index);
      inputs.compute(block, weights);
      Factors<C>& factors = scratch<Factors<C>>();
      factors.compute(inputs.weighting, block, weights, residual);
      fuse_backward_block(inputs.weighting, block, factors, weights, in, grad_rows, into, weight_gradient);
      fence();
      gather_grad<C>(inputs.weighting, block, grad_weight_rows, true, weight_gradient);
      weights.backward(inputs.weighting, block.count, weight_gradient, dependency_gradient);
      scatter<C>(inputs.weighting, block, weight_gradient, results_of<C>(grad_uncertainty));
      grad_dependency.add(index, block, weights, weight_gradient, dependency_gradient);
    });
    return {grad_features, grad_uncertainty, grad_dependency.result(dependency)};
  });
}

}  // namespace udml

UDML_REGISTER(fusion_weights)
UDML_REGISTER(fusion_weights_backward)
UDML_REGISTER(weighted_fusion)
UDML_REGISTER(weighted_fusion_backward)
