#include "map_blocks.h"

namespace udml {
namespace {

// Computes the mean of std over the locations of each channel. If items have whole channels, `add` writes their means.
// Otherwise, `add` stores the sums of parts of channels and `finish` adds them.
template <class C>
class Pooling {
 public:
  Pooling(const Tensor& pooled, const Shape& shape, const Items& items)
      : out_(results_of<C>(pooled)), shape_(shape), items_(items) {
    if (items.parts > 1) partial_.resize(static_cast<size_t>(shape.rows * shape.channels * items.parts));
  }

  void add(int64_t row, int64_t begin, int64_t n, const C* std, double& carried) {
    C* channels = out_ + row * shape_.channels;
    if (shape_.locations == 1) {
      memcpy(channels + begin, std, static_cast<size_t>(n) * sizeof(C));
      return;
    }
    for_each_channel(begin, n, shape_.locations, [&](int64_t i, int64_t count, int64_t channel) {
      carried += sum_of_run(std + i, count);
      const int64_t end = begin + i + count - channel * shape_.locations;
      if (end < shape_.locations && end % items_.part_size != 0) return;
      if (items_.parts == 1) {
        channels[channel] = static_cast<C>(carried / static_cast<double>(shape_.locations));
      } else {
        const int64_t part = (end - 1) / items_.part_size;
        partial_[static_cast<size_t>((row * shape_.channels + channel) * items_.parts + part)] = carried;
      }
      carried = 0;
    });
  }

  void finish() {
    for (int64_t i = 0; items_.parts > 1 && i < shape_.rows * shape_.channels; ++i) {
      double sum = 0;
      for (int64_t part = 0; part < items_.parts; ++part) sum += partial_[static_cast<size_t>(i * items_.parts + part)];
      out_[i] = static_cast<C>(sum / static_cast<double>(shape_.locations));
    }
    // The mean over zero locations is NaN.
    for (int64_t i = 0; shape_.locations == 0 && i < shape_.rows * shape_.channels; ++i) out_[i] = NAN;
  }

 private:
  C* out_;
  const Shape& shape_;
  const Items& items_;
  std::vector<double> partial_;
};

template <class C>
struct Blocks {
  alignas(64) C mu[Items::SIZE], logvar[Items::SIZE], z[Items::SIZE];
};

template <class C>
void forward(const Tensor& mu, const Tensor& logvar, const Tensor& prior_var, std::optional<double> std_max,
             bool sample, const Noise& noise, const Tensor& z, const Tensor& pooled, const Tensor& kl) {
  using V = lanes_of<C>;
  const Shape shape(mu);
  const Items items(shape.channels, shape.locations, are_channels_last(mu, logvar));
  const MapReader<C> mu_map(mu, items), logvar_map(logvar, items);
  const MapWriter<C> z_map(z, items);
  const C* prior = values_of<C>(prior_var);
  const int64_t prior_step = prior_var.numel() > 1;
  const Clip<C> clip(std_max);
  Pooling<C> pooling(pooled, shape, items);
  std::vector<double> partial(static_cast<size_t>(shape.rows * items.count));

  parallel_items(shape.rows * items.count, items.cost(), [&](int64_t index) {
    const int64_t row = index / items.count, item = index % items.count;
    const Divergence<C> kl_of(prior[row * prior_step], clip);
    const V logvar_max = V{} + clip.logvar_max, std_max = V{} + clip.std_max;
    alignas(64) C mu_buffer[STEP], logvar_buffer[STEP], z_buffer[STEP], std_buffer[STEP], noise_buffer[NOISE_TILE];
    Blocks<C>& blocks = scratch<Blocks<C>>();
    mu_map.load(row, item, blocks.mu);
    logvar_map.load(row, item, blocks.logvar);
    double carried = 0, divergence = 0;
    items.for_each_step(item, [&](int64_t begin, int64_t n, int64_t at) {
      const C* eps = sample ? noise.normals(row, begin, n, noise_buffer) : nullptr;
      const C* m = mu_map.run(row, begin, n, at, blocks.mu, mu_buffer);
      const C* lv = logvar_map.run(row, begin, n, at, blocks.logvar, logvar_buffer);
      C* out = z_map.run(row, begin, at, blocks.z, z_buffer);
      V terms{};
      with_flag(sample, [&](auto sampled) {
        with_flag(z_map.nontemporal(out), [&](auto is_nontemporal) {
          for_each_vector(n, [&](int64_t i, auto lanes) {
            const V mu_value = load_lanes(m + i, lanes);
            const V logvar_value = at_most(load_lanes(lv + i, lanes), logvar_max);
            const V std = at_most(exponential(logvar_value * C(0.5)), std_max);
            store_lanes(std_buffer + i, std, lanes);
            const V z_value = sampled ? V(mu_value + std * load_lanes(eps + i, lanes)) : mu_value;
            put_lanes<is_nontemporal.value>(out + i, z_value, lanes);
            terms += keep_lanes(kl_of.terms(mu_value, logvar_value, std), lanes);
          });
        });
      });
      divergence += kl_of.sum(terms, m, lv, n);
      z_map.commit(row, begin, n, out);
      pooling.add(row, begin, n, std_buffer, carried);
    });
    z_map.finish(row, item, blocks.z);
    partial[static_cast<size_t>(index)] = divergence;
  });

  pooling.finish();
  write_divergence<C>(kl, shape.rows, partial);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> reparameterize(Tensor mu, Tensor logvar, Tensor prior_var,
                                                  std::optional<double> std_max, bool sample, OptionalTensor seed,
                                                  int64_t stream, OptionalTensor sample_ids) {
  expect_moments(mu, logvar, prior_var);
  expect(!sample || seed.has_value(), "seed: expected a tensor");
  const ScalarType dtype = compute_type(mu.scalar_type());
  const Noise noise(seed, stream, sample_ids, mu.size(0));
  const Tensor z = allocate_map(mu, logvar), std = allocate({mu.size(0), mu.size(1)}, dtype),
               kl = allocate({mu.size(0)}, dtype);
  with_compute_type(
      dtype, [&](auto type) { forward<decltype(type)>(mu, logvar, prior_var, std_max, sample, noise, z, std, kl); });
  return {z, std, kl};
}

}  // namespace udml

UDML_REGISTER(reparameterize)
