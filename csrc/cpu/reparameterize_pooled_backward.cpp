// The gradients of reparameterize with pooling. With R = sqrt(sum(std^2)) of a channel, and eps its random number,
// dz/dstd = eps / L * std / R, in which std / R is at most 1.
#include "map_blocks.h"
#include "reparameterize_pooled.h"

namespace udml {
namespace {

template <class C>
struct Incoming {
  Reader<C> z, std, kl;
};

// The gradients of a block of channels. An element's gradients are
//     dL/dmu = mu + (term of kl)    dL/dstd = std + std_element * slope + (term of kl)
template <class C>
struct Slopes {
  static constexpr int64_t WIDTH = ChannelBlocks::WIDTH;
  alignas(64) C mu[WIDTH], std[WIDTH], slope[WIDTH];
  // Channels whose slope or squares leave the range of C: dL/dstd = std + std_element / root * factor, in double.
  bool any_extreme = false, extreme[WIDTH];
  double factor[WIDTH], root[WIDTH];
};

template <class C>
struct Inputs {
  Incoming<C> grad;
  Shape shape;
  bool stored;
  Reader<C> mu, logvar;
  Reader<C> spread;
  const C* prior;
  int64_t prior_step;
  Clip<C> clip;
  bool sample;
  const Noise& noise;

  C logvar_at(int64_t row, int64_t channel, int64_t location) const {
    return stored ? logvar.at(row * shape.locations + location, channel)
                  : logvar.at(row, channel * shape.locations + location);
  }
};

// Whether products of the number stay in the range of C.
template <class C>
bool is_moderate(C x) {
  return std::is_same_v<C, double> || x == C(0) || (std::abs(x) > C(1e-18) && std::abs(x) < C(1e18));
}

template <class C>
void find_slopes(const Inputs<C>& in, int64_t row, int64_t first, int64_t count, Slopes<C>& slopes) {
  const double inverse = 1 / static_cast<double>(in.shape.locations);
  alignas(64) C noise_buffer[NOISE_TILE];
  const C* eps = in.grad.z && in.sample ? in.noise.normals(row, first, count, noise_buffer) : nullptr;
  slopes.any_extreme = false;
  for (int64_t i = 0; i < count; ++i) {
    const double grad_z = in.grad.z ? in.grad.z.at(row, first + i) * inverse : 0;
    const C spread = in.spread.at(row, first + i);
    slopes.mu[i] = static_cast<C>(grad_z);
    slopes.std[i] = in.grad.std ? static_cast<C>(in.grad.std.at(row, first + i) * inverse) : C(0);
    const double factor = eps ? grad_z * eps[i] : 0;
    slopes.slope[i] = factor == 0 || spread == C(0) ? C(0) : static_cast<C>(factor * inverse / spread);
    slopes.extreme[i] = factor != 0 && !(is_moderate(slopes.slope[i]) && is_moderate(spread));
    if (!slopes.extreme[i]) continue;
    double squares = 0;
    for (int64_t l = 0; l < in.shape.locations; ++l)
      squares += square_in_double(in.logvar_at(row, first + i, l), in.clip);
    slopes.any_extreme = true, slopes.factor[i] = factor, slopes.root[i] = std::sqrt(squares);
  }
}

// What the runs of a sample have in common. HAS_KL: the op received a gradient of kl. Without one its term is not
// computed, because 0 * inf is not 0.
template <class C, bool HAS_KL>
struct Sample {
  using V = lanes_of<C>;
  const Clip<C>& clip;
  // Whether a gradient reaches std by another way than kl.
  bool reaches_std;
  C kl_gradient, prior;
  Divergence<C> divergence;
  DivergenceGradient<C> kl_of;

  Sample(const Inputs<C>& in, int64_t row)
      : clip(in.clip),
        reaches_std(in.grad.std || (in.grad.z && in.sample)),
        kl_gradient(HAS_KL ? in.grad.kl.at(row, 0) : C(0)),
        prior(in.prior[row * in.prior_step]),
        divergence(prior, in.clip),
        kl_of(kl_gradient, prior) {}

  // Writes the gradients of a run, given those of its channels element by element. Returns the run's sum of
  // `Divergence::prior_terms`.
  template <class Nontemporal>
  UDML_FN long double run(int64_t n, const C* mu, const C* logvar, const C* mu_slopes, const C* std_slopes,
                          const C* slopes, C* grad_mu, C* grad_logvar, Nontemporal) const {
    const V logvar_max = V{} + clip.logvar_max, std_max = V{} + clip.std_max;
    V total{};
    for_each_vector(n, [&](int64_t i, auto lanes) {
      const V logvar_value = load_lanes(logvar + i, lanes);
      const V std = at_most(exponential(at_most(logvar_value, logvar_max) * C(0.5)), std_max);
      const V bounded = bounded_std<C>(logvar_value, std), slope = load_lanes(slopes + i, lanes);
      const V std_gradient = load_lanes(std_slopes + i, lanes) + slope * select(slope == C(0), bounded, std);
      V mu_gradient = load_lanes(mu_slopes + i, lanes);
      V logvar_gradient = reaches_std ? V(std_gradient * (select(std_gradient == C(0), bounded, std) * C(0.5))) : V{};
      if (HAS_KL) {
        const V mu_value = load_lanes(mu + i, lanes);
        mu_gradient += kl_of.of_mu(mu_value);
        logvar_gradient += kl_of.of_logvar(std, bounded);
        total += keep_lanes(divergence.prior_terms(mu_value, std), lanes);
      }
      // Like torch.clamp, this stops the gradient above the limit and for a NaN.
      const V clipped = clip.limited ? select(logvar_value <= logvar_max, logvar_gradient, V{}) : logvar_gradient;
      put_lanes<Nontemporal::value>(grad_mu + i, mu_gradient, lanes);
      put_lanes<Nontemporal::value>(grad_logvar + i, clipped, lanes);
    });
    return HAS_KL ? divergence.prior_sum(total, mu, logvar, n) : 0;
  }

  // The gradient of one logvar of an extreme channel.
  C of_extreme(C logvar, const Slopes<C>& slopes, int64_t channel) const {
    if (clip.limited && !(logvar <= clip.logvar_max)) return C(0);
    const double std = std_in_double(logvar, clip), root = slopes.root[channel];
    const double ratio = root == 0 ? 0 : std / root;
    double gradient = slopes.std[channel] + slopes.factor[channel] * ratio;
    if (gradient != 0) gradient *= 0.5 * std;
    if (HAS_KL && kl_gradient != C(0)) gradient += 0.5 * kl_gradient * (std / prior * std - 1);
    return static_cast<C>(gradient);
  }
};

template <class C>
struct Buffers {
  alignas(64) C mu[STEP], logvar[STEP], grad_mu[STEP], grad_logvar[STEP];
  // The last store of a channel may write past its end; the next channel overwrites it.
  alignas(64) C mu_slopes[STEP + W], std_slopes[STEP + W], slopes[STEP + W];
};

template <class C>
void repeat(C value, int64_t count, C* out) {
  for (int64_t j = 0; j < count; j += W) store(out + j, lanes_of<C>{} + value);
}

template <class C, bool HAS_KL>
void backward(const Inputs<C>& in, const Tensor& grad_mu, const Tensor& grad_logvar, const Tensor& grad_prior,
              bool needs_prior) {
  const Shape& shape = in.shape;
  const Items items(shape.channels, shape.locations);
  const ChannelBlocks blocks(shape);
  const int64_t row_size = in.stored ? shape.channels : shape.row_size(),
                count = in.stored ? blocks.count() : items.count;
  const Writer<C> mu_writer(grad_mu, row_size), logvar_writer(grad_logvar, row_size);
  const bool nontemporal = stores_nontemporal<C>(grad_mu);
  std::vector<long double> partial(HAS_KL && needs_prior ? static_cast<size_t>(shape.rows * count) : 0);

  parallel_items(shape.rows * count, in.stored ? blocks.cost() : items.cost(), [&](int64_t index) {
    const int64_t row = index / count, item = index % count;
    const Sample<C, HAS_KL> sample(in, row);
    Buffers<C>& buffers = scratch<Buffers<C>>();
    Slopes<C>& slopes = scratch<Slopes<C>>();
    long double prior_terms = 0;
    // Writes the gradients of the elements [begin, begin + n) of a row of the storage. extremes(run) mends the run's
    // gradients of extreme channels.
    const auto write = [&](int64_t storage_row, int64_t begin, int64_t n, const C* mu_slopes, const C* std_slopes,
                           const C* slope, const auto& extremes) {
      const C* mu = HAS_KL ? in.mu.run(storage_row, begin, n, buffers.mu) : nullptr;
      const C* logvar = in.logvar.run(storage_row, begin, n, buffers.logvar);
      C* mu_run = mu_writer.run(storage_row, begin, buffers.grad_mu);
      C* logvar_run = logvar_writer.run(storage_row, begin, buffers.grad_logvar);
      with_flag(nontemporal && can_store_nontemporal(mu_run) && can_store_nontemporal(logvar_run), [&](auto flag) {
        prior_terms += sample.run(n, mu, logvar, mu_slopes, std_slopes, slope, mu_run, logvar_run, flag);
      });
      if (slopes.any_extreme) extremes(logvar, logvar_run);
      mu_writer.commit(storage_row, begin, n, mu_run);
      logvar_writer.commit(storage_row, begin, n, logvar_run);
    };
    if (in.stored) {
      const int64_t first = blocks.channel(item), width = blocks.width(item);
      find_slopes(in, row, first, width, slopes);
      for (int64_t l = blocks.begin(item); l < blocks.end(item); ++l)
        write(row * shape.locations + l, first, width, slopes.mu, slopes.std, slopes.slope,
              [&](const C* logvar, C* run) {
          for (int64_t i = 0; i < width; ++i)
            if (slopes.extreme[i]) run[i] = sample.of_extreme(logvar[i], slopes, i);
        });
    } else {
      const int64_t end = items.end(item);
      for (int64_t group = items.begin(item); group < end;) {
        const int64_t first = group / shape.locations;
        const int64_t channels = std::min(Slopes<C>::WIDTH, (end - 1) / shape.locations + 1 - first);
        const int64_t group_end = std::min(end, (first + channels) * shape.locations);
        find_slopes(in, row, first, channels, slopes);
        for (int64_t begin = group; begin < group_end; begin += STEP) {
          const int64_t n = std::min(STEP, group_end - begin);
          for_each_channel(begin, n, shape.locations, [&](int64_t i, int64_t length, int64_t channel) {
            repeat(slopes.mu[channel - first], length, buffers.mu_slopes + i);
            repeat(slopes.std[channel - first], length, buffers.std_slopes + i);
            repeat(slopes.slope[channel - first], length, buffers.slopes + i);
          });
          write(row, begin, n, buffers.mu_slopes, buffers.std_slopes, buffers.slopes, [&](const C* logvar, C* run) {
            for_each_channel(begin, n, shape.locations, [&](int64_t i, int64_t length, int64_t channel) {
              for (int64_t j = i; slopes.extreme[channel - first] && j < i + length; ++j)
                run[j] = sample.of_extreme(logvar[j], slopes, channel - first);
            });
          });
        }
        group = group_end;
      }
    }
    mu_writer.finish();
    if (!partial.empty()) partial[static_cast<size_t>(index)] = prior_terms;
  });

  if (needs_prior) write_prior_gradient(grad_prior, in.grad.kl, in.prior, shape, partial);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> reparameterize_pooled_backward(OptionalTensor grad_z, OptionalTensor grad_std,
                                                                  OptionalTensor grad_kl, Tensor spread, Tensor mu,
                                                                  Tensor logvar, Tensor prior_var,
                                                                  std::optional<double> std_max, bool sample,
                                                                  OptionalTensor seed, int64_t stream,
                                                                  OptionalTensor sample_ids, bool needs_prior) {
  expect_moments(mu, logvar, prior_var);
  const std::vector<int64_t> channels{mu.size(0), mu.size(1)};
  expect_sample_gradients(mu, channels, grad_z, grad_std, grad_kl);
  expect(shape_of(spread) == channels, "spread: expected (B, C)");
  const Noise noise(seed, stream, sample_ids, mu.size(0));
  const bool stored = are_channels_last(mu, logvar);
  const Tensor grad_mu = allocate_map(mu, logvar), grad_logvar = allocate_map(mu, logvar);
  const Tensor grad_prior = needs_prior ? allocate_like(prior_var) : empty_gradient(prior_var.scalar_type());
  with_compute_type(mu.scalar_type(), [&](auto type) {
    using C = decltype(type);
    const auto reader = [&](const Tensor& t) {
      return stored ? Reader<C>::in_storage_order(t, mu.size(1)) : Reader<C>(t);
    };
    const Inputs<C> in{{optional_reader<C>(grad_z), optional_reader<C>(grad_std), optional_reader<C>(grad_kl)},
                       Shape(mu),
                       stored,
                       reader(mu),
                       reader(logvar),
                       Reader<C>(spread),
                       values_of<C>(prior_var),
                       prior_var.numel() > 1,
                       Clip<C>(std_max),
                       sample,
                       noise};
    const auto run = grad_kl ? backward<C, true> : backward<C, false>;
    run(in, grad_mu, grad_logvar, grad_prior, needs_prior);
  });
  return {grad_mu, grad_logvar, grad_prior};
}

}  // namespace udml

UDML_REGISTER(reparameterize_pooled_backward)
