#include <cmath>

#include "op.h"
#include "random.h"

namespace udml {
namespace {

// Draws the modalities that a sample keeps. The decision uses float32 for every dtype of the features.
void draw_mask(const Noise& noise, int64_t row, int64_t modalities, const float* p, bool keep_one, bool* keep) {
  float buffer[NOISE_TILE];
  const float* u = noise.uniforms(row, 0, modalities, buffer);
  int64_t closest = 0;
  bool any = false;
  for (int64_t m = 0; m < modalities; ++m) {
    keep[m] = u[m] - p[m] >= 0;
    any = any || keep[m];
    // Finds the largest margin or the first NaN, like torch.argmax.
    const float margin = u[m] - p[m], best = u[closest] - p[closest];
    if (margin > best || (margin != margin && best == best)) closest = m;
  }
  if (keep_one && !any) keep[closest] = true;
}

// Copies of up to this size are faster with normal stores, which leave them in the last cache.
constexpr int64_t NONTEMPORAL_COPY_BYTES = 64 << 20;

// Copies the rows for which `keeps` holds, and sets the others to 0.
template <class C, class Keeps>
void keep_rows(const Reader<C>& in, const Writer<C>& out, int64_t row_size, int64_t rows, const Keeps& keeps,
               bool nontemporal) {
  parallel_items(rows, row_size, [&](int64_t row) {
    alignas(64) C buffer[TILE];
    const bool kept = keeps(row);
    for (int64_t begin = 0; begin < row_size; begin += TILE) {
      const int64_t n = std::min(TILE, row_size - begin);
      C* destination = out.run(row, begin, buffer);
      const C* values = kept ? in.run(row, begin, n, buffer) : nullptr;
      with_flag(nontemporal && can_store_nontemporal(destination), [&](auto is_nontemporal) {
        for_each_vector(n, [&](int64_t i, auto lanes) {
          put_lanes<is_nontemporal.value>(destination + i, kept ? load_lanes(values + i, lanes) : lanes_of<C>{}, lanes);
        });
      });
      out.commit(row, begin, n, destination);
    }
    out.finish();
  });
}

}  // namespace

std::tuple<Tensors, Tensor> modality_dropout(Tensors features, Tensor p, bool keep_one, Tensor seed, int64_t stream,
                                             OptionalTensor sample_ids) {
  const int64_t modalities = static_cast<int64_t>(features.size()), rows = features[0].size(0);
  expect(modalities <= MAX_MODALITIES && p.numel() == modalities && p.scalar_type() == ScalarType::Float,
         "p: expected one float32 a modality, at most 16");
  const Reader<float> probabilities(p, 0);
  float limit[MAX_MODALITIES];
  for (int64_t m = 0; m < modalities; ++m) limit[m] = probabilities.at(0, m);
  const Noise noise(seed, stream, sample_ids, rows);
  const Tensor mask = allocate({rows, modalities}, ScalarType::Bool);
  bool* keep = results_of<bool>(mask);
  parallel_items(rows, 64,
                 [&](int64_t row) { draw_mask(noise, row, modalities, limit, keep_one, keep + row * modalities); });

  Tensors kept;
  for (int64_t m = 0; m < modalities; ++m) {
    const Tensor& feature = features[static_cast<size_t>(m)];
    expect(feature.size(0) == rows, "features: expected one batch");
    kept.push_back(allocate_like(feature));
    const int64_t row_size = row_size_of(feature);
    const auto keeps = [&](int64_t row) { return keep[row * modalities + m]; };
    const int64_t bytes = row_size * static_cast<int64_t>(feature.element_size());
    if (feature.is_contiguous() && bytes % sizeof(float) == 0) {
      const int64_t words = bytes / static_cast<int64_t>(sizeof(float));
      keep_rows(Reader<float>::of_bits(feature, words), Writer<float>::of_bits(kept.back(), words), words, rows, keeps,
                bytes * rows > NONTEMPORAL_COPY_BYTES);
      continue;
    }
    with_compute_type(feature.scalar_type(), [&](auto type) {
      using C = decltype(type);
      keep_rows(Reader<C>(feature), Writer<C>(kept.back(), row_size), row_size, rows, keeps,
                stores_nontemporal<C>(kept.back()));
    });
  }
  return {kept, mask};
}

// The sum adds rows in blocks of fixed size, so it does not depend on the number of threads.
Tensor modality_dependency(Tensor logits) {
  constexpr int64_t ROWS = 64;
  expect(logits.dim() == 3, "logits: expected (M, B, K)");
  const int64_t modalities = logits.size(0), rows = logits.size(1), classes = logits.size(2);
  const int64_t blocks = (rows + ROWS - 1) / ROWS;
  const Tensor out = allocate({modalities}, compute_type(logits.scalar_type()));
  with_compute_type(logits.scalar_type(), [&](auto type) {
    using C = decltype(type);
    using V = lanes_of<C>;
    const Reader<C> in(logits, 1);
    std::vector<double> partial(static_cast<size_t>(modalities * blocks));
    parallel_items(modalities * blocks, ROWS * classes, [&](int64_t item) {
      alignas(64) C buffer[TILE];
      const int64_t m = item / blocks, first = item % blocks * ROWS * classes;
      const int64_t last = std::min(first + ROWS * classes, rows * classes);
      double sum = 0;
      for (int64_t begin = first; begin < last; begin += TILE) {
        const int64_t n = std::min(TILE, last - begin);
        const C* values = in.run(m, begin, n, buffer);
        V total{};
        for_each_vector(n, [&](int64_t i, auto lanes) {
          const V x = load_lanes(values + i, lanes);
          total += select(x < C(0), -x, x);
        });
        sum += sum_of_lanes(total);
      }
      partial[static_cast<size_t>(item)] = sum;
    });
    for (int64_t m = 0; m < modalities; ++m) {
      double sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += partial[static_cast<size_t>(m * blocks + b)];
      results_of<C>(out)[m] = static_cast<C>(sum / static_cast<double>(std::max<int64_t>(rows, 1)));
    }
  });
  return out;
}

Tensor modality_dependency_backward(Tensor grad, Tensor logits) {
  expect(logits.dim() == 3 && grad.numel() == logits.size(0), "grad: expected (M,)");
  const int64_t modalities = logits.size(0), row_size = logits.size(1) * logits.size(2);
  const int64_t tiles = (row_size + TILE - 1) / TILE;
  const Tensor out = allocate_like(logits);
  with_compute_type(logits.scalar_type(), [&](auto type) {
    using C = decltype(type);
    using V = lanes_of<C>;
    const Reader<C> in(logits, 1), g(grad, 1);
    const Writer<C> into(out, row_size);
    parallel_items(modalities * tiles, TILE, [&](int64_t item) {
      alignas(64) C in_buffer[TILE], out_buffer[TILE];
      const int64_t m = item / tiles, begin = item % tiles * TILE, n = std::min(TILE, row_size - begin);
      const C slope = g.at(m, 0) / static_cast<C>(std::max<int64_t>(logits.size(1), 1));
      const C* values = in.run(m, begin, n, in_buffer);
      C* destination = into.run(m, begin, out_buffer);
      for_each_vector(n, [&](int64_t i, auto lanes) {
        const V x = load_lanes(values + i, lanes), s = V{} + slope;
        // Like torch.sign, this is 0 for 0 and for NaN.
        store_lanes(destination + i, select(x > C(0), s, select(x < C(0), -s, V{})), lanes);
      });
      into.commit(m, begin, n, destination);
      into.finish();
    });
  });
  return out;
}

}  // namespace udml

UDML_REGISTER(modality_dropout)
UDML_REGISTER(modality_dependency)
UDML_REGISTER(modality_dependency_backward)
