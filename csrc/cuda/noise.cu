// inject_noise reads x once and writes the result once. The backward pass regenerates the noise.
#include "inject_noise.h"

namespace udml {

// The arguments of the kernel.
template <class C>
struct InjectNoise {
  Rows x;
  Settings<C> settings;
  Noise noise;
  Tiles tiles;
  Results y;
};

template <class In, class Out, int KIND, Normalize NORMALIZE>
__device__ __forceinline__ void add_noise(const InjectNoise<typename Access<In>::C>& p) {
  using A = Access<In>;
  using C = typename A::C;
  const Settings<C>& settings = p.settings;
  for_each_tile<A>(p.tiles, [&](const Place& place) {
    if (place.count == 0) return;
    per_warp<A>(place, [&](const Place& at) {
      C value[A::WIDTH], random[A::WIDTH];
      A::read(p.x, at, value);
      const int kind = KIND == MIXED ? settings.kind_of(at.row) : KIND;
      draw<KIND, A>(p.noise, kind, at, random);
      const Level<C> level = settings.level_of(at.row);
      with_kind<KIND>(kind, [&](auto known) {
#pragma unroll
        for (int i = 0; i < A::WIDTH; ++i) value[i] = level.template noisy<decltype(known)::value>(value[i], random[i]);
      });
#pragma unroll
      for (int i = 0; i < A::WIDTH; ++i) value[i] = minimum(maximum(value[i], settings.low), settings.high);
      if constexpr (NORMALIZE != UNNORMALIZED)
        for_each_normalization<NORMALIZE, A>(
            settings, at, [&](int i, C factor, C offset) { value[i] = multiply_add(value[i], factor, offset); });
      AccessBeside<In, Out>::write(p.y, at, value);
    });
  });
}

template <class In, class Out, int KIND, Normalize NORMALIZE>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<In>(KIND == GAUSSIAN && NORMALIZE != ANY_CHANNELS ? 4 : 3))
    inject_noise_kernel(InjectNoise<typename Access<In>::C> p) {
  add_noise<In, Out, KIND, NORMALIZE>(p);
}

// For several calls.
template <class In, class Out, int KIND, Normalize NORMALIZE>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<In>(KIND == GAUSSIAN && NORMALIZE != ANY_CHANNELS ? 4 : 3))
    inject_noise_kernel_together(const __grid_constant__ Together<InjectNoise<typename Access<In>::C>> all) {
  add_noise<In, Out, KIND, NORMALIZE>(all.mine());
}

template <class In, class Out>
static void forward(const Input& x, const Settings<typename Access<In>::C>& settings, const Noise& noise,
                    const Tensor& y, const OnDevice& device) {
  using A = Access<In>;
  const Tiles tiles(y.size(0), row_size_of(y), A::WIDTH);
  with_normalize<A>(settings, [&](auto normalize) {
    constexpr Normalize NORMALIZE = decltype(normalize)::value;
    constexpr auto KIND = A::DENSE ? GAUSSIAN : MIXED;
    const bool gaussian = A::DENSE && settings.kinds == nullptr && settings.kind == GAUSSIAN;
    const auto kernel =
        gaussian ? inject_noise_kernel<In, Out, KIND, NORMALIZE> : inject_noise_kernel<In, Out, MIXED, NORMALIZE>;
    // Only the kernel of noise for features serves several calls.
    void (*together)(Together<InjectNoise<typename A::C>>) = nullptr;
    if constexpr (A::DENSE && NORMALIZE == UNNORMALIZED && std::is_same_v<In, Out>)
      together = gaussian ? inject_noise_kernel_together<In, Out, GAUSSIAN, UNNORMALIZED> : nullptr;
    launch("inject_noise_kernel", kernel, together, device, tiles.work(),
           InjectNoise<typename A::C>{x.rows(), settings, noise, tiles, results(y, tiles.size)});
  });
}

Tensor inject_noise(Tensor x, Tensor sigma, OptionalTensor kinds, int64_t kind, std::vector<double> clamp, double scale,
                    OptionalTensor mean, OptionalTensor std, ScalarType out_dtype, Tensor seed, int64_t stream,
                    OptionalTensor sample_ids) {
  const OnDevice device(x);
  expect_float(out_dtype);
  const Tensor y = allocate(shape_of(x), out_dtype, x);
  const Noise noise = noise_of(seed, stream, sample_ids, x.size(0));
  const Input rows(x);
  const auto run = [&](auto in, auto out) {
    using In = decltype(in);
    if (y.numel() == 0) return;
    const auto call = call_of<typename Access<In>::C>(x, sigma, kinds, kind, clamp, scale, mean, std, device);
    forward<In, decltype(out)>(rows, call.settings, noise, y, device);
  };
  const bool dense = rows.is_dense();
  if (dense && x.scalar_type() == ScalarType::Byte && out_dtype == ScalarType::Float) {
    run(uint8_t{}, float{});
  } else {
    with_storage(x.scalar_type(), dense && x.scalar_type() == out_dtype, [&](auto storage) { run(storage, storage); });
  }
  return y;
}

}  // namespace udml

UDML_REGISTER(inject_noise)
