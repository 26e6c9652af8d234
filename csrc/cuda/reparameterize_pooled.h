// What the kernels of the forward and the backward pass of reparameterize_pooled share.
#pragma once

#include "noise.h"
#include "reparameterize.h"

namespace udml {

// Moves V elements of a row: 16 bytes of a dense row, or one element of any row.
template <class T>
struct Vectors {
  using C = float;
  // Dense rows have less than 2^31 elements.
  using Index = uint32_t;
  static constexpr int V = 16 / sizeof(T);

  static __device__ __forceinline__ void load(const Rows& rows, int64_t row, Index e, C (&x)[V]) {
    load_vector<V>(reinterpret_cast<const T*>(rows.data) + (row * rows.row_stride + e), x);
  }
  static __device__ __forceinline__ void store(const Results& out, int64_t row, Index e, const C (&x)[V]) {
    store_vector<V>(reinterpret_cast<T*>(out.data) + (row * out.row_size + e), x);
  }
};

template <class Compute>
struct Vectors<Any<Compute>> {
  using C = Compute;
  using Index = int64_t;
  static constexpr int V = 1;

  static __device__ __forceinline__ void load(const Rows& rows, int64_t row, Index e, C (&x)[V]) {
    x[0] = at<C>(rows, row, e);
  }
  static __device__ __forceinline__ void store(const Results& out, int64_t row, Index e, const C (&x)[V]) {
    store_as(out.data, out.dtype, row * out.row_size + e, x[0]);
  }
};

// Returns the sample's normal number of a channel.
template <class C>
__device__ __forceinline__ C normal_of(const Noise& noise, int64_t row, unsigned channel) {
  uint32_t w[4];
  sample_of(noise, row).words(channel / 4, w);
  const bool second = channel % 4 >= 2;
  C even, odd;
  normal_pair(second ? w[2] : w[0], second ? w[3] : w[1], even, odd);
  return channel % 2 == 0 ? even : odd;
}

// The work on rows whose elements are in the order (location, channel). A block has up to 2^log2_lanes vectors of
// channels at up to `step` locations: lane x of its thread rows has vector x, and the thread rows take locations in
// turn. The division depends on the size of a sample alone, so the order of additions is the same for every batch size.
struct Columns {
  int64_t locations;
  unsigned rows, channels, log2_lanes, step, parts, across;

  __host__ Columns(int64_t row_count, int64_t channel_count, int64_t locations, int width)
      : locations(locations), rows(Tiles::counted(row_count)), channels(Tiles::counted(channel_count)), log2_lanes(0) {
    // The lanes suffice for accesses to whole sectors, and short columns have more of them. A block has at most BLOCK
    // channels.
    const int64_t enough = width == 1 ? 32 : 16;
    const auto wanted = [&](int64_t lanes) { return lanes < enough || BLOCK / lanes > locations; };
    while (wanted(1 << log2_lanes) && width << log2_lanes < std::min<int64_t>(channel_count, BLOCK)) ++log2_lanes;
    step = 16 * (BLOCK >> log2_lanes);
    parts = Tiles::counted((locations + step - 1) / step);
    across = Tiles::counted((channel_count + (width << log2_lanes) - 1) / (width << log2_lanes) * parts);
  }
  Work work() const { return {across, rows, BLOCK}; }

  // The first channel and the locations of a block.
  __device__ __forceinline__ unsigned first_channel(unsigned block, int width) const {
    return block / parts * (static_cast<unsigned>(width) << log2_lanes);
  }
  __device__ __forceinline__ int64_t begin(unsigned block) const { return int64_t{block % parts} * step; }
  __device__ __forceinline__ int64_t end(unsigned block) const { return min(locations, begin(block) + step); }
};

// The work on rows whose elements are in the order (channel, location). 2^log2_lanes lanes of a warp share an item: a
// channel, or one of `parts` parts of a long channel. They load the aligned vectors that the channel's elements lie in,
// at most `step` of them; two channels may share a vector. A block has `rounds` items for each of its groups of lanes.
struct Segments {
  int64_t locations;
  unsigned rows, channels, log2_lanes, step, parts, rounds, across;
  Divisor parts_divisor;

  __host__ Segments(int64_t row_count, int64_t channel_count, int64_t locations, int width)
      : locations(locations), rows(Tiles::counted(row_count)), channels(Tiles::counted(channel_count)), log2_lanes(0) {
    const int64_t vectors = locations % width == 0 ? locations / width : (locations + 2 * width - 2) / width;
    const int64_t longest = 2048 / width;
    parts = Tiles::counted((vectors + longest - 1) / longest);
    step = static_cast<unsigned>((vectors + parts - 1) / parts);
    // Four lanes access whole sectors. With up to eight vectors a lane, few lanes are idle in the last round of loads.
    const auto wanted = [&](unsigned lanes) { return lanes < 32 && lanes < step && (lanes < 4 || lanes * 8 < step); };
    while (wanted(1u << log2_lanes)) ++log2_lanes;
    const int64_t groups = BLOCK >> log2_lanes, elements = groups * std::min<int64_t>(locations, step * width);
    rounds = static_cast<unsigned>(std::max<int64_t>(1, 32 * BLOCK / elements));
    across = Tiles::counted((channel_count * parts + groups * rounds - 1) / (groups * rounds));
    parts_divisor = Divisor(parts);
  }
  Work work() const { return {across, rows, BLOCK}; }
};

// ---- Host code.

// The maps mu and logvar as rows of elements: in the order (location, channel) if `columns`, otherwise in logical
// order.
class Maps {
 public:
  Maps(const Tensor& mu, const Tensor& logvar)
      : channels_last(are_channels_last(mu, logvar)), mu_(mu), logvar_(logvar) {
    const int64_t size = row_size_of(mu);
    const bool one_location = row_size_of(mu, 2) == 1;
    columns = channels_last || one_location;
    if (channels_last) {
      const auto aligned = [](const Rows& r) { return reinterpret_cast<uintptr_t>(r.data) % 16 == 0; };
      this->mu = in_memory_order(mu, size), this->logvar = in_memory_order(logvar, size);
      dense = size < int64_t{1} << 31 && mu.size(1) * static_cast<int64_t>(mu.element_size()) % 16 == 0 &&
              aligned(this->mu) && aligned(this->logvar);
    } else {
      this->mu = mu_.rows(), this->logvar = logvar_.rows();
      dense = mu_.is_dense() && logvar_.is_dense();
    }
  }

  Rows mu, logvar;
  bool channels_last, columns, dense;

 private:
  static Rows in_memory_order(const Tensor& t, int64_t size) {
    return {static_cast<const char*>(t.const_data_ptr()), size, size, 0, 1, 0, 0, t.scalar_type()};
  }

  Input mu_, logvar_;
};

}  // namespace udml
