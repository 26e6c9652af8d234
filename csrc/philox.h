// Philox4x32-10 (Salmon et al., SC 2011), for one lane or for a vector of lanes.
#pragma once

#include "lane.h"

namespace udml {

// U is uint32_t or a vector of uint32_t with its own mulhilo. The counter becomes the four words.
template <class U>
UDML_FN void philox4x32_10(U& c0, U& c1, U& c2, U& c3, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    mulhilo(0xD2511F53u, c0, high0, low0);
    mulhilo(0xCD9E8D57u, c2, high1, low1);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace udml
