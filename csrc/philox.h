// Philox4x32-10 (Salmon et al., SC 2011). philox_round also works on vectors.
#pragma once

#include "lane.h"

namespace udml {

inline constexpr uint32_t PHILOX_FACTOR0 = 0xD2511F53u, PHILOX_FACTOR1 = 0xCD9E8D57u;
inline constexpr uint32_t PHILOX_STEP0 = 0x9E3779B9u, PHILOX_STEP1 = 0xBB67AE85u;

// U is uint32_t or a vector type with its own multiply, high and low.
template <class U, class Key>
UDML_FN void philox_round(U& c0, U& c1, U& c2, U& c3, Key key0, Key key1) {
  const auto product0 = multiply(c0, PHILOX_FACTOR0), product1 = multiply(c2, PHILOX_FACTOR1);
  c0 = high(product1) ^ c1 ^ key0;
  c1 = low(product1);
  c2 = high(product0) ^ c3 ^ key1;
  c3 = low(product0);
}

// Replaces the four counter words by four random words.
UDML_FN void philox4x32_10(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    philox_round(c0, c1, c2, c3, key0, key1);
    key0 += PHILOX_STEP0;
    key1 += PHILOX_STEP1;
  }
}

}  // namespace udml
