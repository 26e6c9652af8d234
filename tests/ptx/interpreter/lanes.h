// The lanes of a row, and the bits of values.
#pragma once
#include <cmath>
#include <type_traits>

#include "machine.h"

namespace ptx {

template <class T>
inline T from_bits(uint64_t bits) {
  T x;
  memcpy(&x, &bits, sizeof(T));
  return x;
}
template <class T>
inline uint64_t to_bits(T x) {
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(T));
  return bits;
}

// Values of 16 bits lie in words of 32, whose upper half is 0.
template <class T>
struct Lanes {
  using Word = std::conditional_t<sizeof(T) == 8, T, std::conditional_t<sizeof(T) == 4, T, uint32_t>>;
  Word* p;
  Lanes(Warp& w, int offset) : p(row<Word>(w, offset)) {}
  T operator[](int lane) const { return static_cast<T>(p[lane]); }
  void set(int lane, T value) {
    if constexpr (sizeof(T) == 2) p[lane] = static_cast<uint16_t>(value);
    else p[lane] = value;
  }
};

// d = f(lane) for each of `lanes`. f is called for every lane.
template <class T, class F>
inline __attribute__((always_inline)) void each(Warp& w, int d, uint32_t lanes, F f) {
  Lanes<T> out(w, d);
  if (lanes == ~0u) {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) out.set(l, f(l));
  } else {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) {
      const T value = f(l);
      out.set(l, (lanes >> l & 1) ? value : out[l]);
    }
  }
}

// A predicate is one word: a bit for each lane.
inline uint32_t predicate(Warp& w, int offset, bool negated = false) {
  const uint32_t p = *row<uint32_t>(w, offset);
  return negated ? ~p : p;
}
inline void set_predicate(Warp& w, int offset, uint32_t value, uint32_t lanes) {
  uint32_t& p = *row<uint32_t>(w, offset);
  p = (p & ~lanes) | (value & lanes);
}

// .ftz: subnormal inputs and results become zeros with their sign.
inline float flushed(float x) {
  const uint64_t bits = to_bits(x);
  return from_bits<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}
template <bool Flush, class T>
inline T maybe_flushed(T x) {
  if constexpr (Flush && std::is_same_v<T, float>) return flushed(x);
  else return x;
}

// Arithmetic gives the canonical NaN, whatever NaN it was given.
template <class T>
inline T canonical(T x) {
  if constexpr (std::is_same_v<T, float>) return x != x ? from_bits<float>(0x7fffffff) : x;
  else if constexpr (std::is_same_v<T, double>) return x != x ? from_bits<double>(0x7fffffffffffffff) : x;
  else return x;
}

}  // namespace ptx
