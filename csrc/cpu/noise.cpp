#include <cmath>

#include "op.h"
#include "random.h"

namespace udml {
namespace {

// The order matches udml_kernels.KINDS.
enum Kind : int64_t { GAUSSIAN, UNIFORM, SPECKLE, SALT_PEPPER, DROPOUT, REPLACE, KIND_COUNT };

bool is_normal(int64_t kind) { return kind == GAUSSIAN || kind == SPECKLE || kind == REPLACE; }

template <class V, class C>
struct Level {
  C sigma, low, high;

  // Adds noise to x, before the clamp. r is the normal or uniform number of the element.
  template <int64_t KIND>
  UDML_FN V noisy(V x, V r) const {
    if constexpr (KIND == GAUSSIAN) return x + r * sigma;
    if constexpr (KIND == UNIFORM) return x + (r * C(2) - C(1)) * (sigma * C(1.7320508075688772));
    if constexpr (KIND == SPECKLE) return x * (r * sigma + C(1));
    if constexpr (KIND == REPLACE) return r * sigma;
    if constexpr (KIND == DROPOUT) return select(r < sigma, V{}, x);
    if constexpr (KIND == SALT_PEPPER) return select(r < sigma * C(0.5), V{} + low, select(r < sigma, V{} + high, x));
    return V{};
  }

  // Computes dL/dx from dL/dnoisy. If noisy does not depend on x, the result is 0 and not a product, because 0 * inf is
  // NaN.
  template <int64_t KIND>
  UDML_FN V x_gradient(V noisy_gradient, V r) const {
    if constexpr (KIND == SPECKLE) return noisy_gradient * (r * sigma + C(1));
    if constexpr (KIND == REPLACE) return V{};
    if constexpr (KIND == DROPOUT || KIND == SALT_PEPPER) return select(r < sigma, V{}, noisy_gradient);
    return noisy_gradient;
  }

  // Computes dL/dsigma from dL/dnoisy. It multiplies in the order of the reference, because x * r alone may overflow.
  template <int64_t KIND>
  UDML_FN V sigma_gradient(V noisy_gradient, V x, V r) const {
    if constexpr (KIND == GAUSSIAN || KIND == REPLACE) return noisy_gradient * r;
    if constexpr (KIND == UNIFORM) return noisy_gradient * ((r * C(2) - C(1)) * C(1.7320508075688772));
    if constexpr (KIND == SPECKLE) return noisy_gradient * x * r;
    return V{};
  }
};

// The clamp and normalization of an op call. Without a clamp the limits are infinite; without normalization factor and
// offset are 1 and 0.
template <class C>
struct Settings {
  int64_t rows, row_size, channels, locations;
  TiledRow tiles;
  const C* sigma;
  int64_t sigma_step, kind;
  const int64_t* kinds = nullptr;
  int64_t kinds_step = 1;
  bool clamped;
  C low, high, salt_low, salt_high;
  std::vector<C> factor, offset;

  Settings(const Tensor& x, const Tensor& sigma_values, const OptionalTensor& kind_values, int64_t kind,
           const std::vector<double>& clamp, double scale, const OptionalTensor& mean, const OptionalTensor& std)
      : rows(x.size(0)), row_size(row_size_of(x)), tiles(row_size), kind(kind) {
    channels = mean ? x.size(1) : 1;
    locations = row_size / std::max<int64_t>(channels, 1);
    expect(sigma_values.numel() == 1 || sigma_values.numel() == rows, "sigma: expected 1 value or one a sample");
    expect(sigma_values.scalar_type() == scalar_type_of<C>, "sigma: expected the arithmetic dtype");
    sigma = values_of<C>(sigma_values);
    sigma_step = sigma_values.numel() > 1;
    if (kind_values) {
      expect(kind_values->scalar_type() == ScalarType::Long && kind_values->numel() == rows,
             "kinds: expected one int64 a sample");
      kinds = static_cast<const int64_t*>(kind_values->const_data_ptr());
      kinds_step = kind_values->stride(0);
    }
    clamped = clamp.size() == 2;
    low = clamped ? static_cast<C>(clamp[0]) : -INFINITY;
    high = clamped ? static_cast<C>(clamp[1]) : INFINITY;
    salt_low = clamped ? low : NAN;
    salt_high = clamped ? high : NAN;
    for (int64_t c = 0; c < channels; ++c) {
      const double m = mean ? values_of<C>(*mean)[c] : 0.0, s = std ? values_of<C>(*std)[c] : 1.0;
      factor.push_back(static_cast<C>(1 / (scale * s)));
      offset.push_back(static_cast<C>(-m / s));
    }
  }

  int64_t kind_of(int64_t row) const { return kinds == nullptr ? kind : kinds[row * kinds_step]; }
  Level<lanes_of<C>, C> level_of(int64_t row) const { return {sigma[row * sigma_step], salt_low, salt_high}; }
};

// Calls f with the kind as a compile-time constant.
template <class Function>
void with_kind(int64_t kind, const Function& f) {
  switch (kind) {
    case GAUSSIAN: return f(std::integral_constant<int64_t, GAUSSIAN>{});
    case UNIFORM: return f(std::integral_constant<int64_t, UNIFORM>{});
    case SPECKLE: return f(std::integral_constant<int64_t, SPECKLE>{});
    case SALT_PEPPER: return f(std::integral_constant<int64_t, SALT_PEPPER>{});
    case DROPOUT: return f(std::integral_constant<int64_t, DROPOUT>{});
    case REPLACE: return f(std::integral_constant<int64_t, REPLACE>{});
    default: expect(false, "kind: expected a code in [0, 6)");
  }
}

template <class C>
const C* random_run(const Noise& noise, int64_t kind, int64_t row, int64_t begin, int64_t n, C* buffer) {
  return is_normal(kind) ? noise.normals(row, begin, n, buffer) : noise.uniforms(row, begin, n, buffer);
}

template <class C>
void forward(const Settings<C>& settings, const Tensor& x, const Noise& noise, const Tensor& y) {
  using V = lanes_of<C>;
  const Reader<C> x_rows(x);
  const Writer<C> y_rows(y, settings.row_size);
  const bool nontemporal = stores_nontemporal<C>(y);
  const V low = V{} + settings.low, high = V{} + settings.high;
  parallel_items(settings.rows * settings.tiles.count, settings.tiles.cost(), [&](int64_t item) {
    const int64_t row = item / settings.tiles.count, kind = settings.kind_of(row);
    const auto level = settings.level_of(row);
    alignas(64) C x_buffer[TILE], y_buffer[TILE], noise_buffer[NOISE_TILE];
    settings.tiles.for_each_tile(item % settings.tiles.count, [&](int64_t begin, int64_t n) {
      const C* r = random_run(noise, kind, row, begin, n, noise_buffer);
      const C* in = x_rows.run(row, begin, n, x_buffer);
      C* out = y_rows.run(row, begin, y_buffer);
      with_kind(kind, [&](auto kind) {
        for_each_channel(begin, n, settings.locations, [&](int64_t first, int64_t count, int64_t channel) {
          const V factor = V{} + settings.factor[static_cast<size_t>(channel)];
          const V offset = V{} + settings.offset[static_cast<size_t>(channel)];
          with_flag(nontemporal && can_store_nontemporal(out + first), [&](auto is_nontemporal) {
            for_each_vector(count, [&](int64_t i, auto lanes) {
              const V value = load_lanes(in + first + i, lanes), random = load_lanes(r + first + i, lanes);
              const V noisy = level.template noisy<decltype(kind)::value>(value, random);
              put_lanes<is_nontemporal.value>(out + first + i, at_most(at_least(noisy, low), high) * factor + offset,
                                              lanes);
            });
          });
        });
      });
      y_rows.commit(row, begin, n, out);
    });
    y_rows.finish();
  });
}

// Writes dL/dx of a tile and returns its part of dL/dsigma. If r is null, the derivative does not depend on the noise.
template <int64_t KIND, class C>
double backward_tile(const Settings<C>& settings, int64_t row, int64_t begin, int64_t n, const C* g, const C* x,
                     const C* r, bool nontemporal, C* out) {
  using V = lanes_of<C>;
  V total{};
  const auto level = settings.level_of(row);
  for_each_channel(begin, n, settings.locations, [&](int64_t first, int64_t count, int64_t channel) {
    const V factor = V{} + settings.factor[static_cast<size_t>(channel)];
    with_flag(nontemporal && can_store_nontemporal(out + first), [&](auto is_nontemporal) {
      for_each_vector(count, [&](int64_t i, auto lanes) {
        const V noisy_gradient = load_lanes(g + first + i, lanes) * factor;
        if (r == nullptr) return put_lanes<is_nontemporal.value>(out + first + i, noisy_gradient, lanes);
        const V value = load_lanes(x + first + i, lanes), random = load_lanes(r + first + i, lanes);
        V x_gradient = level.template x_gradient<KIND>(noisy_gradient, random),
          sigma_gradient = level.template sigma_gradient<KIND>(noisy_gradient, value, random);
        if (settings.clamped) {
          // Like torch.clamp, this passes the gradient at the limits and stops it for a NaN.
          const V noisy = level.template noisy<KIND>(value, random);
          const auto passes = (noisy >= settings.low) & (noisy <= settings.high);
          x_gradient = select(passes, x_gradient, V{}), sigma_gradient = select(passes, sigma_gradient, V{});
        }
        put_lanes<is_nontemporal.value>(out + first + i, x_gradient, lanes);
        total += keep_lanes(sigma_gradient, lanes);
      });
    });
  });
  return sum_of_lanes(total);
}

template <class C>
void backward(const Settings<C>& settings, const Tensor& grad, const Tensor& x, const Noise& noise,
              const Tensor& grad_x, const Tensor& grad_sigma, bool needs_x, bool needs_sigma) {
  const Reader<C> grad_rows(grad), x_rows(x);
  const Writer<C> grad_x_rows(grad_x, settings.row_size);
  const bool nontemporal = needs_x && stores_nontemporal<C>(grad_x);
  const TiledRow& tiles = settings.tiles;
  std::vector<double> partial(static_cast<size_t>(settings.rows * tiles.count));
  parallel_items(settings.rows * tiles.count, tiles.cost(), [&](int64_t item) {
    const int64_t row = item / tiles.count, kind = settings.kind_of(row);
    // The derivative with respect to x does not depend on additive noise, so no noise is drawn for it.
    const bool needs_noise = needs_sigma || settings.clamped || (kind != GAUSSIAN && kind != UNIFORM);
    alignas(64) C grad_buffer[TILE], x_buffer[TILE], grad_x_buffer[TILE], noise_buffer[NOISE_TILE];
    double sum = 0;
    tiles.for_each_tile(item % tiles.count, [&](int64_t begin, int64_t n) {
      const C* r = needs_noise ? random_run(noise, kind, row, begin, n, noise_buffer) : nullptr;
      const C* in = needs_noise ? x_rows.run(row, begin, n, x_buffer) : nullptr;
      const C* g = grad_rows.run(row, begin, n, grad_buffer);
      C* out = needs_x ? grad_x_rows.run(row, begin, grad_x_buffer) : grad_x_buffer;
      with_kind(kind, [&](auto kind) {
        sum += backward_tile<decltype(kind)::value>(settings, row, begin, n, g, in, r, nontemporal, out);
      });
      if (needs_x) grad_x_rows.commit(row, begin, n, out);
    });
    partial[static_cast<size_t>(item)] = sum;
    if (needs_x) grad_x_rows.finish();
  });

  if (!needs_sigma) return;
  std::vector<double> sigma_sums(static_cast<size_t>(grad_sigma.numel()));
  for (int64_t row = 0; row < settings.rows; ++row)
    for (int64_t item = 0; item < tiles.count; ++item)
      sigma_sums[static_cast<size_t>(row * settings.sigma_step)] +=
          partial[static_cast<size_t>(row * tiles.count + item)];
  for (size_t i = 0; i < sigma_sums.size(); ++i) results_of<C>(grad_sigma)[i] = static_cast<C>(sigma_sums[i]);
}

}  // namespace

Tensor inject_noise(Tensor x, Tensor sigma, OptionalTensor kinds, int64_t kind, std::vector<double> clamp, double scale,
                    OptionalTensor mean, OptionalTensor std, ScalarType out_dtype, Tensor seed, int64_t stream,
                    OptionalTensor sample_ids) {
  const Noise noise(seed, stream, sample_ids, x.size(0));
  const Tensor y = allocate(shape_of(x), out_dtype);
  with_compute_type(x.scalar_type(), [&](auto type) {
    using C = decltype(type);
    forward(Settings<C>(x, sigma, kinds, kind, clamp, scale, mean, std), x, noise, y);
  });
  return y;
}

std::tuple<Tensor, Tensor> inject_noise_backward(Tensor grad, Tensor x, Tensor sigma, OptionalTensor kinds,
                                                 int64_t kind, std::vector<double> clamp, double scale,
                                                 OptionalTensor mean, OptionalTensor std, ScalarType, Tensor seed,
                                                 int64_t stream, OptionalTensor sample_ids, bool needs_x,
                                                 bool needs_sigma) {
  expect_same_shape(grad, x, "grad and x");
  const Noise noise(seed, stream, sample_ids, x.size(0));
  const Tensor grad_x = needs_x ? allocate_like(x) : empty_gradient(x.scalar_type());
  const Tensor grad_sigma = needs_sigma ? allocate_like(sigma) : empty_gradient(sigma.scalar_type());
  with_compute_type(x.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const Settings<C> settings(x, sigma, kinds, kind, clamp, scale, mean, std);
    backward(settings, grad, x, noise, grad_x, grad_sigma, needs_x, needs_sigma);
  });
  return {grad_x, grad_sigma};
}

}  // namespace udml

UDML_REGISTER(inject_noise)
UDML_REGISTER(inject_noise_backward)
