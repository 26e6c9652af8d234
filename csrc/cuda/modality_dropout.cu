// modality_dropout processes all modalities in one launch and does not read dropped ones. modality_dependency reads the
// logits once.
#include "noise.h"
#include "../op.h"
#include "tiles.h"

namespace udml {

// Rows of elements of 2, 4 or 8 bytes, or dense rows as words of 16 bytes. The kernel copies features bit by bit.
struct Modality {
  Rows in;
  char* out;
  int64_t size;
  unsigned first_tile;
};

struct Modalities {
  Modality modality[MAX_MODALITIES];
  int count;

  __device__ __forceinline__ int of_tile(unsigned tile) const {
    int m = 0;
#pragma unroll 1
    while (m + 1 < count && tile >= modality[m + 1].first_tile) ++m;
    return m;
  }
};

// Draws the modalities that a sample keeps, one bit each. The decision uses float32 for every dtype of the features.
__device__ __forceinline__ unsigned drawn_mask(const Sample& sample, Matrix<float> p, int count, bool keep_one) {
  unsigned kept = 0, closest = 1;
  float best = -INFINITY;
  uint32_t w[4] = {};
#pragma unroll 1
  for (int m = 0; m < count; ++m) {
    if (m % 4 == 0) sample.words(static_cast<uint32_t>(m / 4), w);
    const float margin = uniform_from_word<float>(w[0]) - p.at(m);
    w[0] = w[1], w[1] = w[2], w[2] = w[3];
    if (margin >= 0) kept |= 1u << m;
    // Finds the first of the largest margins or the first NaN, like torch.argmax.
    if (margin > best || (margin != margin && best == best)) best = margin, closest = 1u << m;
  }
  return kept == 0 && keep_one ? closest : kept;
}

// A thread moves this many elements of a row: `begin`, `begin` + threads_per_row, ...
template <class Bits>
inline constexpr unsigned ELEMENTS_PER_THREAD = sizeof(Bits) == 16 ? 8 : 4;

// `left` is the number of the tile's elements from `begin` on.
template <class Bits>
__device__ __forceinline__ void copy_or_zero(const Modality& modality, int64_t row, int64_t begin, unsigned left,
                                             unsigned threads_per_row, bool kept) {
  constexpr bool WORDS = sizeof(Bits) == 16;
  const Bits* in =
      reinterpret_cast<const Bits*>(modality.in.data) + (row * modality.in.row_stride + (WORDS ? begin : 0));
  Bits* out = reinterpret_cast<Bits*>(modality.out) + (row * modality.size + begin);
  const unsigned readable = kept ? left : 0;
  Bits values[ELEMENTS_PER_THREAD<Bits>] = {};
#pragma unroll
  for (unsigned i = 0; i < ELEMENTS_PER_THREAD<Bits>; ++i)
    if (i * threads_per_row < readable)
      values[i] = in[WORDS ? i * threads_per_row : offset_in_row(modality.in, begin + i * threads_per_row)];
#pragma unroll
  for (unsigned i = 0; i < ELEMENTS_PER_THREAD<Bits>; ++i)
    if (i * threads_per_row < left) out[i * threads_per_row] = values[i];
}

template <class Bits>
__global__ void __launch_bounds__(BLOCK) modality_dropout_kernel(Modalities modalities, Noise noise, Matrix<float> p,
                                                                 bool keep_one, Tiles tiles, bool* mask) {
  UDML_SHARED(unsigned, drawn, BLOCK);
  for_each_tile<Access<Any<float>>>(tiles, [&](const Place& at) {
    const unsigned own = threadIdx.x >> tiles.log2_threads_per_row, within = threadIdx.x & (tiles.threads_per_row - 1),
                   here = BLOCK >> tiles.log2_threads_per_row;
    // One thread per row of the block draws the mask.
    const unsigned row = static_cast<unsigned>(at.row) - own + threadIdx.x;
    if (threadIdx.x < here && row < tiles.rows)
      drawn[threadIdx.x] = drawn_mask(sample_of(noise, row), p, modalities.count, keep_one);
    __syncthreads();
    if (at.exists) {
      const int m = modalities.of_tile(at.tile);
      const Modality& modality = modalities.modality[m];
      const unsigned tile = at.tile - modality.first_tile;
      const bool kept = drawn[own] >> m & 1;
      if (tile == 0 && within == 0) mask[at.row * modalities.count + m] = kept;
      const int64_t begin = static_cast<int64_t>(static_cast<uint64_t>(tile) * tiles.step) + within;
      const int64_t left = min(max(modality.size - begin, static_cast<int64_t>(0)), static_cast<int64_t>(tiles.step));
      copy_or_zero<Bits>(modality, at.row, begin, static_cast<unsigned>(left), tiles.threads_per_row, kept);
    }
    __syncthreads();
  });
}

// Whether rows can be copied as 16-byte words, and their description as such words.
static bool are_words(const Modality& modality, int64_t item) {
  const Rows& in = modality.in;
  return in.inner_stride == 1 && in.inner == modality.size && modality.size * item % 16 == 0 &&
         in.row_stride * item % 16 == 0 && reinterpret_cast<uintptr_t>(in.data) % 16 == 0;
}
static void as_words(Modality& modality, int64_t item) {
  modality.in.row_stride = modality.in.row_stride * item / 16;
  modality.size = modality.size * item / 16;
}

template <class Bits>
static void drop(Modalities modalities, const Noise& noise, Matrix<float> p, bool keep_one, int64_t rows,
                 const Tensor& mask, const OnDevice& device) {
  int64_t largest = 0, across = 0;
  for (int m = 0; m < modalities.count; ++m) largest = std::max(largest, modalities.modality[m].size);
  // The tiles of the modalities are numbered consecutively.
  Tiles tiles(rows, largest, ELEMENTS_PER_THREAD<Bits>);
  for (int m = 0; m < modalities.count; ++m) {
    modalities.modality[m].first_tile = Tiles::counted(across);
    across += std::max<int64_t>(1, (modalities.modality[m].size + tiles.step - 1) / tiles.step);
  }
  tiles.blocks = tiles.across = Tiles::counted(across);
  launch("modality_dropout_kernel", modality_dropout_kernel<Bits>, device, tiles.work(), modalities, noise, p, keep_one,
         tiles, results_of<bool>(mask));
}

static auto drop_for(int64_t bytes) {
  switch (bytes) {
    case 2: return drop<uint16_t>;
    case 4: return drop<uint32_t>;
    case 8: return drop<uint64_t>;
    default: return drop<uint4>;
  }
}

std::tuple<Tensors, Tensor> modality_dropout(Tensors features, Tensor p, bool keep_one, Tensor seed, int64_t stream,
                                             OptionalTensor sample_ids) {
  const int64_t count = static_cast<int64_t>(features.size());
  expect(count >= 1 && count <= MAX_MODALITIES && p.dim() == 1 && p.numel() == count &&
             p.scalar_type() == ScalarType::Float,
         "p: expected one float32 a modality, at most 16");
  const OnDevice device(features[0]);
  const int64_t rows = features[0].size(0), item = static_cast<int64_t>(features[0].element_size());
  const Noise noise = noise_of(seed, stream, sample_ids, rows);
  const Tensor mask = allocate({rows, count}, ScalarType::Bool, features[0]);
  Tensors kept;
  std::vector<Input> inputs;
  Modalities modalities{};
  modalities.count = static_cast<int>(count);
  bool words = true;
  for (int64_t m = 0; m < count; ++m) {
    const Tensor& feature = features[static_cast<size_t>(m)];
    expect(feature.size(0) == rows && feature.scalar_type() == features[0].scalar_type(),
           "features: expected one batch and one dtype");
    kept.push_back(allocate_like(feature));
    inputs.push_back(feature.numel() > 0 ? Input(feature) : Input());
    modalities.modality[m] = {inputs.back().rows(), results_of<char>(kept.back()), row_size_of(feature), 0};
    words = words && are_words(modalities.modality[m], item);
  }
  if (rows == 0) return {kept, mask};
  for (int64_t m = 0; words && m < count; ++m) as_words(modalities.modality[m], item);
  drop_for(words ? 16 : item)(modalities, noise, matrix_of<float>(p), keep_one, rows, mask, device);
  return {kept, mask};
}

// Sums the absolute logits of each part of a modality with one warp. Parts take turns in chunks of 32 threads'
// elements.
template <class T>
__global__ void __launch_bounds__(BLOCK) modality_dependency_kernel(Rows logits, int64_t modalities, int64_t size,
                                                                    int64_t parts, typename Access<T>::C* partial) {
  using A = Access<T>;
  for_each_warp_item(modalities * parts, [&](int64_t i) {
    const int64_t m = i / parts, step = parts * (32 * A::WIDTH);
    typename A::C sum = 0;
#pragma unroll 1
    for (int64_t e = (i - m * parts) * (32 * A::WIDTH) + threadIdx.x % 32 * A::WIDTH; e < size; e += step) {
      const bool whole = (e | 31 * A::WIDTH) + A::WIDTH <= size;
      const int count = static_cast<int>(min(size - e, static_cast<int64_t>(A::WIDTH)));
      per_warp<A>(Place{m, e, 0, 0, count, true, whole, whole}, [&](const Place& at) {
        typename A::C x[A::WIDTH];
        A::read(logits, at, x);
#pragma unroll
        for (int j = 0; j < A::WIDTH; ++j) sum += x[j] < 0 ? -x[j] : x[j];
      });
    }
    sum = sum_over_lanes(sum);
    if (threadIdx.x % 32 == 0) partial[i] = sum;
  });
}

Tensor modality_dependency(Tensor logits) {
  // The maximum number of parts per modality: enough to fill a device, few enough for one warp to add up. The number of
  // parts depends on the size of a modality alone.
  constexpr int64_t PARTS = 1024;
  expect(logits.dim() == 3, "logits: expected (M, B, K)");
  const OnDevice device(logits);
  const int64_t modalities = logits.size(0), rows = logits.size(1), size = rows * logits.size(2);
  Tensor out = allocate({modalities}, compute_type(logits.scalar_type()), logits);
  if (size == 0) return torch::stable::zero_(out);
  const Input in(logits);
  with_storage(logits.scalar_type(), in.is_dense(), [&](auto storage) {
    using A = Access<decltype(storage)>;
    using C = typename A::C;
    const int64_t share = 32 * A::WIDTH, parts = std::min(PARTS, (size + share - 1) / share);
    const Tensor partial = allocate({modalities, parts}, scalar_type_of<C>, logits);
    launch("modality_dependency_kernel", modality_dependency_kernel<decltype(storage)>, device,
           warp_item_work(modalities * parts), in.rows(), modalities, size, parts, results_of<C>(partial));
    sum_partials<C>(partial, modalities, parts, 1 / static_cast<double>(std::max<int64_t>(rows, 1)), results_of<C>(out),
                    device);
  });
  return out;
}

template <class T>
__global__ void __launch_bounds__(BLOCK)
    modality_dependency_backward_kernel(Matrix<typename Access<T>::C> grad, typename Access<T>::C share, Rows logits,
                                        Tiles tiles, Results out) {
  using A = Access<T>;
  using C = typename A::C;
  for_each_tile<A>(tiles, [&](const Place& place) {
    if (place.count == 0) return;
    per_warp<A>(place, [&](const Place& at) {
      C x[A::WIDTH];
      A::read(logits, at, x);
      const C slope = grad.at(at.row) * share;
      // Like torch.sign, this is 0 for 0 and for NaN.
#pragma unroll
      for (int i = 0; i < A::WIDTH; ++i) x[i] = x[i] > 0 ? slope : x[i] < 0 ? -slope : C(0);
      A::write(out, at, x);
    });
  });
}

Tensor modality_dependency_backward(Tensor grad, Tensor logits) {
  expect(logits.dim() == 3 && grad.numel() == logits.size(0), "grad: expected (M,)");
  const OnDevice device(logits);
  const int64_t modalities = logits.size(0), rows = logits.size(1), size = rows * logits.size(2);
  const Tensor out = allocate_like(logits);
  if (out.numel() == 0) return out;
  const Input in(logits);
  with_storage(logits.scalar_type(), in.is_dense(), [&](auto storage) {
    using A = Access<decltype(storage)>;
    using C = typename A::C;
    const Tiles tiles(modalities, size, A::WIDTH);
    launch("modality_dependency_backward_kernel", modality_dependency_backward_kernel<decltype(storage)>, device,
           tiles.work(), matrix_of<C>(grad), 1 / static_cast<C>(rows), in.rows(), tiles, results(out, size));
  });
  return out;
}

}  // namespace udml

UDML_REGISTER(modality_dropout)
UDML_REGISTER(modality_dependency)
UDML_REGISTER(modality_dependency_backward)
