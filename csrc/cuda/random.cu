#include "noise.h"
#include "../op.h"
#include "tiles.h"

namespace udml {

// Truncates a uniform in [0, 1) to the bits that a dtype can hold. Rounding to nearest could produce 1.
__device__ __forceinline__ void truncate_uniform(ScalarType dtype, float& u) {
  const int32_t kept = dtype == ScalarType::BFloat16 ? ~0xffff : dtype == ScalarType::Half ? ~0x1fff : -1;
  u = from_bits(bits(u) & kept);
}
__device__ __forceinline__ void truncate_uniform(ScalarType, double&) {}

template <class T, bool NORMAL>
__global__ void __launch_bounds__(BLOCK) random_kernel(Results out, Noise noise, Tiles tiles) {
  using A = Access<T>;
  for_each_tile<A>(tiles, [&](const Place& place) {
    if (place.count == 0) return;
    per_warp<A>(place, [&](const Place& at) {
      typename A::C values[A::WIDTH];
      const Sample sample = sample_of(noise, at.row);
      if constexpr (NORMAL) {
        sample.normals<A::VECTOR>(at.start, at.stride, values);
      } else {
        sample.uniforms<A::VECTOR>(at.start, at.stride, values);
#pragma unroll
        for (auto& u : values) truncate_uniform(out.dtype, u);
      }
      A::write(out, at, values);
    });
  });
}

template <bool NORMAL>
static Tensor generate(const std::vector<int64_t>& shape, const Tensor& seed, int64_t stream_word,
                       const OptionalTensor& sample_ids, ScalarType dtype) {
  expect_float(dtype);
  const Tensor out = allocate(shape, dtype, seed);
  const OnDevice device(seed);
  const int64_t rows = shape[0], size = product(shape, 1, shape.size());
  const Noise noise = noise_of(seed, stream_word, sample_ids, rows);
  if (out.numel() == 0) return out;
  with_storage(dtype, Input(out).is_dense(), [&](auto storage) {
    using T = decltype(storage);
    const Tiles tiles(rows, size, Access<T>::WIDTH);
    launch(NORMAL ? "random_kernel<normal>" : "random_kernel<uniform>", random_kernel<T, NORMAL>, device, tiles.work(),
           results(out, size), noise, tiles);
  });
  return out;
}

Tensor normal(std::vector<int64_t> shape, Tensor seed, int64_t stream, OptionalTensor sample_ids, ScalarType dtype) {
  return generate<true>(shape, seed, stream, sample_ids, dtype);
}

Tensor uniform(std::vector<int64_t> shape, Tensor seed, int64_t stream, OptionalTensor sample_ids, ScalarType dtype) {
  return generate<false>(shape, seed, stream, sample_ids, dtype);
}

}  // namespace udml

UDML_REGISTER(normal)
UDML_REGISTER(uniform)
