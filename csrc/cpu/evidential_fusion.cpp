#include "tensor.h"

namespace udml {
namespace {

// A (B, M, K) tensor of evidence and the mask of the views present.
template <class C>
struct Views {
  int64_t rows, views, classes;
  Reader<C> evidence, mask;

  Views(const Tensor& e, const OptionalTensor& present)
      : rows(e.size(0)), views(e.size(1)), classes(e.size(2)), evidence(e), mask(optional_reader<C>(present)) {
    expect(views >= 1 && views <= MAX_MODALITIES, "evidence: expected 1 to 16 views");
    expect(!present || (present->dim() == 2 && present->size(0) == rows && present->size(1) == views),
           "mask: expected (B, M)");
  }

  bool present(int64_t row, int64_t m) const { return !mask || mask.at(row, m) != C(0); }
};

// Returns 1 + x, or NaN if that is negative, like its logarithm.
template <class C>
UDML_FN lanes_of<C> factor_of(lanes_of<C> x) {
  const lanes_of<C> factor = x + C(1);
  return select(factor < C(0), lanes_of<C>{} + C(NAN), factor);
}

}  // namespace

// The fused evidence is K (prod_m (1 + x_m) - 1) with x_m = e_m / K. The recurrence p_m = p_{m-1} + x_m + p_{m-1} x_m,
// p_0 = 0, computes p_M = prod_m (1 + x_m) - 1. It has no cancellation, and for nonnegative evidence no partial product
// exceeds the last one. A sum of logarithms would lose digits.
Tensor evidential_fusion(Tensor evidence, OptionalTensor mask) {
  const Tensor out = allocate({evidence.size(0), evidence.size(2)}, evidence.scalar_type());
  with_compute_type(evidence.scalar_type(), [&](auto type) {
    using C = decltype(type);
    using V = lanes_of<C>;
    const Views<C> views(evidence, mask);
    const Writer<C> into(out, views.classes);
    const C classes = static_cast<C>(views.classes), inverse_classes = 1 / classes;
    parallel_items(views.rows, 4 * views.views * views.classes, [&](int64_t row) {
      alignas(64) C buffer[TILE], fused[TILE], products[TILE], out_buffer[TILE];
      for (int64_t begin = 0; begin < views.classes; begin += TILE) {
        const int64_t n = std::min(TILE, views.classes - begin);
        std::fill_n(fused, n, C(0));
        std::fill_n(products, n, C(1));
        for (int64_t m = 0; m < views.views; ++m) {
          if (!views.present(row, m)) continue;
          const C* e = views.evidence.run(row, m * views.classes + begin, n, buffer);
          for_each_vector(n, [&](int64_t i, auto lanes) {
            const V x = load_lanes(e + i, lanes) * inverse_classes, p = load_lanes(fused + i, lanes);
            store_lanes(fused + i, V(p * x + (p + x)), lanes);
            store_lanes(products + i, V(load_lanes(products + i, lanes) * factor_of<C>(x)), lanes);
          });
        }
        C* destination = into.run(row, begin, out_buffer);
        for_each_vector(n, [&](int64_t i, auto lanes) {
          // If a factor is infinite, p may be NaN (inf - inf). The product of the factors is still right.
          const V product = load_lanes(products + i, lanes);
          const V p = select(product < C(INFINITY), load_lanes(fused + i, lanes), product);
          store_lanes(destination + i, V(p * classes), lanes);
        });
        into.commit(row, begin, n, destination);
      }
      into.finish();
    });
  });
  return out;
}

constexpr int64_t CLASS_TILE = 128;

// The product of the other views' factors may overflow although its product with the gradient does not. This version
// uses double and starts with the gradient.
template <class C>
void recompute_in_double(const C* grad, const C (*factors)[CLASS_TILE], int64_t own, int64_t count, int64_t n, C* out) {
  for (int64_t i = 0; i < n; ++i) {
    double product = grad[i];
    for (int64_t other = 0; other < count; ++other)
      if (other != own) product *= factors[other][i];
    if (factors[own][i] > 0 && factors[own][i] < INFINITY) out[i] = static_cast<C>(product);
  }
}

// de/de_m is the product of the other views' factors. It is NaN where the own factor is 0 or infinite, because the
// logarithm has no derivative there.
Tensor evidential_fusion_backward(Tensor grad, Tensor evidence, OptionalTensor mask) {
  expect(shape_of(grad) == std::vector<int64_t>{evidence.size(0), evidence.size(2)}, "grad: expected (B, K)");
  const Tensor out = allocate_like(evidence);
  with_compute_type(evidence.scalar_type(), [&](auto type) {
    using C = decltype(type);
    using V = lanes_of<C>;
    const Views<C> views(evidence, mask);
    const Reader<C> grads(grad);
    const Writer<C> into(out, views.views * views.classes);
    const C inverse_classes = 1 / static_cast<C>(views.classes);
    parallel_items(views.rows, 6 * views.views * views.classes, [&](int64_t row) {
      alignas(64) C factors[MAX_MODALITIES][CLASS_TILE], buffer[TILE], grad_buffer[TILE], out_buffer[TILE];
      int64_t present[MAX_MODALITIES], count = 0;
      for (int64_t m = 0; m < views.views; ++m)
        if (views.present(row, m)) present[count++] = m;
      for (int64_t begin = 0; begin < views.classes; begin += CLASS_TILE) {
        const int64_t n = std::min(CLASS_TILE, views.classes - begin);
        for (int64_t at = 0; at < count; ++at) {
          const C* e = views.evidence.run(row, present[at] * views.classes + begin, n, buffer);
          for_each_vector(n, [&](int64_t i, auto lanes) {
            store_lanes(factors[at] + i, factor_of<C>(load_lanes(e + i, lanes) * inverse_classes), lanes);
          });
        }
        const C* g = grads.run(row, begin, n, grad_buffer);
        for (int64_t m = 0, at = 0; m < views.views; ++m) {
          const int64_t first = m * views.classes + begin;
          C* destination = into.run(row, first, out_buffer);
          if (at < count && present[at] == m) {
            V largest{};
            for_each_vector(n, [&](int64_t i, auto lanes) {
              V others = V{} + C(1);
              for (int64_t other = 0; other < count; ++other)
                if (other != at) others *= load_lanes(factors[other] + i, lanes);
              largest = select(others > largest, others, largest);
              const V own = load_lanes(factors[at] + i, lanes);
              const V slope = select((own > C(0)) & (own < C(INFINITY)), others, V{} + C(NAN));
              store_lanes(destination + i, V(load_lanes(g + i, lanes) * slope), lanes);
            });
            if (!(sum_of_lanes(largest) < C(INFINITY))) recompute_in_double(g, factors, at, count, n, destination);
            ++at;
          } else {
            std::fill_n(destination, n, C(0));
          }
          into.commit(row, first, n, destination);
        }
      }
      into.finish();
    });
  });
  return out;
}

}  // namespace udml

UDML_REGISTER(evidential_fusion)
UDML_REGISTER(evidential_fusion_backward)
