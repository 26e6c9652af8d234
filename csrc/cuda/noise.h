// The random numbers of a sample: Philox words, and the normals and uniforms that they produce.
#pragma once

#include "lanes.h"
#include "inputs.h"

namespace udml {

// The kernel argument that describes the random numbers. The kernel reads the seed from device memory.
struct Noise {
  const uint64_t* seed = nullptr;
  const int64_t* ids = nullptr;
  int64_t ids_stride = 1;
  uint32_t stream = 0;
};

inline Noise noise_of(const std::optional<Tensor>& seed, int64_t stream, const std::optional<Tensor>& sample_ids,
                      int64_t rows) {
  expect_random(seed, sample_ids, rows);
  Noise noise;
  noise.stream = static_cast<uint32_t>(stream);
  if (seed) noise.seed = static_cast<const uint64_t*>(seed->const_data_ptr());
  if (sample_ids) {
    noise.ids = static_cast<const int64_t*>(sample_ids->const_data_ptr());
    noise.ids_stride = sample_ids->stride(0);
  }
  return noise;
}

// The key of a sample and the fixed part of its counter.
struct Sample {
  uint32_t key0, key1, stream, id_low, id_high;

  __device__ __forceinline__ void words(uint32_t block, uint32_t (&w)[4]) const {
    w[0] = block, w[1] = stream, w[2] = id_low, w[3] = id_high;
    philox4x32_10(w[0], w[1], w[2], w[3], key0, key1);
  }

  // Computes the words of a thread's element i and of the three elements behind it (see Place).
  template <int V>
  __device__ __forceinline__ void words_of(int64_t start, unsigned stride, int i, uint32_t (&w)[4]) const {
    const uint32_t first = static_cast<uint32_t>(static_cast<uint64_t>(start) >> 2);
    words(first + static_cast<uint32_t>(i / V) * (stride / 4) + static_cast<uint32_t>(i % V / 4), w);
  }

  // Computes the sample's normals of a thread's N elements. start and V are multiples of 4.
  template <int V, class C, int N>
  __device__ __forceinline__ void normals(int64_t start, unsigned stride, C (&n)[N]) const {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      uint32_t w[4];
      words_of<V>(start, stride, i, w);
      normal_pair(w[0], w[1], n[i], n[i + 1]);
      normal_pair(w[2], w[3], n[i + 2], n[i + 3]);
    }
  }

  // The same for uniforms in [0, 1).
  template <int V, class C, int N>
  __device__ __forceinline__ void uniforms(int64_t start, unsigned stride, C (&u)[N]) const {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      uint32_t w[4];
      words_of<V>(start, stride, i, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) u[i + j] = static_cast<C>(uniform_from_word<float>(w[j]));
    }
  }
};

__device__ __forceinline__ Sample sample_of(const Noise& noise, int64_t row) {
  const uint64_t seed = *noise.seed;
  const uint64_t id = static_cast<uint64_t>(opaque(noise.ids) == nullptr ? row : noise.ids[row * noise.ids_stride]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), noise.stream, static_cast<uint32_t>(id),
          static_cast<uint32_t>(id >> 32)};
}

}  // namespace udml
