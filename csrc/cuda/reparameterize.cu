// reparameterize reads mu and logvar once and writes z once. The same pass averages std and sums the KL divergence.
#include "reparameterize_columns.h"

namespace udml {

// The arguments of the kernel.
template <class C>
struct Sampling {
  Moments<C> moments;
  Channels channels;
  Noise noise;
  Tiles tiles;
  Results z, pooled;
  C* partial;
};

template <class T, Pool POOL, bool CLIPPED, bool SAMPLED>
__device__ __forceinline__ void sample(const Sampling<typename Access<T>::C>& p) {
  using A = Access<T>;
  using C = typename A::C;
  const Moments<C>& moments = p.moments;
  const Channels& channels = p.channels;
  const Noise& noise = p.noise;
  const Tiles& tiles = p.tiles;
  constexpr bool PARTED = POOL == PARTS || POOL == PARTS_FOURS;
  constexpr bool WHOLES = POOL == WHOLE || POOL == WHOLE_FOURS;
  constexpr int SUMS = PARTED ? 4 : 2, GROUP = POOL == WHOLE_FOURS || POOL == PARTS_FOURS ? 4 : 1;
  constexpr int SHARE = A::WIDTH / GROUP;
  UDML_SHARED(C, staged, WHOLES ? BLOCK * SHARE : 1);
  for_each_tile<A, PARTED>(tiles, [&](const Place& place) {
    // The sums of the scaled std^2 + mu^2, of logvar and, for PARTS, of std in the tile's two channels.
    C sums[SUMS] = {};
    if (place.count > 0)
      per_warp<A>(place, [&](const Place& at) {
        C mu_value[A::WIDTH], std[A::WIDTH];
        A::read(moments.mu, at, mu_value);
        A::read(moments.logvar, at, std);
        const C scale_down = SquareScale<C>(moments.prior[at.row * moments.prior_step]).scale_down();
#pragma unroll
        for (int i = 0; i < A::WIDTH; ++i) {
          C logvar = std[i];
          std[i] = moments.template std_of<T, CLIPPED>(logvar);
          if (!A::exists(at, i)) continue;
          const C scaled_std = std[i] * scale_down, scaled_mu = mu_value[i] * scale_down;
          sums[0] = multiply_add(scaled_std, scaled_std, multiply_add(scaled_mu, scaled_mu, sums[0]));
          sums[1] += logvar;
        }
        if constexpr (SAMPLED) {
          C normals[A::WIDTH];
          sample_of(noise, at.row).normals<A::VECTOR>(at.start, at.stride, normals);
#pragma unroll
          for (int i = 0; i < A::WIDTH; ++i) mu_value[i] = multiply_add(std[i], normals[i], mu_value[i]);
        }
        A::write(p.z, at, mu_value);
        if constexpr (WHOLES) stage<A, GROUP>(std, at, staged);
        if constexpr (POOL == NONE) AccessBeside<T, float>::write(p.pooled, at, std);
        if constexpr (PARTED) {
          // `boundary` is the first element of the tile's second channel, relative to this thread's first element.
          using Index = typename A::Index;
          const Index locations = static_cast<Index>(channels.locations);
          const Index begin = static_cast<Index>(static_cast<uint64_t>(at.tile) * tiles.step);
          const Index left = (channels.locations_divisor.quotient(begin) + 1) * locations - begin;
          const int end = static_cast<int>(min(left, static_cast<Index>(tiles.step)));
          const int boundary = end - static_cast<int>(static_cast<Index>(at.start) - begin);
          add_parts<A, GROUP>(std, at, boundary, sums[2], sums[3]);
        }
      });
    if constexpr (WHOLES) pool_whole<SHARE, GROUP>(staged, place, tiles, channels, reinterpret_cast<C*>(p.pooled.data));
    sum_over_lanes(sums, tiles.threads_per_row);
    if (!place.exists || !writes_partial(tiles)) return;
    C* entry = p.partial + partial_index(tiles, place) * SUMS;
    for (C sum : sums) *entry++ = sum;
  });
}

template <class T, Pool POOL, bool CLIPPED, bool SAMPLED>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(3))
    reparameterize_kernel(Sampling<typename Access<T>::C> p) {
  sample<T, POOL, CLIPPED, SAMPLED>(p);
}

// For several calls.
template <class T, Pool POOL, bool CLIPPED, bool SAMPLED>
__global__ void __launch_bounds__(BLOCK, min_blocks_per_sm<T>(3))
    reparameterize_kernel_together(const __grid_constant__ Together<Sampling<typename Access<T>::C>> all) {
  sample<T, POOL, CLIPPED, SAMPLED>(all.mine());
}

// The arguments of the next kernel. Each entry of `partial` has `sums` sums. 2^log2_lanes lanes of a warp share the
// entries of a row.
template <class C>
struct Divergence {
  const C* partial;
  int sums;
  int64_t rows, entries;
  unsigned log2_lanes;
  double size;
  const C* prior;
  int prior_step;
  C* kl;
};

template <class C>
__device__ __forceinline__ void add_divergence(const Divergence<C>& p) {
  const unsigned lanes = 1u << p.log2_lanes, lane = threadIdx.x % lanes;
  for_each_warp_item(((p.rows << p.log2_lanes) + 31) / 32, [&](int64_t item) {
    const int64_t row = (item * 32 + threadIdx.x % 32) >> p.log2_lanes;
    double terms[2] = {};
    if (row < p.rows)
      for (int64_t i = lane; i < p.entries; i += lanes) {
        const C* entry = p.partial + (row * p.entries + i) * p.sums;
        terms[0] += static_cast<double>(entry[0]);
        terms[1] += static_cast<double>(entry[1]);
      }
    sum_over_lanes(terms, lanes);
    if (row >= p.rows || lane != 0) return;
    p.kl[row] = divergence_of<C>(terms, p.size, p.prior[row * p.prior_step]);
  });
}

template <class C>
__global__ void __launch_bounds__(BLOCK) divergence_kernel(Divergence<C> p) {
  add_divergence(p);
}

// For several calls.
template <class C>
__global__ void __launch_bounds__(BLOCK)
    divergence_kernel_together(const __grid_constant__ Together<Divergence<C>> all) {
  add_divergence(all.mine());
}

// Computes the KL divergences of samples of `size` elements from `partial`, (rows, entries, sums).
template <class C>
static void finish_divergence(const Tensor& partial, int sums, int64_t size, const Moments<C>& moments,
                              const Tensor& kl, const OnDevice& device) {
  const int64_t rows = partial.size(0), entries = partial.size(1);
  unsigned log2_lanes = 0;
  while (log2_lanes < 5 && int64_t{1} << log2_lanes < entries) ++log2_lanes;
  void (*together)(Together<Divergence<C>>) = nullptr;
  if constexpr (sizeof(C) == 4) together = divergence_kernel_together<C>;
  launch("divergence_kernel", divergence_kernel<C>, together, device, thread_item_work(rows << log2_lanes),
         Divergence<C>{results_of<C>(partial), sums, rows, entries, log2_lanes, static_cast<double>(size),
                       moments.prior, moments.prior_step, results_of<C>(kl)});
}

template <class T, Pool POOL>
static void forward(const Moments<typename Access<T>::C>& moments, const Channels& channels, const Noise& noise,
                    const Tensor& z, const Tensor& pooled, const Tensor& kl, const OnDevice& device) {
  using A = Access<T>;
  using C = typename A::C;
  const int64_t rows = z.size(0), size = row_size_of(z);
  constexpr bool PARTED = POOL == PARTS || POOL == PARTS_FOURS;
  constexpr int SUMS = PARTED ? 4 : 2;
  const Tiles tiles(rows, size, A::WIDTH, static_cast<int>(channels.step), PARTED);
  const Tensor partial = allocate({rows, int64_t{tiles.partials_per_row}, SUMS}, scalar_type_of<C>, z);
  // Only the kernel that a training step launches has a version without the limits, which are infinite without std_max.
  const auto training =
      moments.clipped ? reparameterize_kernel<T, POOL, true, true> : reparameterize_kernel<T, POOL, !A::DENSE, true>;
  const auto kernel = noise.seed != nullptr ? training : reparameterize_kernel<T, POOL, true, false>;
  // Only the kernel of features, which have no locations, serves several calls.
  void (*together)(Together<Sampling<C>>) = nullptr;
  if constexpr (A::DENSE && POOL == NONE)
    together = noise.seed != nullptr ? reparameterize_kernel_together<T, NONE, true, true> : nullptr;
  launch("reparameterize_kernel", kernel, together, device, tiles.work(),
         Sampling<C>{moments, channels, noise, tiles, results(z, size), results(pooled, channels.count),
                     results_of<C>(partial)});
  finish_divergence<C>(partial, SUMS, size, moments, kl, device);
  if (PARTED) pool_parts<C>(partial, tiles, channels, pooled, device);
}

template <class T, class C>
static void forward_columns(const Tensor& mu, const Tensor& logvar, const Moments<C>& moments, const Noise& noise,
                            const Tensor& z, const Tensor& pooled, const Tensor& kl, const OnDevice& device) {
  const Runs plan(mu);
  const int64_t rows = mu.size(0), parts = plan.parts;
  const Tensor divergence = allocate({rows, int64_t{plan.across} * (BLOCK / 32), 2}, scalar_type_of<C>, mu);
  const Tensor means = parts == 1 ? pooled : allocate({rows, mu.size(1), parts}, scalar_type_of<C>, mu);
  const auto training = moments.clipped ? reparameterize_columns_kernel<T, C, true, true>
                                        : reparameterize_columns_kernel<T, C, sizeof(T) == 8, true>;
  const auto kernel = noise.seed != nullptr ? training : reparameterize_columns_kernel<T, C, true, false>;
  launch("reparameterize_columns_kernel", kernel, device, plan.work(), map_of<T>(mu), map_of<T>(logvar), moments, plan,
         noise, result_map<T>(z), results_of<C>(means), results_of<C>(divergence));
  finish_divergence<C>(divergence, 2, row_size_of(mu), moments, kl, device);
  if (parts > 1) sum_partials<C>(means, rows * mu.size(1), parts, 1.0, results_of<C>(pooled), device);
}

std::tuple<Tensor, Tensor, Tensor> reparameterize(Tensor mu, Tensor logvar, Tensor prior_var,
                                                  std::optional<double> std_max, bool sample, OptionalTensor seed,
                                                  int64_t stream, OptionalTensor sample_ids) {
  expect_moments(mu, logvar, prior_var);
  expect(!sample || seed.has_value(), "seed: expected a tensor");
  const OnDevice device(mu);
  const ScalarType dtype = compute_type(mu.scalar_type());
  const Noise noise = noise_of(sample ? seed : std::nullopt, stream, sample_ids, mu.size(0));
  const bool columns = are_channels_last(mu, logvar);
  Tensor z = allocate_map(mu, columns);
  Tensor std = allocate({mu.size(0), mu.size(1)}, dtype, mu), kl = allocate({mu.size(0)}, dtype, mu);
  if (mu.numel() == 0) {
    // The mean over zero locations is NaN, and the sum over zero elements is 0.
    torch::stable::fill_(std, NAN);
    torch::stable::zero_(kl);
    return {z, std, kl};
  }
  if (columns) {
    with_map_type(mu.scalar_type(), [&](auto stored, auto arithmetic) {
      using T = decltype(stored);
      using C = decltype(arithmetic);
      const auto moments = moments_of<C>({}, {}, prior_var, std_max);
      forward_columns<T, C>(mu, logvar, moments, noise, z, std, kl, device);
    });
    return {z, std, kl};
  }
  const Input mu_rows(mu), logvar_rows(logvar);
  with_storage(mu.scalar_type(), mu_rows.is_dense() && logvar_rows.is_dense(), [&](auto storage) {
    using T = decltype(storage);
    using A = Access<T>;
    const Channels channels(mu, A::WIDTH);
    const auto moments = moments_of<typename A::C>(mu_rows.rows(), logvar_rows.rows(), prior_var, std_max);
    // Kernels that move single elements do not profit from groups of four.
    constexpr Pool ENTIRE = A::DENSE ? WHOLE_FOURS : WHOLE, PARTIAL = A::DENSE ? PARTS_FOURS : PARTS;
    constexpr decltype(&forward<T, NONE>) FORWARD[] = {forward<T, NONE>, forward<T, WHOLE>, forward<T, ENTIRE>,
                                                       forward<T, PARTS>, forward<T, PARTIAL>};
    FORWARD[channels.pool](moments, channels, noise, z, std, kl, device);
  });
  return {z, std, kl};
}

}  // namespace udml

UDML_REGISTER(reparameterize)
