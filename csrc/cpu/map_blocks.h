// Access to the maps of reparameterize. If the channels of the maps come last, a MapReader and a MapWriter transpose an
// item at a time between the storage and a block, in which the item's elements have their order in the row.
#pragma once

#include "reparameterize.h"

namespace udml {

// Allocates a result in the layout of both maps: with the channels last, or else contiguous.
inline Tensor allocate_map(const Tensor& mu, const Tensor& logvar) {
  if (!are_channels_last(mu, logvar)) return allocate_like(mu);
  try {
    const Tensor t = torch::stable::empty_like(mu);
    prefer_huge_pages(t);
    return t;
  } catch (const std::runtime_error&) {
    throw OutOfMemory("out of memory: could not allocate " + describe_allocation(shape_of(mu), mu.scalar_type()));
  }
}

// Returns W / 4 groups of four numbers as one vector.
using Four = Vector<float, 4>;
UDML_FN f32 joined(const Four* quarter) {
#if defined(__AVX512F__)
  const __m256 low = _mm256_set_m128((__m128)quarter[1], (__m128)quarter[0]);
  const __m256 high = _mm256_set_m128((__m128)quarter[3], (__m128)quarter[2]);
  return (f32)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
#elif defined(__AVX2__)
  return (f32)_mm256_set_m128((__m128)quarter[1], (__m128)quarter[0]);
#else
  return quarter[0];
#endif
}

// Rows of the storage: the channels of one location each. Columns: the locations of one channel each, `pitch` apart.
inline constexpr int64_t ROWS = 4;

// Copies a square of ROWS locations and `width` channels from rows to columns.
UDML_FN void rows_to_columns(const float* const* rows, int64_t width, float* columns, int64_t pitch) {
  for_each_vector(width, [&](int64_t i, auto lanes) {
    u32 w[ROWS];
    for (int64_t j = 0; j < ROWS; ++j) w[j] = (u32)load_lanes(rows[j] + i, lanes);
    transpose_in_fours(w[0], w[1], w[2], w[3]);
    // Vector q now has the channels q, q + 4, q + 8, ..., each with its four locations.
    float quarters[ROWS][W];
    memcpy(quarters, w, sizeof w);
#pragma GCC unroll 16
    for (int64_t k = 0; k < W; ++k)
      if (k < lanes) memcpy(columns + (i + k) * pitch, quarters[k % ROWS] + k / ROWS * ROWS, sizeof(Four));
  });
}

// Copies a square from columns to rows.
template <bool NONTEMPORAL>
UDML_FN void columns_to_rows(const float* columns, int64_t pitch, int64_t width, float* const* rows) {
  for_each_vector(width, [&](int64_t i, auto lanes) {
    Four quarters[ROWS][W / ROWS] = {};
#pragma GCC unroll 16
    for (int64_t k = 0; k < W; ++k)
      if (k < lanes) memcpy(&quarters[k % ROWS][k / ROWS], columns + (i + k) * pitch, sizeof(Four));
    u32 w[ROWS];
    for (int64_t j = 0; j < ROWS; ++j) w[j] = (u32)joined(quarters[j]);
    transpose_in_fours(w[0], w[1], w[2], w[3]);
    for (int64_t j = 0; j < ROWS; ++j) put_lanes<NONTEMPORAL>(rows[j] + i, (f32)w[j], lanes);
  });
}

// Calls body(location, count, channel, width, at) for squares of `count` locations and `width` channels that cover an
// item. `at` is the number of the item's elements before the square. A last square that would be incomplete begins
// earlier, so that it covers some elements again.
template <class Body>
UDML_FN void for_each_square(const Items& items, int64_t item, const Body& body) {
  const int64_t length = items.length(item), count = std::min(length, ROWS);
  for (int64_t channel = 0; channel < items.width(item); channel += Items::COLUMNS) {
    const int64_t width = std::min(Items::COLUMNS, items.width(item) - channel);
    for (int64_t next = 0; next < length; next += count) {
      const int64_t location = std::min(next, length - count);
      body(items.location(item) + location, count, items.channel(item) + channel, width, channel * length + location);
    }
  }
}

// A block has room for Items::SIZE numbers.
template <class C>
class MapReader {
 public:
  MapReader() = default;

  MapReader(const Tensor& t, const Items& items)
      : items_(&items),
        in_blocks_(items.channels_last && is_channels_last(t)),
        rows_(in_blocks_ ? Reader<C>::in_storage_order(t, items.channels) : Reader<C>(t)) {}

  explicit operator bool() const { return static_cast<bool>(rows_); }

  // Prepares the block for calls of `run`. If the storage has another layout, `run` reads from there.
  void load(int64_t row, int64_t item, C* block) const {
    if (!in_blocks_) return;
    const int64_t pitch = items_->length(item);
    for_each_square(*items_, item, [&](int64_t location, int64_t count, int64_t channel, int64_t width, int64_t at) {
      alignas(64) C buffers[ROWS][Items::COLUMNS];
      const C* rows[ROWS];
      for (int64_t j = 0; j < count; ++j)
        rows[j] = rows_.run(row * items_->locations + location + j, channel, width, buffers[j]);
      if constexpr (std::is_same_v<C, float>) {
        if (count == ROWS) return rows_to_columns(rows, width, block + at, pitch);
      }
      for (int64_t i = 0; i < width; ++i)
        for (int64_t j = 0; j < count; ++j) block[at + i * pitch + j] = rows[j][i];
    });
  }

  // Returns elements [begin, begin + n) of the row; `at` of the item's elements are before them. `buffer` has room for
  // STEP numbers.
  const C* run(int64_t row, int64_t begin, int64_t n, int64_t at, const C* block, C* buffer) const {
    return in_blocks_ ? block + at : rows_.run(row, begin, n, buffer);
  }

 private:
  const Items* items_ = nullptr;
  bool in_blocks_ = false;
  Reader<C> rows_;
};

template <class C>
class MapWriter {
 public:
  MapWriter(const Tensor& t, const Items& items)
      : items_(items),
        rows_(t, items.channels_last ? items.channels : items.channels * items.locations),
        nontemporal_(stores_nontemporal<C>(t)) {}

  // Whether the values of a run should be written by nontemporal stores.
  bool nontemporal(const C* run) const { return nontemporal_ && !items_.channels_last && can_store_nontemporal(run); }

  // Returns where to write a run; see MapReader::run.
  C* run(int64_t row, int64_t begin, int64_t at, C* block, C* buffer) const {
    return items_.channels_last ? block + at : rows_.run(row, begin, buffer);
  }

  void commit(int64_t row, int64_t begin, int64_t n, const C* values) const {
    if (!items_.channels_last) rows_.commit(row, begin, n, values);
  }

  // Stores the block of an item, after all its runs.
  void finish(int64_t row, int64_t item, const C* block) const {
    if (items_.channels_last) store(row, item, block);
    rows_.finish();
  }

 private:
  void store(int64_t row, int64_t item, const C* block) const {
    const int64_t pitch = items_.length(item);
    for_each_square(items_, item, [&](int64_t location, int64_t count, int64_t channel, int64_t width, int64_t at) {
      alignas(64) C buffers[ROWS][Items::COLUMNS];
      C* rows[ROWS];
      bool nontemporal = nontemporal_;
      for (int64_t j = 0; j < count; ++j) {
        rows[j] = rows_.run(row * items_.locations + location + j, channel, buffers[j]);
        nontemporal = nontemporal && can_store_nontemporal(rows[j]);
      }
      put(block + at, pitch, count, width, rows, nontemporal);
      for (int64_t j = 0; j < count; ++j) rows_.commit(row * items_.locations + location + j, channel, width, rows[j]);
    });
  }

  UDML_FN static void put(const C* columns, int64_t pitch, int64_t count, int64_t width, C* const* rows,
                          bool nontemporal) {
    if constexpr (std::is_same_v<C, float>) {
      if (count == ROWS)
        return nontemporal ? columns_to_rows<true>(columns, pitch, width, rows)
                           : columns_to_rows<false>(columns, pitch, width, rows);
    }
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = 0; i < width; ++i) rows[j][i] = columns[i * pitch + j];
  }

  const Items& items_;
  Writer<C> rows_;
  bool nontemporal_;
};

}  // namespace udml
