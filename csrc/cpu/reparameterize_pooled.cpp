// The mean over the locations of a sampled map. A mean of independent normals is a normal, so one random number for
// each channel suffices: z = mean(mu) + sqrt(sum(std^2)) / L * eps.
#include "channel_sums.h"

namespace udml {
namespace {

// The means of the channels and the noise of z; `finish` writes z.
template <class C>
class PooledChannels {
 public:
  PooledChannels(const Shape& shape, const Tensor& z, const Tensor& std, const Tensor& spread)
      : shape_(shape),
        z_(z, shape.channels),
        std_(results_of<C>(std)),
        spread_(results_of<C>(spread)),
        mu_(static_cast<size_t>(shape.rows * shape.channels)) {}

  void put(int64_t channel, const ChannelSums& sums) {
    const double locations = static_cast<double>(shape_.locations);
    mu_[static_cast<size_t>(channel)] = static_cast<C>(sums.mu / locations);
    std_[channel] = static_cast<C>(sums.std / locations);
    spread_[channel] = static_cast<C>(std::sqrt(sums.squares) / locations);
  }

  void finish(const Noise& noise, bool sample) {
    const TiledRow row_tiles(shape_.channels);
    parallel_items(shape_.rows * row_tiles.count, row_tiles.cost(), [&](int64_t index) {
      const int64_t row = index / row_tiles.count;
      alignas(64) C buffer[TILE], noise_buffer[NOISE_TILE];
      row_tiles.for_each_tile(index % row_tiles.count, [&](int64_t begin, int64_t n) {
        const C* eps = sample ? noise.normals(row, begin, n, noise_buffer) : nullptr;
        const C* mean = mu_.data() + row * shape_.channels + begin;
        const C* spread = spread_ + row * shape_.channels + begin;
        C* out = z_.run(row, begin, buffer);
        for_each_vector(n, [&](int64_t i, auto lanes) {
          lanes_of<C> value = load_lanes(mean + i, lanes);
          if (eps) value += load_lanes(spread + i, lanes) * load_lanes(eps + i, lanes);
          store_lanes(out + i, value, lanes);
        });
        z_.commit(row, begin, n, out);
      });
      z_.finish();
    });
  }

 private:
  const Shape& shape_;
  Writer<C> z_;
  C *std_, *spread_;
  std::vector<C> mu_;
};

template <class C>
struct Inputs {
  Shape shape;
  Reader<C> mu, logvar;
  const C* prior;
  int64_t prior_step;
  Clip<C> clip;
};

// Writes std of a run to `std`, and returns twice the run's KL divergence.
template <class C>
UDML_FN double moments_of_run(const C* mu, const C* logvar, int64_t n, const Clip<C>& clip, const Divergence<C>& kl_of,
                              C* std_run) {
  using V = lanes_of<C>;
  const V logvar_max = V{} + clip.logvar_max, std_max = V{} + clip.std_max;
  V terms{};
  for_each_vector(n, [&](int64_t i, auto lanes) {
    const V logvar_value = at_most(load_lanes(logvar + i, lanes), logvar_max);
    const V std = at_most(exponential(logvar_value * C(0.5)), std_max);
    store_lanes(std_run + i, std, lanes);
    terms += keep_lanes(kl_of.terms(load_lanes(mu + i, lanes), logvar_value, std), lanes);
  });
  return kl_of.sum(terms, mu, logvar, n);
}

// Maps whose locations are consecutive, or of any strides. Returns the KL divergences of the work items, times 2.
template <class C>
std::vector<double> sum_locations(const Inputs<C>& in, PooledChannels<C>& channels) {
  const Shape& shape = in.shape;
  const Items items(shape.channels, shape.locations);
  std::vector<double> divergences(static_cast<size_t>(shape.rows * items.count));
  std::vector<ChannelSums> partial(items.parts > 1 ? divergences.size() : 0);
  parallel_items(shape.rows * items.count, items.cost(), [&](int64_t index) {
    const int64_t row = index / items.count, item = index % items.count, end = items.end(item);
    const Divergence<C> kl_of(in.prior[row * in.prior_step], in.clip);
    alignas(64) C mu_buffer[STEP], logvar_buffer[STEP], std[STEP];
    ChannelSums carried;
    double divergence = 0;
    for (int64_t begin = items.begin(item); begin < end; begin += STEP) {
      const int64_t n = std::min(STEP, end - begin);
      const C* mu = in.mu.run(row, begin, n, mu_buffer);
      const C* logvar = in.logvar.run(row, begin, n, logvar_buffer);
      divergence += moments_of_run(mu, logvar, n, in.clip, kl_of, std);
      for_each_channel(begin, n, shape.locations, [&](int64_t i, int64_t count, int64_t channel) {
        ChannelSums sums = sums_of_run(mu + i, std + i, count);
        if (!is_accurate<C>(sums.squares)) {
          sums.squares = 0;
          for (int64_t j = i; j < i + count; ++j) sums.squares += square_in_double(logvar[j], in.clip);
        }
        carried += sums;
        if (items.parts > 1 || (channel + 1) * shape.locations > begin + i + count) return;
        channels.put(row * shape.channels + channel, carried);
        carried = {};
      });
    }
    divergences[static_cast<size_t>(index)] = divergence;
    if (items.parts > 1) partial[static_cast<size_t>(index)] = carried;
  });
  for (int64_t i = 0; items.parts > 1 && i < shape.rows * shape.channels; ++i) {
    ChannelSums sums;
    for (int64_t part = 0; part < items.parts; ++part) sums += partial[static_cast<size_t>(i * items.parts + part)];
    channels.put(i, sums);
  }
  return divergences;
}

// Maps with the channels last. Returns the KL divergences of the work items, times 2.
template <class C>
std::vector<double> sum_rows(const Inputs<C>& in, PooledChannels<C>& channels) {
  constexpr int64_t TOGETHER = BlockSums<C>::TOGETHER, CHAIN = BlockSums<C>::CHAIN, WIDTH = ChannelBlocks::WIDTH;
  const Shape& shape = in.shape;
  const ChannelBlocks blocks(shape);
  std::vector<double> divergences(static_cast<size_t>(shape.rows * blocks.count()));
  std::vector<ChannelSums> partial;
  if (blocks.parts > 1) partial.resize(static_cast<size_t>(shape.rows * shape.channels * blocks.parts));
  parallel_items(shape.rows * blocks.count(), blocks.cost(), [&](int64_t index) {
    const int64_t row = index / blocks.count(), item = index % blocks.count();
    const int64_t first = blocks.channel(item), width = blocks.width(item), end = blocks.end(item);
    const Divergence<C> kl_of(in.prior[row * in.prior_step], in.clip);
    alignas(64) C buffers[2][TOGETHER][WIDTH];
    BlockSums<C> sums;
    double divergence = 0;
    for (int64_t begin = blocks.begin(item); begin < end; begin += CHAIN) {
      const int64_t last = std::min(end, begin + CHAIN);
      for (int64_t l = begin; l < last;) {
        const int64_t count = last - l < TOGETHER ? 1 : TOGETHER;
        typename BlockSums<C>::Rows rows;
        for (int64_t j = 0; j < count; ++j) {
          rows.mu[j] = in.mu.run(row * shape.locations + l + j, first, width, buffers[0][j]);
          rows.logvar[j] = in.logvar.run(row * shape.locations + l + j, first, width, buffers[1][j]);
        }
        divergence += count == 1 ? sums.template add<1>(rows, width, in.clip, kl_of)
                                 : sums.template add<TOGETHER>(rows, width, in.clip, kl_of);
        l += count;
      }
      sums.end_chain(width, [&](int64_t i) {
        double squares = 0;
        for (int64_t l = begin; l < last; ++l)
          squares += square_in_double(in.logvar.at(row * shape.locations + l, first + i), in.clip);
        return squares;
      });
    }
    divergences[static_cast<size_t>(index)] = divergence;
    const int64_t part = row * blocks.parts + item % blocks.parts;
    if (blocks.parts > 1) {
      std::copy_n(sums.total(), width, partial.data() + part * shape.channels + first);
    } else {
      for (int64_t i = 0; i < width; ++i) channels.put(row * shape.channels + first + i, sums.total()[i]);
    }
  });
  for (int64_t i = 0; blocks.parts > 1 && i < shape.rows * shape.channels; ++i) {
    const int64_t row = i / shape.channels, channel = i % shape.channels;
    ChannelSums total;
    for (int64_t part = row * blocks.parts; part < (row + 1) * blocks.parts; ++part)
      total += partial[static_cast<size_t>(part * shape.channels + channel)];
    channels.put(i, total);
  }
  return divergences;
}

template <class C>
void forward(const Tensor& mu, const Tensor& logvar, const Tensor& prior_var, std::optional<double> std_max,
             bool sample, const Noise& noise, const Tensor& z, const Tensor& std, const Tensor& kl,
             const Tensor& spread) {
  const Shape shape(mu);
  const bool stored = are_channels_last(mu, logvar);
  const auto reader = [&](const Tensor& t) {
    return stored ? Reader<C>::in_storage_order(t, shape.channels) : Reader<C>(t);
  };
  const Inputs<C> in{shape,           reader(mu), reader(logvar), values_of<C>(prior_var), prior_var.numel() > 1,
                     Clip<C>(std_max)};
  PooledChannels<C> channels(shape, z, std, spread);
  const std::vector<double> divergences = stored ? sum_rows(in, channels) : sum_locations(in, channels);
  // The mean over zero locations is NaN.
  for (int64_t i = 0; shape.locations == 0 && i < shape.rows * shape.channels; ++i) channels.put(i, {});
  channels.finish(noise, sample);
  write_divergence<C>(kl, shape.rows, divergences);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> reparameterize_pooled(Tensor mu, Tensor logvar, Tensor prior_var,
                                                                 std::optional<double> std_max, bool sample,
                                                                 OptionalTensor seed, int64_t stream,
                                                                 OptionalTensor sample_ids) {
  expect_moments(mu, logvar, prior_var);
  expect(!sample || seed.has_value(), "seed: expected a tensor");
  const ScalarType dtype = compute_type(mu.scalar_type());
  const Noise noise(seed, stream, sample_ids, mu.size(0));
  const std::vector<int64_t> shape{mu.size(0), mu.size(1)};
  const Tensor z = allocate(shape, mu.scalar_type()), std = allocate(shape, dtype), kl = allocate({mu.size(0)}, dtype),
               spread = allocate(shape, dtype);
  with_compute_type(dtype, [&](auto type) {
    forward<decltype(type)>(mu, logvar, prior_var, std_max, sample, noise, z, std, kl, spread);
  });
  return {z, std, kl, spread};
}

}  // namespace udml

UDML_REGISTER(reparameterize_pooled)
