// The normal and uniform random numbers of a sample, one tile at a time.
#pragma once

#include "normal_lanes.h"
#include "tensor.h"

namespace udml {

// The number of counter vectors that go through Philox together to hide its latency; the registers hold no more.
inline constexpr int INTERLEAVED = W == 16 ? 4 : 2;

// A tile may start inside a block of four numbers and end inside a vector of blocks.
inline constexpr int64_t NOISE_TILE = TILE + 4 * W;

// Interleaves the low (pair_low) or high (pair_high) halves of two vectors: a in the even lanes, b in the odd lanes.
UDML_FN u32 pair_low(u64 a, u64 b) {
#if defined(__AVX512F__)
  return (u32)_mm512_mask_shuffle_epi32((__m512i)a, 0xAAAA, (__m512i)b, (_MM_PERM_ENUM)0xA0);
#elif defined(__AVX2__)
  return (u32)_mm256_blend_epi32((__m256i)a, (__m256i)(b << 32), 0xAA);
#else
  return (u32)((a & 0xffffffffu) | b << 32);
#endif
}

UDML_FN u32 pair_high(u64 a, u64 b) {
#if defined(__AVX512F__)
  return (u32)_mm512_mask_shuffle_epi32((__m512i)b, 0x5555, (__m512i)a, (_MM_PERM_ENUM)0xF5);
#elif defined(__AVX2__)
  return (u32)_mm256_blend_epi32((__m256i)(a >> 32), (__m256i)b, 0xAA);
#else
  return (u32)(a >> 32 | (b & ~uint64_t{0xffffffffu}));
#endif
}

// In every group of four lanes, moves a0 b0 a1 b1 to a and a2 b2 a3 b3 to b.
UDML_FN void zip_in_fours(f32& a, f32& b) {
#if defined(__AVX512F__)
  const __m512 x = (__m512)a, y = (__m512)b;
  a = (f32)_mm512_unpacklo_ps(x, y);
  b = (f32)_mm512_unpackhi_ps(x, y);
#elif defined(__AVX2__)
  const __m256 x = (__m256)a, y = (__m256)b;
  a = (f32)_mm256_unpacklo_ps(x, y);
  b = (f32)_mm256_unpackhi_ps(x, y);
#elif defined(__SSE2__)
  const __m128 x = (__m128)a, y = (__m128)b;
  a = (f32)_mm_unpacklo_ps(x, y);
  b = (f32)_mm_unpackhi_ps(x, y);
#else
  const f32 x = a, y = b;
  a = f32{x[0], y[0], x[1], y[1]};
  b = f32{x[2], y[2], x[3], y[3]};
#endif
}

class Noise {
 public:
  Noise(const std::optional<Tensor>& seed, int64_t stream, const std::optional<Tensor>& sample_ids, int64_t rows)
      : stream_(static_cast<uint32_t>(stream)) {
    expect_random(seed, sample_ids, rows);
    if (seed) {
      const uint64_t key = *static_cast<const uint64_t*>(seed->const_data_ptr());
      for (uint32_t round = 0; round < 10; ++round) {
        keys0_[round] = static_cast<uint32_t>(key) + round * PHILOX_STEP0;
        keys1_[round] = static_cast<uint32_t>(key >> 32) + round * PHILOX_STEP1;
      }
    }
    if (sample_ids) {
      ids_ = static_cast<const int64_t*>(sample_ids->const_data_ptr());
      ids_stride_ = sample_ids->stride(0);
    }
  }

  uint64_t sample_id(int64_t row) const {
    return static_cast<uint64_t>(ids_ == nullptr ? row : ids_[row * ids_stride_]);
  }

  // Returns elements [begin, begin + n) of a sample's normals. `buffer` has room for NOISE_TILE numbers.
  template <class C>
  const C* normals(int64_t row, int64_t begin, int64_t n, C* buffer) const {
    fill(row, begin, n, [&](int64_t at, u32 w02, u32 w13) { put_normals(buffer + at, w02, w13); });
    return buffer + begin % 4;
  }

  // Returns elements [begin, begin + n) of a sample's uniforms in [0, 1).
  template <class C>
  const C* uniforms(int64_t row, int64_t begin, int64_t n, C* buffer) const {
    fill(row, begin, n, [&](int64_t at, u32 w02, u32 w13) {
      put(buffer + at, uniform_from_word<f32>(w02), uniform_from_word<f32>(w13));
    });
    return buffer + begin % 4;
  }

 private:
  // Calls put(at, words, words) for every 2 W elements, starting with the block of four that contains `begin`. The
  // first vector holds the words 0 and 2 of W / 2 counters alternately, the second vector the words 1 and 3. In every
  // group of four lanes, the second counter is W / 4 after the first, so that zip_in_fours yields consecutive elements.
  template <class Put>
  UDML_FN void fill(int64_t row, int64_t begin, int64_t n, const Put& put) const {
    const uint64_t id = sample_id(row);
    const int64_t end = begin % 4 + n, whole = end / (2 * W * INTERLEAVED) * (2 * W * INTERLEAVED);
    u64 counter = u64{} + static_cast<uint32_t>(begin / 4);
    for (int i = 0; i < W / 2; ++i) counter[i] += static_cast<uint64_t>(W / 4 * (i % 2) + i / 2);
    int64_t at = 0;
    for (; at < whole; at += 2 * W * INTERLEAVED) draw<INTERLEAVED>(counter, id, at, put);
    for (; at < end; at += 2 * W) draw<1>(counter, id, at, put);
  }

  template <int COUNT, class Put>
  UDML_FN void draw(u64& counter, uint64_t id, int64_t at, const Put& put) const {
    u64 c0[COUNT], c1[COUNT], c2[COUNT], c3[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      c0[i] = counter;
      c1[i] = u64{} + stream_;
      c2[i] = u64{} + static_cast<uint32_t>(id);
      c3[i] = u64{} + static_cast<uint32_t>(id >> 32);
      counter += W / 2;
    }
#pragma GCC unroll 9
    for (int round = 0; round < 9; ++round) {
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; ++i) philox_round(c0[i], c1[i], c2[i], c3[i], keys0_[round], keys1_[round]);
    }
    // The last round produces its words in pairs.
    const u32 keys = (u32)(u64{} + (keys0_[9] | keys1_[9] << 32));
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      const u64 product0 = multiply(c0[i], PHILOX_FACTOR0), product1 = multiply(c2[i], PHILOX_FACTOR1);
      put(at + i * 2 * W, pair_high(product1, product0) ^ pair_low(c1[i], c3[i]) ^ keys, pair_low(product1, product0));
    }
  }

  UDML_FN static void put(float* out, f32 a, f32 b) {
    zip_in_fours(a, b);
    store(out, a);
    store(out + W, b);
  }

  UDML_FN static void put(double* out, f32 a, f32 b) {
    zip_in_fours(a, b);
    store(out, __builtin_convertvector(a, f64));
    store(out + W, __builtin_convertvector(b, f64));
  }

  UDML_FN static void put_normals(float* out, u32 w02, u32 w13) {
    f32 even, odd;
    normals_from_words(w02, w13, even, odd);
    put(out, even, odd);
  }

  static void put_normals(double* out, u32 w02, u32 w13) {
    f32 a = (f32)w02, b = (f32)w13;
    zip_in_fours(a, b);
    uint32_t words[2 * W];
    memcpy(words, &a, sizeof a);
    memcpy(words + W, &b, sizeof b);
    for (int i = 0; i < 2 * W; i += 2) normals_from_words(words[i], words[i + 1], out[i], out[i + 1]);
  }

  // The round keys stay in memory, so that instructions can broadcast them as they load.
  uint64_t keys0_[10] = {}, keys1_[10] = {};
  uint32_t stream_;
  const int64_t* ids_ = nullptr;
  int64_t ids_stride_ = 1;
};

}  // namespace udml
