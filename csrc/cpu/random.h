// The noise of a sample, a tile at a time.
#pragma once

#include "tensor.h"

namespace udml {

// Room for a tile that starts inside a block of four and ends inside a vector of four blocks a lane.
inline constexpr int64_t NOISE_TILE = TILE + 8 * W;

class Noise {
 public:
  Noise(const std::optional<Tensor>& seed, int64_t stream, const std::optional<Tensor>& sample_ids, int64_t rows)
      : stream_(static_cast<uint32_t>(stream)) {
    if (seed) {
      expect(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "seed: expected one int64");
      seed_ = *static_cast<const uint64_t*>(seed->const_data_ptr());
    }
    if (sample_ids) {
      expect(sample_ids->scalar_type() == ScalarType::Long && sample_ids->dim() == 1 && sample_ids->size(0) == rows,
             "sample_ids: expected one int64 a sample");
      ids_ = static_cast<const int64_t*>(sample_ids->const_data_ptr());
      ids_stride_ = sample_ids->stride(0);
    }
  }

  uint64_t sample_id(int64_t row) const {
    return static_cast<uint64_t>(ids_ == nullptr ? row : ids_[row * ids_stride_]);
  }

  // Elements [begin, begin + n) of a sample's normals; `buffer` holds NOISE_TILE numbers.
  template <class C>
  const C* normals(int64_t row, int64_t begin, int64_t n, C* buffer) const {
    fill(row, begin, n, [&](int64_t at, u32 w0, u32 w1, u32 w2, u32 w3) { put_normals(buffer + at, w0, w1, w2, w3); });
    return buffer + begin % 4;
  }

  // Elements [begin, begin + n) of a sample's uniforms in [0, 1).
  template <class C>
  const C* uniforms(int64_t row, int64_t begin, int64_t n, C* buffer) const {
    fill(row, begin, n, [&](int64_t at, u32 w0, u32 w1, u32 w2, u32 w3) {
      transpose_in_fours(w0, w1, w2, w3);
      put_uniforms(buffer + at, w0);
      put_uniforms(buffer + at + W, w1);
      put_uniforms(buffer + at + 2 * W, w2);
      put_uniforms(buffer + at + 3 * W, w3);
    });
    return buffer + begin % 4;
  }

 private:
  // put(at, words) for every 4 W elements from the block of `begin` on. Lane 4i+q holds counter (W/4) q + i,
  // so that transposing in fours leaves consecutive elements in a register.
  template <class Put>
  UDML_FN void fill(int64_t row, int64_t begin, int64_t n, const Put& put) const {
    const uint64_t id = sample_id(row);
    u32 lane_counter;
    for (int i = 0; i < W; ++i) lane_counter[i] = static_cast<uint32_t>((W / 4) * (i % 4) + i / 4);
    const int64_t end = begin % 4 + n;
    const Words stream = spread(u32{} + stream_);
    const Words id_low = spread(u32{} + static_cast<uint32_t>(id));
    const Words id_high = spread(u32{} + static_cast<uint32_t>(id >> 32));
    uint32_t block = static_cast<uint32_t>(begin / 4);
    for (int64_t at = 0; at < end; at += 4 * W, block += W) {
      Words w0 = spread(lane_counter + block), w1 = stream, w2 = id_low, w3 = id_high;
      philox4x32_10(w0, w1, w2, w3, static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32));
      put(at, gather(w0), gather(w1), gather(w2), gather(w3));
    }
  }

  UDML_FN static void put_normals(float* out, u32 w0, u32 w1, u32 w2, u32 w3) {
    f32 n0, n1, n2, n3;
    normals_from_words(w0, w1, n0, n1);
    normals_from_words(w2, w3, n2, n3);
    u32 a = (u32)n0, b = (u32)n1, c = (u32)n2, d = (u32)n3;
    transpose_in_fours(a, b, c, d);
    store(out, (f32)a);
    store(out + W, (f32)b);
    store(out + 2 * W, (f32)c);
    store(out + 3 * W, (f32)d);
  }

  static void put_normals(double* out, u32 w0, u32 w1, u32 w2, u32 w3) {
    transpose_in_fours(w0, w1, w2, w3);
    uint32_t words[4 * W];
    memcpy(words, &w0, sizeof w0);
    memcpy(words + W, &w1, sizeof w1);
    memcpy(words + 2 * W, &w2, sizeof w2);
    memcpy(words + 3 * W, &w3, sizeof w3);
    for (int i = 0; i < 4 * W; i += 2) normals_from_words(words[i], words[i + 1], out[i], out[i + 1]);
  }

  UDML_FN static void put_uniforms(float* out, u32 words) { store(out, uniform_from_word<f32>(words)); }

  UDML_FN static void put_uniforms(double* out, u32 words) {
    store(out, __builtin_convertvector(uniform_from_word<f32>(words), f64));
  }

  uint64_t seed_ = 0;
  uint32_t stream_;
  const int64_t* ids_ = nullptr;
  int64_t ids_stride_ = 1;
};

}  // namespace udml
