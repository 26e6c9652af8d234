// Philox4x32-10 (Salmon et al., SC 2011), for one lane or for a vector of lanes.
#pragma once

#include "lane.h"

namespace udml {

// U is uint32_t, or many of them with their own multiply, high and low. The counter becomes the words.
template <class U>
UDML_FN void philox4x32_10(U& c0, U& c1, U& c2, U& c3, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const auto product0 = multiply(c0, 0xD2511F53u), product1 = multiply(c2, 0xCD9E8D57u);
    c0 = high(product1) ^ c1 ^ key0;
    c1 = low(product1);
    c2 = high(product0) ^ c3 ^ key1;
    c3 = low(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace udml
