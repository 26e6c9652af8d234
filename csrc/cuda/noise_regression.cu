// The results of the noise estimator. Tiles compute partial sums over hidden units, and a separate kernel adds them in
// order.
#include "estimator.h"

namespace udml {

// Adds a warp's sums over its units, of which each lane has those of QUADS quads of ROWS rows, to sums over UNIT_BLOCK
// units: over the quads of a lane, or of the two warps that share the units, and then over the four lanes of a row. The
// result is valid in the lane, or the lanes of one of the warps, that `stores` tells.
template <class Shape, class T>
struct UnitSums {
  using C = Arithmetic<T>;
  static constexpr int ROWS = Quads<Shape>::ROWS, QUADS = Quads<Shape>::QUADS;
  static_assert(Shape::WARP_COLUMNS == UNIT_BLOCK || (2 * Shape::WARP_COLUMNS == UNIT_BLOCK && Shape::DOWN == 1));

  static __device__ __forceinline__ bool stores() {
    return threadIdx.x % 4 == 0 && (QUADS == 2 || threadIdx.x / 32 % 2 == 0);
  }
  static __device__ __forceinline__ void add(const C (&quads)[ROWS][QUADS], C (&sums)[ROWS]) {
    if constexpr (QUADS == 2) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sums[r] = quads[r][0] + quads[r][1];
    } else {
      UDML_SHARED(C, second, ROWS * Shape::THREADS / 2);
      C* slot = second + threadIdx.x / 64 * 32 + threadIdx.x % 32;
      const bool is_second = threadIdx.x / 32 % 2 == 1;
      __syncthreads();
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (is_second) slot[r * (Shape::THREADS / 2)] = quads[r][0];
      __syncthreads();
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sums[r] = quads[r][0] + slot[r * (Shape::THREADS / 2)];
    }
#pragma unroll
    for (int offset = 2; offset > 0; offset /= 2)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], offset);
  }
};

// partial (M, unit blocks, B, O): the contribution of each block of hidden units to o.
template <class Shape, class T, class C>
__global__ void __launch_bounds__(Shape::THREADS, Shape::BLOCKS_PER_SM)
    noise_regression_layers_kernel(Estimator<T> net, int row_tiles, int unit_tiles, C* partial) {
  using Q = Quads<Shape>;
  for_each_product_tile(net.groups, row_tiles, unit_tiles, [&](int64_t group, int row_tile, int unit_tile) {
    const Units at = net.template units<Shape>(group, row_tile, unit_tile);
    C h[Q::N][4], active[Q::N][4];
    net.template first_layer<Shape>(at, h);
    activate<false>(net.activation, h, active, h);
    const auto kept = net.template kept<Shape>(at);
#pragma unroll
    for (int i = 0; i < 4 * Q::N; ++i) active[i / 4][i % 4] = kept >> i & 1 ? active[i / 4][i % 4] * net.scale : C(0);
    const int unit_block = (unit_tile * Shape::COLUMNS + Shape::warp_column()) / UNIT_BLOCK;
    C* out = partial + ((group * net.unit_blocks + unit_block) * net.batch + at.row) * net.outputs;
#pragma unroll 1
    for (int o = 0; o < net.outputs; ++o) {
      C quads[Q::ROWS][Q::QUADS], sums[Q::ROWS];
#pragma unroll
      for (int q = 0; q < Q::QUADS; ++q) {
        C weight[4];
        net.load_units(net.weight2, at, q, o, weight);
#pragma unroll
        for (int r = 0; r < Q::ROWS; ++r) {
          quads[r][q] = 0;
#pragma unroll
          for (int j = 0; j < 4; ++j) quads[r][q] = multiply_add(active[Q::QUADS * r + q][j], weight[j], quads[r][q]);
        }
      }
      UnitSums<Shape, T>::add(quads, sums);
#pragma unroll
      for (int r = 0; r < Q::ROWS; ++r)
        if (UnitSums<Shape, T>::stores() && unit_block < net.unit_blocks && at.row + 8 * r < net.batch)
          out[static_cast<int64_t>(8 * r) * net.outputs + o] = sums[r];
    }
  });
}

// The sum of the squared errors. With many results each warp stores the sum of 32 in `squares`; with few, one block
// computes all and stores the loss.
template <class C>
struct Loss {
  double* squares;
  double share;
  C* loss;
};

// Computes the results from the partial sums of o.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    noise_regression_outputs_kernel(const C* partial, int unit_blocks, Outputs sizes, Strided bias2, Strided target,
                                    C* o_out, Results noise_out, Loss<C> loss) {
  UDML_SHARED(double, sums, BLOCK / 32);
  const int64_t size = sizes.size(), each = sizes.batch * sizes.outputs;
  double total = 0;
  for_each_warp_item((size + 31) / 32, [&](int64_t item) {
    const int64_t i = item * 32 + threadIdx.x % 32;
    double square = 0;
    if (i < size) {
      const int64_t group = i / each;
      const C* part = partial + (group * unit_blocks * each + (i - group * each));
      double sum = 0;
#pragma unroll 8
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
    total += square;
    if (loss.squares == nullptr) return;
    square = sum_over_lanes(square);
    if (threadIdx.x % 32 == 0) loss.squares[item] = square;
  });
  if (loss.loss == nullptr) return;
  total = sum_over_lanes(total);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  total = 0;
#pragma unroll
  for (int i = 0; i < BLOCK / 32; ++i) total += sums[i];
  *loss.loss = static_cast<C>(loss.share * total);
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
  with_stored_type(std.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    // As many results as one block computes in about the time of another launch.
    constexpr int64_t FEW = 4 * BLOCK;
    const auto net = estimator<T>(std, weight1, bias1, weight2, bias2, activation, dropout_p, seed, stream, sample_ids);
    const Outputs sizes{net.groups, net.batch, net.outputs};
    const Tensor partial = allocate({net.unit_blocks, sizes.size()}, dtype, std);
    const int64_t items = (sizes.size() + 31) / 32;
    const bool few = sizes.size() > 0 && sizes.size() <= FEW;
    const Tensor squares = allocate({target && !few ? items : 0}, ScalarType::Double, std);
    const double share = 1.0 / static_cast<double>(std::max<int64_t>(sizes.size(), 1));
    if (sizes.size() > 0)
      with_tile<T, LargeTile>(net.batch, net.hidden, net.groups, net.features, [&](auto shape) {
        using Shape = decltype(shape);
        const int rows = ceil_div(net.batch, Shape::ROWS),
                  units = ceil_div(net.unit_blocks, Shape::COLUMNS / UNIT_BLOCK);
        launch("noise_regression_layers_kernel", noise_regression_layers_kernel<Shape, T, C>, device,
               Work{static_cast<int64_t>(rows) * units, net.groups, Shape::THREADS}, net, rows, units,
               results_of<C>(partial));
      });
    launch("noise_regression_outputs_kernel", noise_regression_outputs_kernel<C>, device,
           few ? Work{1, 1, BLOCK} : warp_item_work(items), results_of<C>(partial), net.unit_blocks, sizes,
           strided(bias2, 1), strided(target), results_of<C>(o), results(noise, 0),
           Loss<C>{target && !few ? results_of<double>(squares) : nullptr, share, few ? results_of<C>(loss) : nullptr});
    if (!few) sum_partials<double>(squares, 1, squares.numel(), share, results_of<C>(loss), device);
  });
  return {noise, loss, o};
}

}  // namespace udml

UDML_REGISTER(noise_regression)
