#include "random.h"

#include "op.h"

namespace udml {

// A mask of the bits of a uniform in [0, 1) that a dtype can hold. Truncating the other bits avoids rounding up to 1.
static int32_t kept_bits(ScalarType dtype) {
  if (dtype == ScalarType::BFloat16) return ~0xffff;
  return dtype == ScalarType::Half ? ~0x1fff : -1;
}

template <bool NORMAL>
static Tensor generate(const std::vector<int64_t>& shape, Tensor seed, int64_t stream_word,
                       std::optional<Tensor> sample_ids, ScalarType dtype) {
  const Tensor out = allocate(shape, dtype);
  const int64_t rows = shape[0];
  const TiledRow tiles(product(shape, 1, shape.size()));
  const Noise noise(seed, stream_word, sample_ids, rows);
  const int32_t kept = NORMAL ? -1 : kept_bits(dtype);
  with_compute_type(dtype, [&](auto type) {
    using C = decltype(type);
    const Writer<C> writer(out, tiles.size);
    const bool nontemporal = stores_nontemporal<C>(out);
    parallel_items(rows * tiles.count, tiles.cost(), [&](int64_t item) {
      const int64_t row = item / tiles.count;
      alignas(64) C buffer[NOISE_TILE], staged[TILE];
      tiles.for_each_tile(item % tiles.count, [&](int64_t begin, int64_t n) {
        const C* values = NORMAL ? noise.normals(row, begin, n, buffer) : noise.uniforms(row, begin, n, buffer);
        C* destination = writer.run(row, begin, staged);
        with_flag(nontemporal && can_store_nontemporal(destination), [&](auto is_nontemporal) {
          for_each_vector(n, [&](int64_t i, auto lanes) {
            lanes_of<C> value = load_lanes(values + i, lanes);
            if constexpr (sizeof(C) == sizeof(float)) value = from_bits(bits(value) & kept);
            put_lanes<is_nontemporal.value>(destination + i, value, lanes);
          });
        });
        writer.commit(row, begin, n, destination);
      });
      writer.finish();
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

UDML_REGISTER(normal)
UDML_REGISTER(uniform)
