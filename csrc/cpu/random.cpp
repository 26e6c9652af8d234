#include "random.h"

#include "ops.h"

namespace udml {

template <bool NORMAL>
static Tensor generate(const std::vector<int64_t>& shape, Tensor seed, int64_t stream_word, std::optional<Tensor> sample_ids,
                       ScalarType dtype) {
  const Tensor out = allocate(shape, dtype);
  const int64_t rows = shape[0], row_size = product(shape, 1, shape.size());
  const int64_t tiles = (row_size + TILE - 1) / TILE;
  const Noise noise(seed, stream_word, sample_ids, rows);
  with_compute_type(dtype, [&](auto type) {
    using C = decltype(type);
    const Writer<C> writer(out, row_size);
    const bool stream = streams<C>(out);
    parallel_items(rows * tiles, std::min(row_size, TILE), [&](int64_t item) {
      const int64_t row = item / tiles, begin = item % tiles * TILE, n = std::min(TILE, row_size - begin);
      alignas(64) C buffer[NOISE_TILE], staged[TILE];
      const C* values = NORMAL ? noise.normals(row, begin, n, buffer) : noise.uniforms(row, begin, n, buffer);
      C* home = writer.run(row, begin, staged);
      with_flag(stream && can_stream(home), [&](auto streamed) {
        for_each_vector(n, [&](int64_t i, auto lanes) {
          put_lanes<streamed.value>(home + i, load_lanes(values + i, lanes), lanes);
        });
      });
      if (stream) fence();
      writer.commit(row, begin, n, home);
    });
  });
  return out;
}

Tensor normal(std::vector<int64_t> shape, Tensor seed, int64_t stream, std::optional<Tensor> sample_ids,
              ScalarType dtype) {
  return generate<true>(shape, seed, stream, sample_ids, dtype);
}

Tensor uniform(std::vector<int64_t> shape, Tensor seed, int64_t stream, std::optional<Tensor> sample_ids,
               ScalarType dtype) {
  return generate<false>(shape, seed, stream, sample_ids, dtype);
}

}  // namespace udml
