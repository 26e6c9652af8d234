// The results of the noise estimator. Tiles compute partial sums over hidden units, and a separate kernel adds them in
// order.
#include "estimator.h"

namespace udml {

// partial (M, unit blocks, B, O): the contribution of each block of hidden units to o.
template <class C>
__global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS_PER_SM<C>)
    noise_regression_layers_kernel(Estimator<C> net, C* partial) {
  for_each_product_tile(net.groups, net.row_blocks, net.unit_blocks, [&](int64_t group, int row_block, int unit_block) {
    const Units at = net.units(group, row_block, unit_block);
    C h[4][4], active[4][4];
    net.first_layer(at, h);
    activate<false>(net.activation, h, active, h);
    const uint32_t kept = net.kept(at);
#pragma unroll
    for (int i = 0; i < 16; ++i) active[i / 4][i % 4] = kept >> i & 1 ? active[i / 4][i % 4] * net.scale : C(0);
    C* out = partial + ((group * net.unit_blocks + unit_block) * net.batch + at.row) * net.outputs;
#pragma unroll 1
    for (int o = 0; o < net.outputs; ++o) {
      C weight[4], sums[4] = {};
      net.load_units(net.weight2, at, o, weight);
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[i / 4] = multiply_add(active[i / 4][i % 4], weight[i % 4], sums[i / 4]);
      sum_over_lanes(sums, ACROSS / 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (across_of_thread() == 0 && at.row + i < net.batch) out[static_cast<int64_t>(i) * net.outputs + o] = sums[i];
    }
  });
}

// Computes the results from the partial sums of o. Each warp stores the sum of 32 squared errors.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    noise_regression_outputs_kernel(const C* partial, int unit_blocks, Outputs sizes, Strided bias2, Strided target,
                                    C* o_out, Results noise_out, double* squares) {
  const int64_t size = sizes.size(), each = sizes.batch * sizes.outputs;
  for_each_warp_item((size + 31) / 32, [&](int64_t item) {
    const int64_t i = item * 32 + threadIdx.x % 32;
    double square = 0;
    if (i < size) {
      const int64_t group = i / each;
      const C* part = partial + (group * unit_blocks * each + (i - group * each));
      double sum = 0;
#pragma unroll 4
      for (int block = 0; block < unit_blocks; ++block) sum += static_cast<double>(part[block * each]);
      const C o = static_cast<C>(sum + static_cast<double>(bias2.at<C>(group, 0, i % sizes.outputs)));
      const C value = exponential_of_half<C>(o);
      o_out[i] = o;
      store_as(noise_out.data, noise_out.dtype, i, value);
      if (opaque(target.data) != nullptr) {
        const double error = static_cast<double>(value - sizes.at<C>(target, i));
        square = error * error;
      }
    }
    if (squares == nullptr) return;
    square = sum_over_lanes(square);
    if (threadIdx.x % 32 == 0) squares[item] = square;
  });
}

std::tuple<Tensor, Tensor, Tensor> noise_regression(Tensor std, Tensor weight1, Tensor bias1, Tensor weight2,
                                                    Tensor bias2, OptionalTensor target, int64_t activation,
                                                    double dropout_p, OptionalTensor seed, int64_t stream,
                                                    OptionalTensor sample_ids) {
  const auto shape = noise_shape(std, weight2);
  expect(!target || shape_of(*target) == shape, "target: expected the shape of noise");
  const OnDevice device(std);
  const ScalarType dtype = compute_type(std.scalar_type());
  const Tensor noise = allocate(shape, std.scalar_type(), std), loss = allocate({}, dtype, std),
               o = allocate(shape, dtype, std);
  with_compute_type(dtype, [&](auto type) {
    using C = decltype(type);
    const auto net = estimator<C>(std, weight1, bias1, weight2, bias2, activation, dropout_p, seed, stream, sample_ids);
    const Outputs sizes{net.groups, net.batch, net.outputs};
    const Tensor partial = allocate({net.unit_blocks, sizes.size()}, dtype, std);
    const int64_t items = (sizes.size() + 31) / 32;
    const Tensor squares = allocate({target ? items : 0}, ScalarType::Double, std);
    if (sizes.size() > 0)
      launch("noise_regression_layers_kernel", noise_regression_layers_kernel<C>, device,
             Work{static_cast<int64_t>(net.row_blocks) * net.unit_blocks, net.groups, TILE_THREADS}, net,
             results_of<C>(partial));
    launch("noise_regression_outputs_kernel", noise_regression_outputs_kernel<C>, device, warp_item_work(items),
           results_of<C>(partial), net.unit_blocks, sizes, strided(bias2, 1), strided(target), results_of<C>(o),
           results(noise, 0), target ? results_of<double>(squares) : nullptr);
    const double share = 1.0 / static_cast<double>(std::max<int64_t>(sizes.size(), 1));
    sum_partials<double>(squares, 1, squares.numel(), share, results_of<C>(loss), device);
  });
  return {noise, loss, o};
}

}  // namespace udml

UDML_REGISTER(noise_regression)
