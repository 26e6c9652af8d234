#include "folding.h"
#include "op.h"

namespace udml {
namespace {

template <class C>
void second_layer(const Estimator<C>& net, double* o) {
  const int64_t size = net.batch * net.outputs;
  std::vector<double> partial(static_cast<size_t>(net.groups * net.blocks * size));
  parallel_items(net.groups * net.blocks, net.batch * net.features * 4, [&](int64_t item) {
    const int64_t m = item / net.blocks, block = item % net.blocks, n = net.units(block);
    std::vector<C> hidden(static_cast<size_t>(net.batch * UNITS));
    net.first_layer(m, block, hidden.data());
    for (int64_t b = 0; b < net.batch; ++b) {
      C factor[UNITS];
      C* h = hidden.data() + b * UNITS;
      net.dropout_factors(m, b, block * UNITS, n, factor);
      for_each_vector(n, [&](int64_t i, auto lanes) {
        using V = lanes_of<C>;
        const V active = activate<V, C>(net.activation, load_lanes(h + i, lanes)), f = load_lanes(factor + i, lanes);
        store_lanes(h + i, select(f == C(0), V{}, V(active * f)), lanes);
      });
      for (int64_t out = 0; out < net.outputs; ++out)
        partial[static_cast<size_t>(item * size + b * net.outputs + out)] =
            dot(net.weight2_of(m, out) + block * UNITS, h, n);
    }
  });
  for (int64_t m = 0; m < net.groups; ++m)
    for (int64_t i = 0; i < size; ++i) {
      double sum = 0;
      for (int64_t block = 0; block < net.blocks; ++block)
        sum += partial[static_cast<size_t>((m * net.blocks + block) * size + i)];
      o[m * size + i] = sum;
    }
}

template <class C>
void forward(const Estimator<C>& net, const OptionalTensor& target, const Tensor& noise_out, const Tensor& loss_out,
             const Tensor& o_out) {
  const int64_t size = net.groups * net.batch * net.outputs;
  std::vector<double> sums(static_cast<size_t>(size));
  const bool folded = net.foldable() && net.finite_inputs();
  if (folded) second_layer_folded(net, sums.data());
  if (!folded || !all_finite(sums)) second_layer(net, sums.data());
  std::vector<C> noise(static_cast<size_t>(size));
  std::optional<Dense<C>> targets;
  if (target) targets.emplace(*target);
  C* o = results_of<C>(o_out);
  double squares = 0;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t m = i / (net.batch * net.outputs);
    o[i] = static_cast<C>(sums[static_cast<size_t>(i)] + net.bias2[m * net.outputs + i % net.outputs]);
    const C value = std::exp(o[i] / 2);
    noise[static_cast<size_t>(i)] = value;
    if (targets) squares += std::pow(static_cast<double>(value - (*targets)[i]), 2);
  }
  convert_run(noise.data(), noise_out.scalar_type(), noise_out.mutable_data_ptr(), size);
  *results_of<C>(loss_out) = static_cast<C>(squares / static_cast<double>(std::max<int64_t>(size, 1)));
}

// Computes dL/do, (M, B, O), and dL/dtarget from the incoming gradients. The arithmetic is double, because grad_loss *
// (noise - target) can overflow float32 although its product with `noise` does not.
template <class C>
std::vector<C> output_gradient(const Estimator<C>& net, const Tensor& o, const OptionalTensor& grad_noise,
                               const OptionalTensor& grad_loss, const OptionalTensor& target,
                               const Gradients<C>& grads) {
  const int64_t size = net.groups * net.batch * net.outputs;
  std::vector<C> o_gradient(static_cast<size_t>(size));
  std::optional<Dense<C>> noise_gradient, targets;
  if (grad_noise) noise_gradient.emplace(*grad_noise);
  if (target) targets.emplace(*target);
  const double slope = grad_loss && target ? 2.0 * Reader<C>(*grad_loss).at(0, 0) / static_cast<double>(size) : 0;
  const C* values = values_of<C>(o);
  C* target_gradient = grads.at(grads.target, TARGET, 0);
  for (int64_t i = 0; i < size; ++i) {
    const double noise = std::exp(values[i] / 2);
    const double error_gradient = grad_loss && targets ? slope * (noise - (*targets)[i]) : 0;
    o_gradient[static_cast<size_t>(i)] =
        static_cast<C>(((noise_gradient ? (*noise_gradient)[i] : 0) + error_gradient) * noise / 2);
    if (target_gradient) target_gradient[i] = static_cast<C>(-error_gradient);
  }
  return o_gradient;
}

template <class C>
void second_bias_gradient(const Estimator<C>& net, const C* o_gradient, C* out) {
  for (int64_t i = 0; out && i < net.groups * net.outputs; ++i) {
    double sum = 0;
    for (int64_t b = 0; b < net.batch; ++b)
      sum += o_gradient[(i / net.outputs * net.batch + b) * net.outputs + i % net.outputs];
    out[i] = static_cast<C>(sum);
  }
}

// Computes the gradients of one block of hidden units: its rows of weight1 and bias1, its columns of weight2, and its
// columns of dL/dhidden (B, H).
template <class C>
void backward_block(const Estimator<C>& net, int64_t m, int64_t block, const C* g, const Gradients<C>& grads,
                    C* hidden_gradient) {
  using V = lanes_of<C>;
  const int64_t D = net.features, H = net.hidden, O = net.outputs, begin = block * UNITS, n = net.units(block);
  std::vector<C> hidden(static_cast<size_t>(net.batch * UNITS));
  // `piece` holds the sums over a part of the batch, first for weight2, then for bias1. `sums` adds up the pieces.
  std::vector<C> piece(static_cast<size_t>((O + 1) * UNITS)), sums(piece);
  C *weight2_piece = piece.data(), *bias1_piece = weight2_piece + O * UNITS;
  net.first_layer(m, block, hidden.data());
  alignas(64) C factor[UNITS];
  for (int64_t b = 0; b < net.batch; ++b) {
    net.dropout_factors(m, b, begin, n, factor);
    C* out = hidden_gradient + b * H + begin;
    for_each_vector(n, [&](int64_t i, auto lanes) {
      const V keep = load_lanes(factor + i, lanes), h = load_lanes(hidden.data() + b * UNITS + i, lanes);
      const V active = select(keep == C(0), V{}, V(activate<V, C>(net.activation, h) * keep));
      V sum{};
      for (int64_t o = 0; o < O; ++o) {
        const C o_gradient = g[b * O + o];
        C* weight2_sum = weight2_piece + o * UNITS + i;
        store_lanes(weight2_sum, V(load_lanes(weight2_sum, lanes) + active * o_gradient), lanes);
        sum += load_lanes(net.weight2_of(m, o) + begin + i, lanes) * o_gradient;
      }
      sum = select(keep == C(0), V{}, activation_backward<V, C>(net.activation, V(sum * keep), h));
      store_lanes(bias1_piece + i, V(load_lanes(bias1_piece + i, lanes) + sum), lanes);
      store_lanes(out + i, sum, lanes);
    });
    if ((b + 1) % GEMM_DEPTH == 0 || b + 1 == net.batch) {
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += piece[i];
      std::fill(piece.begin(), piece.end(), C(0));
    }
  }
  if (C* weight1 = grads.at(grads.weight1, WEIGHT1, (m * H + begin) * D))
    gemm<C>({hidden_gradient + begin, 1, H}, net.inputs(m), D, n, net.batch, D,
            [&](int64_t u, int64_t d, V sum, auto lanes) { store_lanes(weight1 + u * D + d, sum, lanes); });
  if (C* bias1 = grads.at(grads.bias1, BIAS1, m * H + begin)) std::copy_n(&sums[0] + O * UNITS, n, bias1);
  for (int64_t o = 0; o < O; ++o)
    if (C* weight2 = grads.at(grads.weight2, WEIGHT2, (m * O + o) * H + begin))
      std::copy_n(&sums[0] + o * UNITS, n, weight2);
}

template <class C>
void backward(const Estimator<C>& net, const C* o_gradient, const Gradients<C>& grads) {
  const int64_t D = net.features, H = net.hidden;
  std::vector<C> hidden_gradient(static_cast<size_t>(net.groups * net.batch * H));
  parallel_items(net.groups * net.blocks, net.batch * D * 4, [&](int64_t item) {
    const int64_t m = item / net.blocks;
    backward_block(net, m, item % net.blocks, o_gradient + m * net.batch * net.outputs, grads,
                   hidden_gradient.data() + m * net.batch * H);
  });
  if (!(grads.needs & STD)) return;
  const int64_t width = GEMM_VECTORS * W, strips = (D + width - 1) / width;
  parallel_items(net.groups * strips, net.batch * H * 4, [&](int64_t item) {
    const int64_t m = item / strips, begin = item % strips * width, n = std::min(width, D - begin);
    gemm<C>({hidden_gradient.data() + m * net.batch * H, H, 1}, net.weight1_of(m) + begin, D, net.batch, H, n,
            [&](int64_t b, int64_t d, lanes_of<C> sum, auto lanes) {
      store_lanes(grads.std + (m * net.batch + b) * D + begin + d, sum, lanes);
    });
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> noise_regression(Tensor std, Tensor weight1, Tensor bias1, Tensor weight2,
                                                    Tensor bias2, OptionalTensor target, int64_t activation,
                                                    double dropout_p, OptionalTensor seed, int64_t stream,
                                                    OptionalTensor sample_ids) {
  const auto shape = noise_shape(std, weight2);
  const ScalarType dtype = compute_type(std.scalar_type());
  expect(!target || shape_of(*target) == shape, "target: expected the shape of noise");
  const Tensor noise = allocate(shape, std.scalar_type()), loss = allocate({}, dtype), o = allocate(shape, dtype);
  with_compute_type(dtype, [&](auto type) {
    using C = decltype(type);
    const Estimator<C> net(std, weight1, bias1, weight2, bias2, activation, dropout_p, seed, stream, sample_ids);
    forward(net, target, noise, loss, o);
  });
  return {noise, loss, o};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> noise_regression_backward(
    OptionalTensor grad_noise, OptionalTensor grad_loss, Tensor std, Tensor weight1, Tensor bias1, Tensor weight2,
    Tensor bias2, OptionalTensor target, int64_t activation, double dropout_p, OptionalTensor seed, int64_t stream,
    OptionalTensor sample_ids, Tensor o, int64_t needs) {
  const auto shape = noise_shape(std, weight2);
  expect(shape_of(o) == shape && (!grad_noise || shape_of(*grad_noise) == shape) &&
             (!target || shape_of(*target) == shape) && (target || !(needs & TARGET)),
         "o, grad_noise and target: expected the shape of noise");
  return with_compute_type(std.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const Estimator<C> net(std, weight1, bias1, weight2, bias2, activation, dropout_p, seed, stream, sample_ids);
    const auto result = [&](const Tensor& like, int64_t bit) { return Result<C>(like, needs & bit); };
    const Gradients<C> grads{needs,
                             result(std, STD),
                             result(weight1, WEIGHT1),
                             result(bias1, BIAS1),
                             result(weight2, WEIGHT2),
                             result(bias2, BIAS2),
                             result(target ? *target : o, TARGET)};
    const std::vector<C> o_gradient = output_gradient(net, o, grad_noise, grad_loss, target, grads);
    second_bias_gradient(net, o_gradient.data(), grads.at(grads.bias2, BIAS2, 0));
    const bool folded = net.foldable() && net.finite_inputs() && all_finite(o_gradient);
    if (!folded || !backward_folded(net, o_gradient.data(), grads)) backward(net, o_gradient.data(), grads);
    return std::make_tuple(grads.std.tensor(), grads.weight1.tensor(), grads.bias1.tensor(), grads.weight2.tensor(),
                           grads.bias2.tensor(), grads.target.tensor());
  });
}

}  // namespace udml

UDML_REGISTER(noise_regression)
UDML_REGISTER(noise_regression_backward)
