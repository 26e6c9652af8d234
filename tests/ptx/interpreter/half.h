// Numbers of 16 bits as floats, and back.
#pragma once
#include <immintrin.h>

#include "lanes.h"

namespace ptx {

struct Half {
  static float widened(uint16_t h) { return _cvtsh_ss(h); }
  static uint16_t narrowed(float x) {
    return x != x ? 0x7fff : _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};
struct Bfloat {
  static float widened(uint16_t h) { return from_bits<float>(static_cast<uint32_t>(h) << 16); }
  static uint16_t narrowed(float x) {
    if (x != x) return 0x7fff;
    const uint32_t bits = static_cast<uint32_t>(to_bits(x));
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

}  // namespace ptx
