#include <cmath>

#include "ops.h"
#include "random.h"

namespace udml {
namespace {

// In the order of udml_kernels.KINDS.
enum Kind : int64_t { GAUSSIAN, UNIFORM, SPECKLE, SALT_PEPPER, DROPOUT, REPLACE, KIND_COUNT };

bool is_normal(int64_t kind) { return kind == GAUSSIAN || kind == SPECKLE || kind == REPLACE; }

template <class V, class C>
struct Level {
  C sigma, low, high;

  // The sample with noise, before the clamp; r is the element's normal or its uniform.
  template <int64_t KIND>
  UDML_FN V noisy(V x, V r) const {
    if constexpr (KIND == GAUSSIAN) return x + r * sigma;
    if constexpr (KIND == UNIFORM) return x + (r * C(2) - C(1)) * (sigma * C(1.7320508075688772));
    if constexpr (KIND == SPECKLE) return x * (r * sigma + C(1));
    if constexpr (KIND == REPLACE) return r * sigma;
    if constexpr (KIND == DROPOUT) return select(r < sigma, V{}, x);
    if constexpr (KIND == SALT_PEPPER)
      return select(r < sigma * C(0.5), V{} + low, select(r < sigma, V{} + high, x));
    return V{};
  }

  // From dL/dnoisy to dL/dx. Where noisy does not depend on x that is a 0, not a product with it: 0 * inf is NaN.
  template <int64_t KIND>
  UDML_FN V to_x(V by_noisy, V r) const {
    if constexpr (KIND == SPECKLE) return by_noisy * (r * sigma + C(1));
    if constexpr (KIND == REPLACE) return V{};
    if constexpr (KIND == DROPOUT || KIND == SALT_PEPPER) return select(r < sigma, V{}, by_noisy);
    return by_noisy;
  }

  // From dL/dnoisy to dL/dsigma, multiplied in the reference's order: x * r alone may overflow.
  template <int64_t KIND>
  UDML_FN V to_sigma(V by_noisy, V x, V r) const {
    if constexpr (KIND == GAUSSIAN || KIND == REPLACE) return by_noisy * r;
    if constexpr (KIND == UNIFORM) return by_noisy * ((r * C(2) - C(1)) * C(1.7320508075688772));
    if constexpr (KIND == SPECKLE) return by_noisy * x * r;
    return V{};
  }
};

// Clamp and normalisation of an op call; without them the limits are infinite and the factors 1 and 0.
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
      : rows(x.size(0)), row_size(product(shape_of(x), 1, static_cast<size_t>(x.dim()))), tiles(row_size), kind(kind) {
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

// Call f with the kind as a constant.
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
  const bool stream = streams<C>(y);
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
          with_flag(stream && can_stream(out + first), [&](auto streamed) {
            for_each_vector(count, [&](int64_t i, auto lanes) {
              const V value = load_lanes(in + first + i, lanes), random = load_lanes(r + first + i, lanes);
              const V noisy = level.template noisy<decltype(kind)::value>(value, random);
              put_lanes<streamed.value>(out + first + i, at_most(at_least(noisy, low), high) * factor + offset, lanes);
            });
          });
        });
      });
      y_rows.commit(row, begin, n, out);
    });
    y_rows.finish();
  });
}

// A tile's dL/dx, and its share of dL/dsigma as the result. Without r the derivative does not take the noise.
template <int64_t KIND, class C>
double differentiate(const Settings<C>& settings, int64_t row, int64_t begin, int64_t n, const C* g, const C* x,
                     const C* r, bool stream, C* out) {
  using V = lanes_of<C>;
  V total{};
  const auto level = settings.level_of(row);
  for_each_channel(begin, n, settings.locations, [&](int64_t first, int64_t count, int64_t channel) {
    const V factor = V{} + settings.factor[static_cast<size_t>(channel)];
    with_flag(stream && can_stream(out + first), [&](auto streamed) {
      for_each_vector(count, [&](int64_t i, auto lanes) {
        const V by_noisy = load_lanes(g + first + i, lanes) * factor;
        if (r == nullptr) return put_lanes<streamed.value>(out + first + i, by_noisy, lanes);
        const V value = load_lanes(x + first + i, lanes), random = load_lanes(r + first + i, lanes);
        V to_x = level.template to_x<KIND>(by_noisy, random), to_sigma = level.template to_sigma<KIND>(by_noisy, value, random);
        if (settings.clamped) {
          // torch.clamp passes the gradient on its limits, and for a NaN none.
          const V noisy = level.template noisy<KIND>(value, random);
          const auto passes = (noisy >= settings.low) & (noisy <= settings.high);
          to_x = select(passes, to_x, V{}), to_sigma = select(passes, to_sigma, V{});
        }
        put_lanes<streamed.value>(out + first + i, to_x, lanes);
        total += keep_lanes(to_sigma, lanes);
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
  const bool stream = needs_x && streams<C>(grad_x);
  const TiledRow& tiles = settings.tiles;
  std::vector<double> partial(static_cast<size_t>(settings.rows * tiles.count));
  parallel_items(settings.rows * tiles.count, tiles.cost(), [&](int64_t item) {
    const int64_t row = item / tiles.count, kind = settings.kind_of(row);
    // Noise that is added to x does not change its derivative: none is drawn.
    const bool drawn = needs_sigma || settings.clamped || (kind != GAUSSIAN && kind != UNIFORM);
    alignas(64) C grad_buffer[TILE], x_buffer[TILE], to_x_buffer[TILE], noise_buffer[NOISE_TILE];
    double sum = 0;
    tiles.for_each_tile(item % tiles.count, [&](int64_t begin, int64_t n) {
      const C* r = drawn ? random_run(noise, kind, row, begin, n, noise_buffer) : nullptr;
      const C* in = drawn ? x_rows.run(row, begin, n, x_buffer) : nullptr;
      const C* g = grad_rows.run(row, begin, n, grad_buffer);
      C* out = needs_x ? grad_x_rows.run(row, begin, to_x_buffer) : to_x_buffer;
      with_kind(kind, [&](auto kind) {
        sum += differentiate<decltype(kind)::value>(settings, row, begin, n, g, in, r, stream, out);
      });
      if (needs_x) grad_x_rows.commit(row, begin, n, out);
    });
    partial[static_cast<size_t>(item)] = sum;
    if (needs_x) grad_x_rows.finish();
  });

  if (!needs_sigma) return;
  std::vector<double> by_sigma(static_cast<size_t>(grad_sigma.numel()));
  for (int64_t row = 0; row < settings.rows; ++row)
    for (int64_t item = 0; item < tiles.count; ++item)
      by_sigma[static_cast<size_t>(row * settings.sigma_step)] += partial[static_cast<size_t>(row * tiles.count + item)];
  for (size_t i = 0; i < by_sigma.size(); ++i) results_of<C>(grad_sigma)[i] = static_cast<C>(by_sigma[i]);
}

}  // namespace

Tensor inject_noise(Tensor x, Tensor sigma, OptionalTensor kinds, int64_t kind, std::vector<double> clamp,
                    double scale, OptionalTensor mean, OptionalTensor std, ScalarType out_dtype, Tensor seed,
                    int64_t stream, OptionalTensor sample_ids) {
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
  const Tensor grad_x = needs_x ? allocate_like(x) : nothing(x.scalar_type());
  const Tensor grad_sigma = needs_sigma ? allocate_like(sigma) : nothing(sigma.scalar_type());
  with_compute_type(x.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const Settings<C> settings(x, sigma, kinds, kind, clamp, scale, mean, std);
    backward(settings, grad, x, noise, grad_x, grad_sigma, needs_x, needs_sigma);
  });
  return {grad_x, grad_sigma};
}

}  // namespace udml
