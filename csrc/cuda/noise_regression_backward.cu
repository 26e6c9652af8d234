// The gradients of the noise estimator. Tiles compute partial sums over hidden units and over the batch, and separate
// kernels add them in order.
#include "estimator.h"

namespace udml {

// Computes dL/do (M, B, O) and dL/dtarget from the incoming gradients. The arithmetic is double, because grad_loss *
// (noise - target) can overflow float32 although its product with `noise` does not.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    noise_regression_output_gradient_kernel(Strided grad_noise, Strided grad_loss, const C* o, Strided target,
                                            Outputs sizes, C* o_gradient, Results grad_target) {
  const int64_t size = sizes.size();
  double slope = 0;
  if (grad_loss.data != nullptr) slope = 2.0 * grad_loss.at<C>(0, 0, 0) / static_cast<double>(size);
  for_each_thread_item(size, [&](int64_t i) {
    const double noise = exponential_of_half<C>(o[i]);
    double error_gradient = 0, noise_gradient = 0;
    if (opaque(grad_loss.data) != nullptr) error_gradient = slope * (noise - sizes.at<C>(target, i));
    if (opaque(grad_noise.data) != nullptr) noise_gradient = sizes.at<C>(grad_noise, i);
    o_gradient[i] = static_cast<C>((noise_gradient + error_gradient) * noise * 0.5);
    if (opaque(grad_target.data) != nullptr)
      store_as(grad_target.data, grad_target.dtype, i, static_cast<C>(-error_gradient));
  });
}

// Computes the gradient of bias2, the sum of o_gradient over the batch, with one block per value.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    noise_regression_bias2_kernel(const C* o_gradient, Outputs sizes, Results out) {
  UDML_SHARED(double, sums, BLOCK / 32);
#pragma unroll 1
  for (int64_t i = blockIdx.x; i < sizes.groups * sizes.outputs; i += gridDim.x) {
    const C* first = o_gradient + (i / sizes.outputs * sizes.batch * sizes.outputs + i % sizes.outputs);
    double sum = 0;
    for (int64_t b = threadIdx.x; b < sizes.batch; b += BLOCK) sum += static_cast<double>(first[b * sizes.outputs]);
    sum = sum_over_lanes(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = 0;
      for (double one : sums) total += one;
      store_as(out.data, out.dtype, i, static_cast<C>(total));
    }
    __syncthreads();
  }
}

// Stores a thread's four neighboring units of one row.
template <class T, class C>
__device__ __forceinline__ void store_units(const Estimator<T>& net, int unit, C* row, const C (&x)[4]) {
  if (net.hidden % 4 == 0) {
    if (unit < net.hidden) store_four(row + unit, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (net.exists(unit + j)) row[unit + j] = x[j];
}

// Adds over the rows of a warp; lanes 0 to 3 receive the sums.
template <class C>
__device__ __forceinline__ void sum_over_rows(C (&sums)[4]) {
#pragma unroll
  for (int offset = 16; offset >= 4; offset /= 2)
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], offset);
}

// The gradients that the hidden layer produces; null if not requested. hidden_gradient (M, B, H) is the gradient of the
// first layer's results. bias1 (warps, M, H) and weight2 (warps, M, O, H) are sums over the rows of a warp.
template <class C>
struct HiddenGradients {
  C *hidden_gradient, *bias1, *weight2;
};

template <class Shape, class T, class C>
__global__ void __launch_bounds__(Shape::THREADS, Shape::BLOCKS_PER_SM)
    noise_regression_hidden_gradient_kernel(Estimator<T> net, int row_tiles, int unit_tiles, const C* o_gradient,
                                            HiddenGradients<C> grads) {
  using Q = Quads<Shape>;
  // Without an activation only the gradient of weight2 needs the first layer's results.
  const bool needs_first_layer = net.activation != IDENTITY || grads.weight2 != nullptr;
  for_each_product_tile(net.groups, row_tiles, unit_tiles, [&](int64_t group, int row_tile, int unit_tile) {
    const Units at = net.template units<Shape>(group, row_tile, unit_tile);
    const int64_t warp = static_cast<int64_t>(row_tile) * Shape::DOWN + Shape::warp_row() / Shape::WARP_ROWS;
    C h[Q::N][4] = {}, active[Q::N][4], slope[Q::N][4], gradient[Q::N][4] = {};
    if (needs_first_layer) net.template first_layer<Shape>(at, h);
    activate<true>(net.activation, h, active, slope);
    const auto kept = net.template kept<Shape>(at);
#pragma unroll
    for (int i = 0; i < 4 * Q::N; ++i) active[i / 4][i % 4] = kept >> i & 1 ? active[i / 4][i % 4] * net.scale : C(0);
    const C* incoming = o_gradient + (group * net.batch + at.row) * net.outputs;
#pragma unroll 1
    for (int o = 0; o < net.outputs; ++o) {
      C g[Q::ROWS];
#pragma unroll
      for (int r = 0; r < Q::ROWS; ++r)
        g[r] = at.row + 8 * r < net.batch ? incoming[static_cast<int64_t>(8 * r) * net.outputs + o] : C(0);
#pragma unroll
      for (int q = 0; q < Q::QUADS; ++q) {
        C weight[4], sums[4] = {};
        net.load_units(net.weight2, at, q, o, weight);
#pragma unroll
        for (int i = 0; i < 4 * Q::ROWS; ++i) {
          C& x = gradient[Q::QUADS * (i / 4) + q][i % 4];
          x = multiply_add(g[i / 4], weight[i % 4], x);
        }
        if (grads.weight2 == nullptr) continue;
#pragma unroll
        for (int i = 0; i < 4 * Q::ROWS; ++i)
          sums[i % 4] = multiply_add(active[Q::QUADS * (i / 4) + q][i % 4], g[i / 4], sums[i % 4]);
        sum_over_rows(sums);
        if (threadIdx.x % 32 < 4)
          store_units(net, at.unit + 16 * q,
                      grads.weight2 + ((warp * net.groups + group) * net.outputs + o) * net.hidden, sums);
      }
    }
#pragma unroll
    for (int i = 0; i < 4 * Q::N; ++i) {
      C& x = gradient[i / 4][i % 4];
      x = kept >> i & 1 && !blocks_gradient(net.activation, slope[i / 4][i % 4]) ? x * net.scale * slope[i / 4][i % 4]
                                                                                 : C(0);
    }
#pragma unroll
    for (int q = 0; q < Q::QUADS; ++q) {
      const int unit = at.unit + 16 * q;
      C sums[4] = {};
#pragma unroll
      for (int r = 0; r < Q::ROWS; ++r) {
        const int64_t row = group * net.batch + at.row + 8 * r;
        if (grads.hidden_gradient != nullptr && at.row + 8 * r < net.batch)
          store_units(net, unit, grads.hidden_gradient + row * net.hidden, gradient[Q::QUADS * r + q]);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[j] += gradient[Q::QUADS * r + q][j];
      }
      if (grads.bias1 == nullptr) continue;
      sum_over_rows(sums);
      if (threadIdx.x % 32 < 4) store_units(net, unit, grads.bias1 + (warp * net.groups + group) * net.hidden, sums);
    }
  });
}

// A sum over `entries` rows of `size` columns: out[i] = partial[0][i] + partial[1][i] + ...
template <class C>
struct RowSum {
  const C* partial = nullptr;
  int64_t size = 0, entries = 0;
  Results out;
  __host__ __device__ int64_t tiles() const { return (size + 31) / 32; }
};

// Computes two sums, the second of which may be empty. A block processes 32 columns; each of its warps adds every
// eighth row.
template <class C>
__global__ void __launch_bounds__(BLOCK) noise_regression_sums_kernel(RowSum<C> first, RowSum<C> second) {
  constexpr int WARPS = BLOCK / 32;
  UDML_SHARED(double, sums, BLOCK);
#pragma unroll 1
  for (int64_t tile = blockIdx.x; tile < first.tiles() + second.tiles(); tile += gridDim.x) {
    const auto [partial, size, entries, out] = tile < first.tiles() ? first : second;
    const int64_t i = (tile < first.tiles() ? tile : tile - first.tiles()) * 32 + threadIdx.x % 32;
    double sum = 0;
    if (i < size) {
#pragma unroll 8
      for (int64_t e = threadIdx.x / 32; e < entries; e += WARPS) sum += static_cast<double>(partial[e * size + i]);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < 32 && i < size) {
      double total = 0;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) total += sums[w * 32 + threadIdx.x];
      store_as(out.data, out.dtype, i, static_cast<C>(total));
    }
    __syncthreads();
  }
}

// Computes out[part][group][i][j], the sum of a[i][k] b[j][k] over the terms k of a part. A part has `length` of the
// `terms` terms. The elements of a have the arithmetic type, those of b the type T.
template <class Shape, class T, bool A_ALONG_ROWS>
__global__ void __launch_bounds__(Shape::THREADS, Shape::BLOCKS_PER_SM)
    noise_regression_product_kernel(Operand a, Operand b, int64_t groups, int parts, int length, int terms,
                                    Results out) {
  using C = Arithmetic<T>;
  const int down = (a.rows + Shape::ROWS - 1) / Shape::ROWS, across = (b.rows + Shape::COLUMNS - 1) / Shape::COLUMNS;
  for_each_product_tile(groups * parts, down, across, [&](int64_t item, int i, int j) {
    const int64_t part = item / groups, begin = part * length;
    const int end = static_cast<int>(min(begin + length, static_cast<int64_t>(terms)));
    C sums[Shape::SIXTEENS][Shape::EIGHTS][4];
    multiply_tile<Shape, C, T, A_ALONG_ROWS, true>(a, b, item - part * groups, i * Shape::ROWS, j * Shape::COLUMNS,
                                                   static_cast<int>(begin), end, sums);
#pragma unroll
    for (int s = 0; s < Shape::SUMS; s += 2) {
      const int row = i * Shape::ROWS + Shape::row_of(s);
      const int column = j * Shape::COLUMNS + Shape::template column_of<false>(s);
      if (row >= a.rows || column >= b.rows) continue;
      const auto& four = sums[s / 4 / Shape::EIGHTS][s / 4 % Shape::EIGHTS];
      const int64_t at = (item * a.rows + row) * b.rows + column;
      const bool second = column + 1 < b.rows, paired = b.rows % 2 == 0;
      if (std::is_same_v<C, T> || out.dtype == scalar_type_of<C>)
        store_two<C>(out.data, at, four[s % 4], four[s % 4 + 1], second, paired);
      else store_two<T>(out.data, at, four[s % 4], four[s % 4 + 1], second, paired);
    }
  });
}

template <class C>
static RowSum<C> row_sum(const Tensor& partial, const Tensor& out) {
  return {static_cast<const C*>(partial.const_data_ptr()), out.numel(), partial.size(0), results(out, 0)};
}

template <class C>
static void sum_entries(const RowSum<C>& first, const RowSum<C>& second, const OnDevice& device) {
  launch("noise_regression_sums_kernel", noise_regression_sums_kernel<C>, device,
         Work{first.tiles() + second.tiles(), 1, BLOCK}, first, second);
}

// Computes out (M, rows of a, rows of b). If there are few tiles and `may_split`, several parts share the terms.
template <class T, bool A_ALONG_ROWS>
static void multiply(const Operand& a, const Operand& b, int64_t groups, int terms, bool may_split, const Tensor& out,
                     const OnDevice& device) {
  using C = Arithmetic<T>;
  // The parts' sums are added in double, so parts of one chain are also exact enough.
  constexpr int64_t SHORT = 256, LONG = CHAIN * Step<C>::TERMS;
  const int64_t most_parts = may_split ? std::max(1, ceil_div(terms, 2 * SHORT)) : 1;
  const int64_t longest = std::clamp<int64_t>(terms, 1, may_split ? LONG : terms + 1);
  with_tile<C, LargeTile>(a.rows, b.rows, groups * most_parts, longest, [&](auto shape) {
    using Shape = decltype(shape);
    constexpr int64_t ENOUGH = 65536 / Shape::THREADS;
    const int64_t tiles = static_cast<int64_t>(ceil_div(a.rows, Shape::ROWS)) * ceil_div(b.rows, Shape::COLUMNS);
    const int64_t wanted = std::max<int64_t>(ceil_div(terms, longest), ENOUGH / std::max<int64_t>(1, tiles * groups));
    int length = std::max(terms, 1);
    if (may_split)
      length = ceil_div(std::max<int64_t>(SHORT, ceil_div(terms, wanted)), Step<C>::TERMS) * Step<C>::TERMS;
    const int parts = std::max(1, ceil_div(terms, length));
    const Tensor partial = parts == 1 ? out : allocate({parts, out.numel()}, scalar_type_of<C>, out);
    launch("noise_regression_product_kernel", noise_regression_product_kernel<Shape, T, A_ALONG_ROWS>, device,
           Work{tiles, groups * parts, Shape::THREADS}, a, b, groups, parts, length, terms, results(partial, 0));
    if (parts > 1) sum_entries(row_sum<C>(partial, out), {}, device);
  });
}

// Computes the gradients that depend on the hidden units. Empty tensors are not requested.
template <class T, class C>
static void backward_hidden(const Estimator<T>& net, const C* o_gradient, int64_t needs, const Tensor& std,
                            const Tensor& weight1, const Tensor& bias1, const Tensor& weight2, const OnDevice& device) {
  constexpr ScalarType TYPE = scalar_type_of<C>;
  const bool needs_hidden = needs & (STD | WEIGHT1);
  const Tensor hidden_gradient = allocate({net.groups, needs_hidden ? net.batch : 0, net.hidden}, TYPE, std);
  with_tile<T, MediumTile>(net.batch, net.hidden, net.groups, net.features, [&](auto shape) {
    using Shape = decltype(shape);
    const int rows = ceil_div(net.batch, Shape::ROWS), units = ceil_div(net.unit_blocks, Shape::COLUMNS / UNIT_BLOCK);
    const int64_t entries = static_cast<int64_t>(rows) * Shape::DOWN;
    const Tensor bias1_partial = allocate({entries, bias1.numel()}, TYPE, std),
                 weight2_partial = allocate({entries, weight2.numel()}, TYPE, std);
    launch("noise_regression_hidden_gradient_kernel", noise_regression_hidden_gradient_kernel<Shape, T, C>, device,
           Work{static_cast<int64_t>(rows) * units, net.groups, Shape::THREADS}, net, rows, units, o_gradient,
           HiddenGradients<C>{needs_hidden ? results_of<C>(hidden_gradient) : nullptr,
                              needs & BIAS1 ? results_of<C>(bias1_partial) : nullptr,
                              needs & WEIGHT2 ? results_of<C>(weight2_partial) : nullptr});
    sum_entries(needs & BIAS1 ? row_sum<C>(bias1_partial, bias1) : RowSum<C>{},
                needs & WEIGHT2 ? row_sum<C>(weight2_partial, weight2) : RowSum<C>{}, device);
  });
  const Strided hidden = strided(hidden_gradient);
  const Strided x = transposed(net.x.source), first = transposed(net.weight1.source);
  if (needs & STD)
    multiply<T, false>(operand<C, C>(hidden, net.batch, net.hidden),
                       operand<T, C>(first, net.features, net.hidden, true), net.groups, net.hidden, false, std,
                       device);
  if (needs & WEIGHT1)
    multiply<T, true>(operand<C, C>(transposed(hidden), net.hidden, net.batch, true),
                      operand<T, C>(x, net.features, net.batch, true), net.groups, net.batch, true, weight1, device);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> noise_regression_backward(
    OptionalTensor grad_noise, OptionalTensor grad_loss, Tensor std, Tensor weight1, Tensor bias1, Tensor weight2,
    Tensor bias2, OptionalTensor target, int64_t activation, double dropout_p, OptionalTensor seed, int64_t stream,
    OptionalTensor sample_ids, Tensor o, int64_t needs) {
  const auto shape = noise_shape(std, weight2);
  expect(shape_of(o) == shape && (!grad_noise || shape_of(*grad_noise) == shape) &&
             (!target || shape_of(*target) == shape) && (target || !(needs & TARGET)),
         "o, grad_noise and target: expected the shape of noise");
  const OnDevice device(std);
  const auto result = [&](const Tensor& like, int64_t bit) {
    return needs & bit ? allocate(shape_of(like), like.scalar_type(), std) : empty_gradient(like.scalar_type(), std);
  };
  const Tensor grad_std = result(std, STD), grad_weight1 = result(weight1, WEIGHT1), grad_bias1 = result(bias1, BIAS1);
  const Tensor grad_weight2 = result(weight2, WEIGHT2), grad_bias2 = result(bias2, BIAS2),
               grad_target = result(target ? *target : o, TARGET);
  with_stored_type(std.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Arithmetic<T>;
    const auto net = estimator<T>(std, weight1, bias1, weight2, bias2, activation, dropout_p, seed, stream, sample_ids);
    const Outputs sizes{net.groups, net.batch, net.outputs};
    const Tensor o_gradient = allocate(shape, scalar_type_of<C>, std);
    Strided loss;
    if (grad_loss && target)
      loss.data = static_cast<const char*>(grad_loss->const_data_ptr()), loss.dtype = grad_loss->scalar_type();
    expect(o.scalar_type() == scalar_type_of<C>, "o: expected the arithmetic dtype");
    launch("noise_regression_output_gradient_kernel", noise_regression_output_gradient_kernel<C>, device,
           thread_item_work(sizes.size()), strided(grad_noise), loss, values_of<C>(o), strided(target), sizes,
           results_of<C>(o_gradient), needs & TARGET ? results(grad_target, 0) : Results{});
    if (needs & BIAS2)
      launch("noise_regression_bias2_kernel", noise_regression_bias2_kernel<C>, device,
             Work{net.groups * net.outputs, 1, BLOCK}, results_of<C>(o_gradient), sizes, results(grad_bias2, 0));
    if (needs & (STD | WEIGHT1 | BIAS1 | WEIGHT2))
      backward_hidden<T, C>(net, results_of<C>(o_gradient), needs, grad_std, grad_weight1, grad_bias1, grad_weight2,
                            device);
  });
  return {grad_std, grad_weight1, grad_bias1, grad_weight2, grad_bias2, grad_target};
}

}  // namespace udml

UDML_REGISTER(noise_regression_backward)
