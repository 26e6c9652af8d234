// What each instruction does to the lanes of a warp.
#include <immintrin.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "ptx.h"

namespace ptx {

// ---- Lanes of a row. Values of 16 bits lie in words of 32.
template <class T>
struct Lanes {
  using E = std::conditional_t<sizeof(T) == 8, T, std::conditional_t<sizeof(T) == 4, T, uint32_t>>;
  E* p;
  Lanes(Warp& w, int off) : p(row<E>(w, off)) {}
  T operator[](int l) const { return static_cast<T>(p[l]); }
  void set(int l, T v) {
    if constexpr (sizeof(T) == 2) p[l] = static_cast<uint16_t>(v);
    else p[l] = v;
  }
};
template <class T, class F>
inline __attribute__((always_inline)) void each(Warp& w, int d, uint32_t m, F f) {
  Lanes<T> out(w, d);
  if (m == ~0u) {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) out.set(l, f(l));
  } else {
#pragma GCC ivdep
    for (int l = 0; l < 32; ++l) {
      const T v = f(l);
      out.set(l, (m >> l & 1) ? v : out[l]);
    }
  }
}
inline uint32_t& pred(Warp& w, int off) { return *row<uint32_t>(w, off); }
inline void put_pred(Warp& w, int off, uint32_t v, uint32_t m) {
  uint32_t& p = pred(w, off);
  p = (p & ~m) | (v & m);
}
inline int first_lane(uint32_t m) { return __builtin_ctz(m); }

inline float flush(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  if ((b & 0x7f800000u) == 0) b &= 0x80000000u;
  memcpy(&x, &b, 4);
  return x;
}
inline double flush(double x) { return x; }
template <bool Z, class T>
inline T fz(T x) {
  if constexpr (Z && std::is_same_v<T, float>) return flush(x);
  else return x;
}

static float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
static uint16_t float_to_half(float x) {
  return x != x ? 0x7fff : _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static uint16_t float_to_half_rz(float x) {
  return x != x ? 0x7fff : _cvtss_sh(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
static float bf_to_float(uint16_t h) {
  const uint32_t b = static_cast<uint32_t>(h) << 16;
  float x;
  memcpy(&x, &b, 4);
  return x;
}
static uint16_t float_to_bf(float x) {
  if (x != x) return 0x7fff;
  uint32_t b;
  memcpy(&b, &x, 4);
  return static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

// Arithmetic gives the canonical NaN, whatever NaN it was given.
template <class T, bool On>
inline T canonical(T x) {
  if constexpr (std::is_same_v<T, float> && On) {
    const uint32_t b = 0x7fffffff;
    float n;
    memcpy(&n, &b, 4);
    return x != x ? n : x;
  } else if constexpr (std::is_same_v<T, double> && On) {
    const uint64_t b = 0x7fffffffffffffffull;
    double n;
    memcpy(&n, &b, 8);
    return x != x ? n : x;
  } else return x;
}
template <class O>
constexpr bool arithmetic = true;

// ---- Two operands
#define OP2(name, expr)           \
  struct name {                   \
    template <class T>            \
    static inline T f(T a, T b) { \
      return expr;                \
    }                             \
  }
template <class T>
using U = std::make_unsigned_t<T>;
OP2(Xor, a ^ b);
OP2(And, a& b);
OP2(Or, a | b);
struct Add {
  template <class T>
  static inline T f(T a, T b) {
    if constexpr (std::is_integral_v<T>) return T(U<T>(a) + U<T>(b));
    else return a + b;
  }
};
struct Sub {
  template <class T>
  static inline T f(T a, T b) {
    if constexpr (std::is_integral_v<T>) return T(U<T>(a) - U<T>(b));
    else return a - b;
  }
};
struct Mul {
  template <class T>
  static inline T f(T a, T b) {
    if constexpr (std::is_integral_v<T>) return T(uint64_t(a) * uint64_t(b));
    else return a * b;
  }
};
struct MulHi {
  template <class T>
  static inline T f(T a, T b) {
    if constexpr (sizeof(T) == 8) {
      if constexpr (std::is_signed_v<T>) return T((__int128(a) * b) >> 64);
      else return T((static_cast<unsigned __int128>(a) * b) >> 64);
    } else {
      if constexpr (std::is_signed_v<T>) return T((int64_t(a) * b) >> (8 * sizeof(T)));
      else return T((uint64_t(a) * b) >> (8 * sizeof(T)));
    }
  }
};
struct Div {
  template <class T>
  static inline T f(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return T(-1);
      if (std::is_signed_v<T> && b == T(-1)) return T(0 - U<T>(a));
      return T(a / b);
    } else return a / b;
  }
};
struct Rem {
  template <class T>
  static inline T f(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == T(-1)) return 0;
    return T(a % b);
  }
};
template <class T>
inline T from_bits(uint64_t b) {
  T x;
  memcpy(&x, &b, sizeof(T));
  return x;
}
template <class T>
inline uint64_t to_bits(T x) {
  uint64_t b = 0;
  memcpy(&b, &x, sizeof(T));
  return b;
}
struct Min {
  template <class T>
  static inline T f(T a, T b) {
    if constexpr (std::is_integral_v<T>) return a < b ? a : b;
    else return a != a ? b : b != b ? a : a == b ? from_bits<T>(to_bits(a) | to_bits(b)) : a < b ? a : b;
  }
};
struct Max {
  template <class T>
  static inline T f(T a, T b) {
    if constexpr (std::is_integral_v<T>) return a > b ? a : b;
    else return a != a ? b : b != b ? a : a == b ? from_bits<T>(to_bits(a) & to_bits(b)) : a > b ? a : b;
  }
};
struct MinNan {
  template <class T>
  static inline T f(T a, T b) {
    return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : Min::f(a, b);
  }
};
struct MaxNan {
  template <class T>
  static inline T f(T a, T b) {
    return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : Max::f(a, b);
  }
};
struct CopySign;
template <>
constexpr bool arithmetic<CopySign> = false;
struct CopySign {
  template <class T>
  static inline T f(T a, T b) {
    return std::copysign(b, a);
  }
};
template <class T, class O, bool Z = false>
void two(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a), b(w, i.b);
  each<T>(w, i.d, m,
          [&](int l) { return canonical<T, arithmetic<O>>(fz<Z>(T(O::template f<T>(fz<Z>(a[l]), fz<Z>(b[l]))))); });
}
struct Fma {
  template <class T>
  static inline T f(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct Mad {
  template <class T>
  static inline T f(T a, T b, T c) {
    return T(uint64_t(a) * uint64_t(b) + uint64_t(c));
  }
};
struct MadHi {
  template <class T>
  static inline T f(T a, T b, T c) {
    return T(U<T>(MulHi::f<T>(a, b)) + U<T>(c));
  }
};
template <class T, class O, bool Z = false>
void three(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a), b(w, i.b), c(w, i.c);
  each<T>(w, i.d, m, [&](int l) {
    return canonical<T, arithmetic<O>>(fz<Z>(T(O::template f<T>(fz<Z>(a[l]), fz<Z>(b[l]), fz<Z>(c[l])))));
  });
}
template <class S, class D>
void mul_wide(Warp& w, const Inst& i, uint32_t m) {
  Lanes<S> a(w, i.a), b(w, i.b);
  each<D>(w, i.d, m, [&](int l) { return D(D(a[l]) * D(b[l])); });
}
template <class S, class D>
void mad_wide(Warp& w, const Inst& i, uint32_t m) {
  Lanes<S> a(w, i.a), b(w, i.b);
  Lanes<D> c(w, i.c);
  each<D>(w, i.d, m,
          [&](int l) { return D(std::make_unsigned_t<D>(D(a[l]) * D(b[l])) + std::make_unsigned_t<D>(c[l])); });
}
// Saturation of f32 results, after the operation.
static void saturate(Warp& w, const Inst& i, uint32_t m) {
  Lanes<float> d(w, i.d);
  each<float>(w, i.d, m, [&](int l) {
    const float x = d[l];
    return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
  });
}
template <Fn F>
void then_saturate(Warp& w, const Inst& i, uint32_t m) {
  F(w, i, m);
  saturate(w, i, m);
}

// ---- One operand
struct Neg;
struct Abs;
template <>
constexpr bool arithmetic<Neg> = false;
template <>
constexpr bool arithmetic<Abs> = false;
struct Neg {
  template <class T>
  static inline T f(T a) {
    if constexpr (std::is_integral_v<T>) return T(0 - U<T>(a));
    else return -a;
  }
};
struct Abs {
  template <class T>
  static inline T f(T a) {
    if constexpr (std::is_integral_v<T>) return a < 0 ? T(0 - U<T>(a)) : a;
    else return std::fabs(a);
  }
};
struct Not {
  template <class T>
  static inline T f(T a) {
    return T(~a);
  }
};
struct Cnot {
  template <class T>
  static inline T f(T a) {
    return T(a == 0);
  }
};
struct Same {
  template <class T>
  static inline T f(T a) {
    return a;
  }
};
struct Sqrt {
  template <class T>
  static inline T f(T a) {
    return std::sqrt(a);
  }
};
struct Rcp {
  template <class T>
  static inline T f(T a) {
    return T(1) / a;
  }
};
template <class T, class O, bool Z = false>
void one(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, m, [&](int l) { return canonical<T, arithmetic<O>>(fz<Z>(T(O::template f<T>(fz<Z>(a[l]))))); });
}
// Approximations: the C library's, off by the documented error where options.approx says so (1: random sign, 2: +, 3:
// -). The random sign is a function of the argument, as an instruction's error is.
static inline double sign(double x, unsigned salt) {
  if (options.approx == 2) return 1;
  if (options.approx == 3) return -1;
  uint64_t h;
  memcpy(&h, &x, 8);
  h ^= salt;
  h *= 0x9E3779B97F4A7C15ull;
  h ^= h >> 29;
  h *= 0xBF58476D1CE4E5B9ull;
  h ^= h >> 32;
  return (h & 1) ? 1 : -1;
}
static inline float relative(double y, double e, double x = 0, unsigned salt = 0) {
  return static_cast<float>(options.approx ? y * (1 + sign(x, salt) * e) : y);
}
static inline float absolute(double y, double e, double x, unsigned salt) {
  return static_cast<float>(options.approx ? y + sign(x, salt) * e : y);
}
struct Ex2 {
  static float f(float a) { return relative(options.approx ? std::exp2(double(a)) : std::exp2(a), 0x1p-22, a, 1); }
};
struct Lg2 {
  static float f(float a) {
    const double y = options.approx ? std::log2(double(a)) : std::log2(a);
    return a > 0.5f && a < 2.0f ? absolute(y, 0x1p-22, a, 2) : relative(y, 0x1p-22, a, 2);
  }
};
struct Sin {
  static float f(float a) { return absolute(options.approx ? std::sin(double(a)) : std::sin(a), 6.743e-7, a, 3); }
};
struct Cos {
  static float f(float a) { return absolute(options.approx ? std::cos(double(a)) : std::cos(a), 6.743e-7, a, 4); }
};
struct SqrtA {
  static float f(float a) { return relative(std::sqrt(double(a)), 0x1p-23, a, 5); }
};
struct RcpA {
  static float f(float a) { return relative(1.0 / double(a), 0x1p-23, a, 6); }
};
struct RsqrtA {
  static float f(float a) { return relative(1.0 / std::sqrt(double(a)), 0x1p-22, a, 7); }
};
struct Tanh {
  static float f(float a) { return relative(std::tanh(a), 0x1p-11, a, 8); }
};
template <class O, bool Z>
void approx(Warp& w, const Inst& i, uint32_t m) {
  Lanes<float> a(w, i.a), d(w, i.d);
  for (int l = 0; l < 32; ++l)
    if (m >> l & 1) d.set(l, fz<Z>(O::f(fz<Z>(a[l]))));
}
// rcp / rsqrt .approx.ftz.f64: of the upper word alone, the lower word of the result 0.
template <bool R>
void rcp_f64(Warp& w, const Inst& i, uint32_t m) {
  Lanes<double> a(w, i.a);
  each<double>(w, i.d, m, [&](int l) {
    const double x = from_bits<double>(to_bits(a[l]) & 0xffffffff00000000ull);
    double y = x != x                                   ? x
               : std::fabs(x) < 2.2250738585072014e-308 ? std::copysign(INFINITY, x)
               : R                                      ? 1 / std::sqrt(x)
                                                        : 1 / x;
    if (std::fabs(y) < 2.2250738585072014e-308) y = std::copysign(0.0, y);
    if (options.approx) y *= 1 + sign(x, 9) * 0x1p-23;
    return from_bits<double>(to_bits(y) & 0xffffffff00000000ull);
  });
}
template <bool Z>
void div_full(Warp& w, const Inst& i, uint32_t m) {
  Lanes<float> a(w, i.a), b(w, i.b);
  each<float>(w, i.d, m, [&](int l) {
    const double y = double(fz<Z>(a[l])) / double(fz<Z>(b[l]));
    // 2^126 < |b| < 2^128: 0 (NaN where a is infinite)
    return fz<Z>(relative(y, 0x1p-22, y, 10));
  });
}

// ---- Shifts and fields
template <class T, bool Left>
void shift(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a);
  Lanes<uint32_t> b(w, i.b);
  constexpr uint32_t n = sizeof(T) * 8;
  each<T>(w, i.d, m, [&](int l) {
    const uint32_t s = b[l];
    const T x = a[l];
    if (Left) return s >= n ? T(0) : T(U<T>(x) << (s & (n - 1)));
    return s >= n ? T(x < 0 ? -1 : 0) : T(x >> (s & (n - 1)));
  });
}
template <class T>
void bfe(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a);
  Lanes<uint32_t> b(w, i.b), c(w, i.c);
  constexpr uint32_t n = sizeof(T) * 8;
  each<T>(w, i.d, m, [&](int l) {
    const uint32_t pos = b[l] & 255, len = c[l] & 255;
    const U<T> x = U<T>(a[l]);
    if (len == 0) return T(0);
    U<T> v = pos >= n ? 0 : x >> pos;
    if (len < n) v &= (U<T>(1) << len) - 1;
    if constexpr (std::is_signed_v<T>) {
      const uint32_t top = std::min(pos + len - 1, n - 1);
      const bool negative = x >> top & 1;
      if (negative && len < n) v |= ~((U<T>(1) << std::min(len, n - 1)) - 1);
      if (negative && pos + len > n) v |= pos >= n ? ~U<T>(0) : ~((~U<T>(0)) >> pos);
    }
    return T(v);
  });
}
template <class T>
void bfi(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a), b(w, i.b);
  Lanes<uint32_t> c(w, i.c), e(w, i.v[0]);
  constexpr uint32_t n = sizeof(T) * 8;
  each<T>(w, i.d, m, [&](int l) {
    const uint32_t pos = c[l] & 255, len = e[l] & 255;
    if (pos >= n || len == 0) return b[l];
    T mask = (len >= n ? ~T(0) : (T(1) << len) - 1) << pos;
    return T((b[l] & ~mask) | ((a[l] << pos) & mask));
  });
}
static void prmt(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  each<uint32_t>(w, i.d, m, [&](int l) {
    const uint64_t x = a[l] | uint64_t(b[l]) << 32;
    uint32_t r = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t s = c[l] >> (4 * k) & 15;
      uint32_t v = uint32_t(x >> (8 * (s & 7))) & 255;
      if (s & 8) v = v & 128 ? 255 : 0;
      r |= v << (8 * k);
    }
    return r;
  });
}
static void lop3(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  each<uint32_t>(w, i.d, m, [&](int l) {
    uint32_t r = 0, x = a[l], y = b[l], z = c[l];
    for (int k = 0; k < 8; ++k)
      if (i.imm >> k & 1) r |= (k & 4 ? x : ~x) & (k & 2 ? y : ~y) & (k & 1 ? z : ~z);
    return r;
  });
}
template <bool Left, bool Wrap>
void funnel(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  each<uint32_t>(w, i.d, m, [&](int l) {
    const uint64_t x = a[l] | uint64_t(b[l]) << 32;
    const uint32_t n = Wrap ? c[l] & 31 : std::min(c[l], 32u);
    return Left ? uint32_t((n == 32 ? x << 32 : x << n) >> 32) : uint32_t(x >> n);
  });
}
template <class T, int K>
void count(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a);
  each<uint32_t>(w, i.d, m, [&](int l) {
    const uint64_t x = a[l];
    if (K == 0) return uint32_t(__builtin_popcountll(x));
    return uint32_t(x == 0 ? sizeof(T) * 8 : __builtin_clzll(x) - (64 - sizeof(T) * 8));
  });
}
static void brev(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint32_t> a(w, i.a);
  each<uint32_t>(w, i.d, m, [&](int l) {
    uint32_t r = 0;
    for (int k = 0; k < 32; ++k) r |= (a[l] >> k & 1) << (31 - k);
    return r;
  });
}

// ---- Comparisons and selection
enum Cmp { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
template <class T, int K>
inline bool compare(T a, T b) {
  switch (K) {
    case EQ: return a == b;
    case NE: return std::is_integral_v<T> ? a != b : (a < b || a > b);
    case LT: return a < b;
    case LE: return a <= b;
    case GT: return a > b;
    case GE: return a >= b;
    case EQU: return !(a < b || a > b);
    case NEU: return a != b;
    case LTU: return !(a >= b);
    case LEU: return !(a > b);
    case GTU: return !(a <= b);
    case GEU: return !(a < b);
    case NUM: return a == a && b == b;
    default: return a != a || b != b;
  }
}
template <class T, int K, bool Z = false>
void setp(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a), b(w, i.b);
  uint32_t r = 0;
  for (int l = 0; l < 32; ++l) r |= uint32_t(compare<T, K>(fz<Z>(a[l]), fz<Z>(b[l]))) << l;
  uint32_t q = r, other = ~r;
  if (i.c >= 0) {
    uint32_t c = pred(w, i.c);
    if (i.flags & 1) c = ~c;
    auto join = [&](uint32_t x) { return i.mode == 1 ? x & c : i.mode == 2 ? x | c : x ^ c; };
    q = join(r);
    other = join(~r);
  }
  if (i.d >= 0) put_pred(w, i.d, q, m);
  if (i.v[0] >= 0) put_pred(w, i.v[0], other, m);
}
template <class T>
void selp(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a), b(w, i.b);
  uint32_t p = pred(w, i.c);
  if (i.flags & 1) p = ~p;
  each<T>(w, i.d, m, [&](int l) { return (p >> l & 1) ? a[l] : b[l]; });
}
template <int K>
void logic(Warp& w, const Inst& i, uint32_t m) {
  uint32_t a = pred(w, i.a), b = i.b >= 0 ? pred(w, i.b) : 0;
  if (i.flags & 1) a = ~a;
  if (i.flags & 2) b = ~b;
  put_pred(w, i.d, K == 0 ? a & b : K == 1 ? a | b : K == 2 ? a ^ b : K == 3 ? ~a : a, m);
}

// ---- Conversions
template <class T>
inline T low(Warp& w, int off, bool wide, int l) {
  return wide ? T(row<uint64_t>(w, off)[l]) : T(row<uint32_t>(w, off)[l]);
}
template <class S, class D>
void cvt_int(Warp& w, const Inst& i, uint32_t m) {
  auto go = [&](auto ws, auto wd) {
    using RS = std::conditional_t<decltype(ws)::value, uint64_t, uint32_t>;
    using RD = std::conditional_t<decltype(wd)::value, uint64_t, uint32_t>;
    Lanes<RS> a(w, i.a);
    each<RD>(w, i.d, m, [&](int l) {
      S s = S(a[l]);
      D d;
      if (i.flags & 1) {  // .sat
        const __int128 v = s;
        d = v < __int128(std::numeric_limits<D>::min())   ? std::numeric_limits<D>::min()
            : v > __int128(std::numeric_limits<D>::max()) ? std::numeric_limits<D>::max()
                                                          : D(s);
      } else d = D(s);
      // Into a wider register: extended; a register of 16 bits keeps no more.
      RD r = RD(std::conditional_t<std::is_signed_v<D>, int64_t, uint64_t>(d));
      if (!decltype(wd)::value && i.mode == 16) r &= 0xffff;
      return r;
    });
  };
  using T1 = std::true_type;
  using F1 = std::false_type;
  if (i.wide_s) {
    if (i.wide_d) go(T1(), T1());
    else go(T1(), F1());
  } else {
    if (i.wide_d) go(F1(), T1());
    else go(F1(), F1());
  }
}
// Rounding to an integer in floating point: 0 even, 1 to zero, 2 down, 3 up
static inline double integral(double x, int mode) {
  return mode == 0 ? std::nearbyint(x) : mode == 1 ? std::trunc(x) : mode == 2 ? std::floor(x) : std::ceil(x);
}
template <class D>
static D to_integer(double x, int mode, bool nan_low) {
  if (x != x) {
    if (sizeof(D) == 8) return D(uint64_t(1) << 63);
    (void)nan_low;
    return 0;
  }
  x = integral(x, mode);
  const double lo = static_cast<double>(std::numeric_limits<D>::min()),
               hi = std::ldexp(1.0, std::is_signed_v<D> ? int(sizeof(D) * 8 - 1) : int(sizeof(D) * 8));
  if (x < lo) return std::numeric_limits<D>::min();
  if (x >= hi) return std::numeric_limits<D>::max();
  return D(x);
}
static double read_float(Warp& w, const Inst& i, int l) {
  switch (i.ty2) {
    case F16: return half_to_float(low<uint16_t>(w, i.a, i.wide_s, l));
    case BF16: return bf_to_float(low<uint16_t>(w, i.a, i.wide_s, l));
    case F32: {
      float x = row<float>(w, i.a)[l];
      return i.flags & 2 ? flush(x) : x;
    }
    case F64: return row<double>(w, i.a)[l];
    case U8: return low<uint8_t>(w, i.a, i.wide_s, l);
    case S8: return low<int8_t>(w, i.a, i.wide_s, l);
    case U16: return low<uint16_t>(w, i.a, i.wide_s, l);
    case S16: return low<int16_t>(w, i.a, i.wide_s, l);
    case U32: return row<uint32_t>(w, i.a)[l];
    case S32: return row<int32_t>(w, i.a)[l];
    case S64: return static_cast<double>(row<int64_t>(w, i.a)[l]);
    case U64: return static_cast<double>(row<uint64_t>(w, i.a)[l]);
    default: return 0;
  }
}
// f64 -> f32 rounded to odd, so that a second rounding does no harm
static float odd(double x) {
  float y = static_cast<float>(x);
  if (x != x || double(y) == x || std::isinf(y)) return y;
  if (std::fabs(double(y)) > std::fabs(x)) y = std::nextafter(y, 0.0f);
  uint32_t b;
  memcpy(&b, &y, 4);
  b |= 1;
  memcpy(&y, &b, 4);
  return y;
}
// f64 -> f32 with a direction
static float narrow(double x, int mode) {
  float y = static_cast<float>(x);
  if (mode == 1 && std::fabs(double(y)) > std::fabs(x) && !std::isinf(x)) y = std::nextafter(y, 0.0f);
  if (mode == 2 && double(y) > x) y = std::nextafter(y, -INFINITY);
  if (mode == 3 && double(y) < x) y = std::nextafter(y, INFINITY);
  return y;
}
static void cvt_any(Warp& w, const Inst& i, uint32_t m) {
  const bool same_float = (i.flags & 4);
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    double x = read_float(w, i, l);
    if (same_float) x = integral(x, i.mode);
    if (i.flags & 1) x = x > 0 ? (x < 1 ? x : 1.0) : 0.0;
    switch (i.ty) {
      case F64: row<double>(w, i.d)[l] = x; break;
      case F32: {
        float y;
        if (i.ty2 == S64) y = static_cast<float>(row<int64_t>(w, i.a)[l]);
        else if (i.ty2 == U64) y = static_cast<float>(row<uint64_t>(w, i.a)[l]);
        else y = narrow(x, i.mode);
        row<float>(w, i.d)[l] = i.flags & 2 ? flush(y) : y;
        break;
      }
      case F16: row<uint32_t>(w, i.d)[l] = i.mode == 1 ? float_to_half_rz(odd(x)) : float_to_half(odd(x)); break;
      case BF16: row<uint32_t>(w, i.d)[l] = float_to_bf(odd(x)); break;
      case U8: row<uint32_t>(w, i.d)[l] = to_integer<uint8_t>(x, i.mode, false); break;
      case S8:
        row<uint32_t>(w, i.d)[l] =
            uint32_t(int32_t(to_integer<int8_t>(x, i.mode, false))) & (i.flags & 8 ? 0xffff : ~0u);
        break;
      case U16: row<uint32_t>(w, i.d)[l] = to_integer<uint16_t>(x, i.mode, false); break;
      case S16: row<uint32_t>(w, i.d)[l] = uint16_t(to_integer<int16_t>(x, i.mode, false)); break;
      case U32: row<uint32_t>(w, i.d)[l] = to_integer<uint32_t>(x, i.mode, false); break;
      case S32: row<int32_t>(w, i.d)[l] = to_integer<int32_t>(x, i.mode, false); break;
      case U64: row<uint64_t>(w, i.d)[l] = to_integer<uint64_t>(x, i.mode, false); break;
      case S64: row<int64_t>(w, i.d)[l] = to_integer<int64_t>(x, i.mode, false); break;
      default: break;
    }
  }
}
template <class S, class D>
void cvt_plain(Warp& w, const Inst& i, uint32_t m) {
  Lanes<S> a(w, i.a);
  each<D>(w, i.d, m, [&](int l) { return D(a[l]); });
}
static void sat_f32(Warp& w, const Inst& i, uint32_t m) {
  Lanes<float> a(w, i.a);
  each<float>(w, i.d, m, [&](int l) {
    const float x = a[l];
    return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
  });
}
static void half_f32(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint16_t> a(w, i.a);
  each<float>(w, i.d, m, [&](int l) { return half_to_float(a[l]); });
}
static void bf_f32(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint16_t> a(w, i.a);
  each<float>(w, i.d, m, [&](int l) { return bf_to_float(a[l]); });
}
template <bool Half>
void f32_pair(Warp& w, const Inst& i, uint32_t m) {
  Lanes<float> a(w, i.a), b(w, i.b);
  each<uint32_t>(w, i.d, m, [&](int l) {
    return Half ? uint32_t(float_to_half(a[l])) << 16 | float_to_half(b[l])
                : uint32_t(float_to_bf(a[l])) << 16 | float_to_bf(b[l]);
  });
}

// ---- Half precision arithmetic: through float, rounded once more; exact for + - *, and fma through double.
enum { H_ADD, H_SUB, H_MUL, H_FMA, H_MIN, H_MAX, H_NEG, H_ABS, H_EX2, H_TANH };
template <bool Half, int K>
inline uint16_t half_op(uint16_t a, uint16_t b, uint16_t c) {
  auto in = [](uint16_t h) { return Half ? half_to_float(h) : bf_to_float(h); };
  auto out = [](float x) { return Half ? float_to_half(x) : float_to_bf(x); };
  if (K == H_NEG) return a ^ 0x8000;
  if (K == H_ABS) return a & 0x7fff;
  const float x = in(a), y = in(b);
  if (K == H_ADD) return out(x + y);
  if (K == H_SUB) return out(x - y);
  if (K == H_MUL) return out(x * y);
  if (K == H_FMA) {  // the double sum rounded to odd in float, then once
    const double p = double(x) * double(y), z = in(c), s = p + z;
    float r = float(s);
    const double e = (p - (s - (s - p))) + (z - (s - p));
    uint32_t bits;
    memcpy(&bits, &r, 4);
    if ((double(r) != s || e != 0) && !(bits & 1) && std::isfinite(r)) {
      const double d = s - double(r) + e;
      r = d > 0 ? std::nextafter(r, INFINITY) : d < 0 ? std::nextafter(r, -INFINITY) : r;
    }
    return out(r);
  }
  if (K == H_MIN) return out(Min::f(x, y));
  if (K == H_MAX) return out(Max::f(x, y));
  if (K == H_EX2) return out(Ex2::f(x));
  return out(std::tanh(x));
}
template <bool Half, int K, bool Pair>
void half(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b >= 0 ? i.b : i.a), c(w, i.c >= 0 ? i.c : i.a);
  each<uint32_t>(w, i.d, m, [&](int l) {
    uint32_t r = half_op<Half, K>(uint16_t(a[l]), uint16_t(b[l]), uint16_t(c[l]));
    if (Pair) r |= uint32_t(half_op<Half, K>(uint16_t(a[l] >> 16), uint16_t(b[l] >> 16), uint16_t(c[l] >> 16))) << 16;
    return r;
  });
}

// ---- Pairs of floats in registers of 64 bits (sm_100)
template <class O, bool Z>
void pair_of_floats(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint64_t> a(w, i.a), b(w, i.b), c(w, i.c >= 0 ? i.c : i.a);
  auto half = [&](uint64_t x, uint64_t y, uint64_t z) {
    return uint64_t(uint32_t(
        to_bits(fz<Z>(O::f(fz<Z>(from_bits<float>(x)), fz<Z>(from_bits<float>(y)), fz<Z>(from_bits<float>(z)))))));
  };
  each<uint64_t>(w, i.d, m,
                 [&](int l) { return half(a[l], b[l], c[l]) | half(a[l] >> 32, b[l] >> 32, c[l] >> 32) << 32; });
}
struct PairAdd {
  static float f(float a, float b, float) { return a + b; }
};
struct PairSub {
  static float f(float a, float b, float) { return a - b; }
};
struct PairMul {
  static float f(float a, float b, float) { return a * b; }
};
struct PairFma {
  static float f(float a, float b, float c) { return std::fma(a, b, c); }
};

// ---- Moves
template <class T>
void mov(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, m, [&](int l) { return a[l]; });
}
static void mov_pred(Warp& w, const Inst& i, uint32_t m) {
  put_pred(w, i.d, i.flags & 1 ? ~pred(w, i.a) : pred(w, i.a), m);
}
// Packs `vec` parts of size bits into d; unpacks the other way.
static void pack(Warp& w, const Inst& i, uint32_t m) {
  const int bits = i.mode;
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    uint64_t v = 0;
    for (int k = 0; k < i.vec; ++k) {
      uint64_t p = row<uint32_t>(w, i.v[k])[l];
      if (bits == 16) p &= 0xffff;
      v |= p << (bits * k);
    }
    if (i.wide_d) row<uint64_t>(w, i.d)[l] = v;
    else row<uint32_t>(w, i.d)[l] = uint32_t(v);
  }
}
static void unpack(Warp& w, const Inst& i, uint32_t m) {
  const int bits = i.mode;
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    const uint64_t v = i.wide_s ? row<uint64_t>(w, i.a)[l] : row<uint32_t>(w, i.a)[l];
    for (int k = 0; k < i.vec; ++k)
      if (i.v[k] >= 0)
        row<uint32_t>(w, i.v[k])[l] = uint32_t(v >> (bits * k)) & (bits == 16 ? 0xffff : bits == 8 ? 0xff : ~0u);
  }
}
static void thread_address(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint64_t> a(w, i.a);
  each<uint64_t>(w, i.d, m, [&](int l) { return a[l] + uint64_t(i.imm); });
}
static void parameter_address(Warp& w, const Inst& i, uint32_t m) {
  each<uint64_t>(w, i.d, m, [&](int) { return reinterpret_cast<uint64_t>(w.block->params) + uint64_t(i.imm); });
}
static void to_shared_window(Warp& w, const Inst& i, uint32_t m) {  // cvta.shared
  Lanes<uint64_t> a(w, i.a);
  each<uint64_t>(w, i.d, m, [&](int l) { return a[l] + reinterpret_cast<uint64_t>(w.block->shared.data()); });
}
static void from_shared_window(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint64_t> a(w, i.a);
  each<uint64_t>(w, i.d, m, [&](int l) { return a[l] - reinterpret_cast<uint64_t>(w.block->shared.data()); });
}

// ---- Exchange between lanes
static void shfl(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c), d(w, i.d);
  uint32_t out[32], p = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    const uint32_t bval = b[l] & 31, cval = c[l] & 31, segment = c[l] >> 8 & 31;
    const uint32_t max_lane = (l & segment) | (cval & ~segment), min_lane = l & segment;
    int j;
    bool in;
    switch (i.mode) {
      case 0:
        j = l - int(bval);
        in = j >= int(max_lane);
        break;  // up
      case 1:
        j = l + int(bval);
        in = j <= int(max_lane);
        break;  // down
      case 2:
        j = l ^ int(bval);
        in = j <= int(max_lane);
        break;  // bfly
      default:
        j = int(min_lane | (bval & ~segment));
        in = j <= int(max_lane);
        break;
    }
    if (!in) j = l;
    if (!(m >> j & 1)) fail(w, i, l, "shfl reads lane " + std::to_string(j) + ", which is not active");
    out[l] = a[j];
    p |= uint32_t(in) << l;
  }
  for (int l = 0; l < 32; ++l)
    if (m >> l & 1) d.set(l, out[l]);
  if (i.v[0] >= 0) put_pred(w, i.v[0], p, m);
}
static void vote(Warp& w, const Inst& i, uint32_t m) {
  uint32_t p = pred(w, i.a);
  if (i.flags & 1) p = ~p;
  const uint32_t members = row<uint32_t>(w, i.b)[first_lane(m)] & m;
  p &= members;
  if (i.mode == 3) {
    each<uint32_t>(w, i.d, m, [&](int) { return p; });
    return;
  }
  const bool r = i.mode == 0 ? p == members : i.mode == 1 ? p != 0 : p == 0 || p == members;
  put_pred(w, i.d, r ? ~0u : 0, m);
}
template <class T, class O>
void redux(Warp& w, const Inst& i, uint32_t m) {
  Lanes<T> a(w, i.a);
  T r{};
  bool any = false;
  for (int l = 0; l < 32; ++l)
    if (m >> l & 1) {
      r = any ? O::template f<T>(r, a[l]) : a[l];
      any = true;
    }
  each<T>(w, i.d, m, [&](int) { return r; });
}
static void activemask(Warp& w, const Inst& i, uint32_t m) {
  each<uint32_t>(w, i.d, m, [&](int) { return m; });
}
static void elect(Warp& w, const Inst& i, uint32_t m) {
  if (i.d >= 0) each<uint32_t>(w, i.d, m, [&](int) { return uint32_t(first_lane(m)); });
  if (i.v[0] >= 0) put_pred(w, i.v[0], 1u << first_lane(m), m);
}
static void nothing(Warp&, const Inst&, uint32_t) {}
static void warp_sync(Warp& w, const Inst&, uint32_t m) {
  if (m == w.live) ++w.syncs;
}

void load(Warp& w, const Inst& i, uint32_t m);  // memory.cpp
void store(Warp& w, const Inst& i, uint32_t m);
void load_param(Warp& w, const Inst& i, uint32_t m);
void load_row(Warp& w, const Inst& i, uint32_t m);
void store_row(Warp& w, const Inst& i, uint32_t m);
void ldmatrix(Warp& w, const Inst& i, uint32_t m);
void stmatrix(Warp& w, const Inst& i, uint32_t m);
void cp_async(Warp& w, const Inst& i, uint32_t m);
void cp_commit(Warp& w, const Inst& i, uint32_t m);
void cp_wait(Warp& w, const Inst& i, uint32_t m);
static void dmma(Warp& w, const Inst& i, uint32_t m) {
  if (m != ~0u) fail(w, i, 0, "mma in a part of a warp");
  const double *a = row<double>(w, i.v[2]), *b = row<double>(w, i.v[3]);
  double d[2][32];
  for (int l = 0; l < 32; ++l)
    for (int k = 0; k < 2; ++k) {
      double sum = row<double>(w, i.v[4 + k])[l];
      for (int j = 0; j < 4; ++j) sum = std::fma(a[l / 4 * 4 + j], b[(l % 4 * 2 + k) * 4 + j], sum);
      d[k][l] = sum;
    }
  for (int k = 0; k < 2; ++k) memcpy(row<double>(w, i.v[k]), d[k], sizeof d[k]);
}
// m16n8k4, k8, k16 of f64: rows D 4, A k/2, B k/4, C 4
static void dmma16(Warp& w, const Inst& i, uint32_t m) {
  if (m != ~0u) fail(w, i, 0, "mma in a part of a warp");
  const int K = i.mode;
  double A[16][16], B[16][8], D[16][8];
  for (int l = 0; l < 32; ++l) {
    for (int r = 0; r < K / 2; ++r) A[l / 4 + 8 * (r & 1)][r / 2 * 4 + l % 4] = row<double>(w, i.v[4 + r])[l];
    for (int r = 0; r < K / 4; ++r) B[r * 4 + l % 4][l / 4] = row<double>(w, i.v[4 + K / 2 + r])[l];
    for (int r = 0; r < 4; ++r)
      D[l / 4 + 8 * (r / 2)][l % 4 * 2 + (r & 1)] = row<double>(w, i.v[4 + K / 2 + K / 4 + r])[l];
  }
  for (int y = 0; y < 16; ++y)
    for (int x = 0; x < 8; ++x)
      for (int k = 0; k < K; ++k) D[y][x] = std::fma(A[y][k], B[k][x], D[y][x]);
  for (int l = 0; l < 32; ++l)
    for (int r = 0; r < 4; ++r) row<double>(w, i.v[r])[l] = D[l / 4 + 8 * (r / 2)][l % 4 * 2 + (r & 1)];
}
// Comparison of both halves: p of the lower, q of the upper.
template <bool Half>
void setp_pair(Warp& w, const Inst& i, uint32_t m) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b);
  uint32_t r[2] = {0, 0};
  auto in = [](uint16_t h) { return Half ? half_to_float(h) : bf_to_float(h); };
  for (int l = 0; l < 32; ++l)
    for (int h = 0; h < 2; ++h) {
      const float x = in(uint16_t(a[l] >> (16 * h))), y = in(uint16_t(b[l] >> (16 * h)));
      const bool c = i.mode == 0    ? x == y
                     : i.mode == 1  ? (x < y || x > y)
                     : i.mode == 2  ? x < y
                     : i.mode == 3  ? x <= y
                     : i.mode == 4  ? x > y
                     : i.mode == 5  ? x >= y
                     : i.mode == 7  ? x != y
                     : i.mode == 12 ? x == x && y == y
                                    : x != x || y != y;
      r[h] |= uint32_t(c) << l;
    }
  put_pred(w, i.d, r[0], m);
  if (i.v[0] >= 0) put_pred(w, i.v[0], r[1], m);
}

// ---- The function of an instruction
#define INTS(F)                   \
  switch (ty) {                   \
    case U16:                     \
    case B16: return F(uint16_t); \
    case S16: return F(int16_t);  \
    case U32:                     \
    case B32: return F(uint32_t); \
    case S32: return F(int32_t);  \
    case U64:                     \
    case B64: return F(uint64_t); \
    case S64: return F(int64_t);  \
    default: return nullptr;      \
  }
#define BITS(F)                  \
  switch (bits_of(ty)) {         \
    case 16: return F(uint16_t); \
    case 32: return F(uint32_t); \
    case 64: return F(uint64_t); \
    default: return nullptr;     \
  }

template <class O>
static Fn int2(Ty ty) {
#define F(T) &two<T, O>
  INTS(F)
#undef F
}
template <class O>
static Fn bit2(Ty ty) {
#define F(T) &two<T, O>
  BITS(F)
#undef F
}
template <class O>
static Fn float2(Ty ty, bool z) {
  return ty == F64 ? &two<double, O> : ty == F32 ? (z ? &two<float, O, true> : &two<float, O>) : nullptr;
}
template <class O>
static Fn int3(Ty ty) {
#define F(T) &three<T, O>
  INTS(F)
#undef F
}
template <class O>
static Fn int1(Ty ty) {
#define F(T) &one<T, O>
  INTS(F)
#undef F
}
template <class O>
static Fn bit1(Ty ty) {
#define F(T) &one<T, O>
  BITS(F)
#undef F
}
template <class O>
static Fn float1(Ty ty, bool z) {
  return ty == F64 ? &one<double, O> : ty == F32 ? (z ? &one<float, O, true> : &one<float, O>) : nullptr;
}
template <bool L>
static Fn shift_of(Ty ty) {
#define F(T) &shift<T, L>
  INTS(F)
#undef F
}
template <int K>
static Fn setp_of(Ty ty, bool z) {
  if (ty == F32) return z ? &setp<float, K, true> : &setp<float, K>;
  if (ty == F64) return &setp<double, K>;
#define F(T) &setp<T, K>
  INTS(F)
#undef F
}
static Fn setp_of(const std::string& cmp, Ty ty, bool z) {
  const bool is_float = ty == F32 || ty == F64;
  static const char* names[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
  int k = 0;
  while (k < 14 && cmp != names[k]) ++k;
  if (cmp == "lo") k = LT;
  if (cmp == "ls") k = LE;
  if (cmp == "hi") k = GT;
  if (cmp == "hs") k = GE;
  (void)is_float;
  switch (k) {
    case 0: return setp_of<0>(ty, z);
    case 1: return setp_of<1>(ty, z);
    case 2: return setp_of<2>(ty, z);
    case 3: return setp_of<3>(ty, z);
    case 4: return setp_of<4>(ty, z);
    case 5: return setp_of<5>(ty, z);
    case 6: return setp_of<6>(ty, z);
    case 7: return setp_of<7>(ty, z);
    case 8: return setp_of<8>(ty, z);
    case 9: return setp_of<9>(ty, z);
    case 10: return setp_of<10>(ty, z);
    case 11: return setp_of<11>(ty, z);
    case 12: return setp_of<12>(ty, z);
    case 13: return setp_of<13>(ty, z);
    default: return nullptr;
  }
}
template <class S>
static Fn cvt_to(Ty d) {
  switch (d) {
    case U8:
    case B8: return &cvt_int<S, uint8_t>;
    case S8: return &cvt_int<S, int8_t>;
    case U16: return &cvt_int<S, uint16_t>;
    case S16: return &cvt_int<S, int16_t>;
    case U32: return &cvt_int<S, uint32_t>;
    case S32: return &cvt_int<S, int32_t>;
    case U64: return &cvt_int<S, uint64_t>;
    case S64: return &cvt_int<S, int64_t>;
    default: return nullptr;
  }
}
static Fn cvt_ints(Ty s, Ty d) {
  switch (s) {
    case U8:
    case B8: return cvt_to<uint8_t>(d);
    case S8: return cvt_to<int8_t>(d);
    case U16: return cvt_to<uint16_t>(d);
    case S16: return cvt_to<int16_t>(d);
    case U32: return cvt_to<uint32_t>(d);
    case S32: return cvt_to<int32_t>(d);
    case U64: return cvt_to<uint64_t>(d);
    case S64: return cvt_to<int64_t>(d);
    default: return nullptr;
  }
}
static bool is_int(Ty t) {
  return t != NONE && t != F16 && t != BF16 && t != F32 && t != F64 && t != F16X2 && t != BF16X2;
}
template <bool Half, bool Pair>
static Fn half_of(int k) {
  switch (k) {
    case 0: return &half<Half, 0, Pair>;
    case 1: return &half<Half, 1, Pair>;
    case 2: return &half<Half, 2, Pair>;
    case 3: return &half<Half, 3, Pair>;
    case 4: return &half<Half, 4, Pair>;
    case 5: return &half<Half, 5, Pair>;
    case 6: return &half<Half, 6, Pair>;
    case 7: return &half<Half, 7, Pair>;
    case 8: return &half<Half, 8, Pair>;
    default: return &half<Half, 9, Pair>;
  }
}
static Fn half_of(Ty t, int k) {
  return t == F16      ? half_of<true, false>(k)
         : t == BF16   ? half_of<false, false>(k)
         : t == F16X2  ? half_of<true, true>(k)
         : t == BF16X2 ? half_of<false, true>(k)
                       : nullptr;
}

bool select(const Statement& s, Inst& i, Function&, Rows& rows) {
  const auto& op = s.op;
  const auto& o = s.operands;
  const std::string& name = op[0];
  auto has = [&](const char* w) { return std::find(op.begin() + 1, op.end(), w) != op.end(); };
  std::vector<Ty> types;
  for (size_t k = 1; k < op.size(); ++k)
    if (Ty t = type_of(op[k])) types.push_back(t);
  const Ty ty = types.empty() ? NONE : types[0];
  const bool z = has("ftz");
  auto use = [&](const Operand& x, Ty t) -> int {
    if (x.kind == Operand::REG) return x.row;
    if (x.kind == Operand::SINK) return -1;
    if (x.kind != Operand::IMM) throw std::runtime_error("operand " + x.text + " of " + name);
    uint64_t v = x.value;
    const int bits = bits_of(t);
    if (x.is_float) {
      if (bits == 32) {
        double d;
        memcpy(&d, &v, 8);
        float fl = float(d);
        uint32_t b;
        memcpy(&b, &fl, 4);
        if (x.text.size() == 10 && (x.text[1] == 'f' || x.text[1] == 'F')) b = uint32_t(x.offset);
        v = b;
      }
    } else if (bits == 32) v &= 0xffffffffu;
    else if (bits == 16) v &= 0xffff;
    return rows.constant(v, bits);
  };
  auto abc = [&](Ty t) {
    i.d = use(o[0], t);
    i.a = use(o[1], t);
    if (o.size() > 2) i.b = use(o[2], t);
    if (o.size() > 3) i.c = use(o[3], t);
  };
  auto with = [&](Fn fn) {
    i.fn = fn;
    return fn != nullptr;
  };
  i.ty = ty;

  if (name == "ret" || name == "exit") {
    i.ctl = RET;
    return true;
  }
  if (name == "trap") {
    i.ctl = TRAP;
    return true;
  }
  if ((name == "bar" || name == "barrier") && has("warp")) {
    i.ctl = SYNC;
    i.b = use(o[0], B32);
    return with(&warp_sync);
  }
  if (name == "bar" || name == "barrier") {
    if (!(o.size() == 1 && o[0].kind == Operand::IMM && o[0].value == 0) &&
        !(o.size() == 2 && o[0].kind == Operand::IMM && o[0].value == 0))
      return false;
    i.ctl = BAR;
    return true;
  }
  if (name == "membar" || name == "fence" || name == "griddepcontrol" || name == "discard" || name == "prefetch" ||
      name == "nanosleep")
    return with(&nothing);
  if (name == "mov") {
    if (o[0].kind == Operand::VECTOR && o[1].kind == Operand::VECTOR) return false;
    if (o[1].kind == Operand::VECTOR) {
      i.vec = uint8_t(o[1].parts.size());
      i.mode = bits_of(ty) / i.vec;
      i.wide_d = o[0].bits == 64;
      i.d = o[0].row;
      for (int k = 0; k < i.vec; ++k) i.v[k] = use(o[1].parts[k], i.mode == 32 ? B32 : B16);
      return with(&pack);
    }
    if (o[0].kind == Operand::VECTOR) {
      i.vec = uint8_t(o[0].parts.size());
      i.mode = bits_of(ty) / i.vec;
      i.wide_s = bits_of(ty) == 64;
      i.a = use(o[1], ty);
      for (int k = 0; k < i.vec; ++k) i.v[k] = use(o[0].parts[k], B32);
      return with(&unpack);
    }
    i.d = o[0].row;
    if (o[1].kind == Operand::SYMBOL) {
      i.imm = o[1].offset;
      if (o[1].bits == -2) return with(&parameter_address);
      if (o[1].bits == -4) {
        i.a = o[1].row;
        return with(&thread_address);
      }
      return false;
    }
    if (ty == PRED) {
      i.a = use(o[1], PRED);
      i.flags = o[1].not_;
      return with(&mov_pred);
    }
    i.a = use(o[1], ty);
    return with(bits_of(ty) == 64 ? &mov<uint64_t> : &mov<uint32_t>);
  }
  if (name == "cvta") {
    i.d = o[0].row;
    const bool to = has("to");
    if (o[1].kind == Operand::SYMBOL && o[1].bits == -2) {
      i.imm = o[1].offset;
      return with(&parameter_address);
    }
    if (o[1].kind == Operand::SYMBOL && o[1].bits == -4) {
      i.imm = o[1].offset;
      i.a = o[1].row;
      return with(&thread_address);
    }
    i.a = use(o[1], ty);
    if (has("shared")) return with(to ? &from_shared_window : &to_shared_window);
    return with(&mov<uint64_t>);
  }
  if (name == "ld" || name == "st") {
    const bool ld = name == "ld";
    const Operand& value = o[ld ? 0 : 1];
    const Operand& address = o[ld ? 1 : 0];
    i.space = has("global")                                               ? GLOBAL
              : has("shared") || has("shared::cta")                       ? SHARED
              : has("local")                                              ? LOCAL
              : has("param") || has("param::entry") || has("param::func") ? PARAM
              : has("const")                                              ? CONST
                                                                          : GENERIC;
    i.size = uint8_t(bits_of(ty) / 8);
    i.vec = has("v2") ? 2 : has("v4") ? 4 : has("v8") ? 8 : 1;
    std::vector<Operand> values = value.kind == Operand::VECTOR ? value.parts : std::vector<Operand>{value};
    if (values.size() != i.vec) return false;
    int dest_bits = 0;
    for (int k = 0; k < i.vec; ++k) {
      i.v[k] = use(values[k], ty);
      if (values[k].kind == Operand::REG) {
        dest_bits = values[k].bits;
        if (dest_bits == 64) i.wide_d = true;
      }
    }
    if (!i.wide_d && bits_of(ty) == 64) i.wide_d = true;
    i.mode = dest_bits;
    i.imm = address.offset;
    const Operand& base = address.parts[0];
    if (base.kind == Operand::SYMBOL && base.bits == -1) {
      i.a = base.row;
      i.size = 0;
      return with(ld ? &load_row : &store_row);
    }
    if (base.kind == Operand::SYMBOL && base.bits == -2) {
      i.imm += base.offset;
      return ld && with(&load_param);
    }
    if (base.kind == Operand::SYMBOL && base.bits == -4) {
      i.imm += base.offset;
      i.a = base.row;
      i.wide_s = true;
      i.space = LOCAL;
      return with(ld ? &load : &store);
    }
    if (base.kind == Operand::IMM) {
      i.wide_s = true;
      i.a = rows.constant(base.value, 64);
    } else {
      i.a = base.row;
      i.wide_s = base.bits == 64;
    }
    return with(ld ? &load : &store);
  }
  if (name == "setp") {
    const size_t n = op.size();
    (void)n;
    if (o[0].kind == Operand::PAIR) {
      i.d = use(o[0].parts[0], PRED);
      i.v[0] = use(o[0].parts[1], PRED);
    } else i.d = use(o[0], PRED);
    i.a = use(o[1], ty);
    i.b = use(o[2], ty);
    if (o.size() > 3) {
      i.c = use(o[3], PRED);
      i.flags = o[3].not_;
      i.mode = has("and") ? 1 : has("or") ? 2 : 3;
    }
    if (ty == F16X2 || ty == BF16X2 || ty == F16 || ty == BF16) {
      static const char* names[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                    "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
      for (i.mode = 0; i.mode < 14 && op[1] != names[i.mode];) ++i.mode;
      if (o.size() > 3 || i.mode == 14 || i.mode == 6 || (i.mode >= 8 && i.mode < 12)) return false;
      return with(ty == F16X2 || ty == F16 ? &setp_pair<true> : &setp_pair<false>);
    }
    return with(setp_of(op[1], ty, z));
  }
  if (name == "selp") {
    i.d = use(o[0], ty);
    i.a = use(o[1], ty);
    i.b = use(o[2], ty);
    i.c = use(o[3], PRED);
    i.flags = o[3].not_;
    return with(bits_of(ty) == 64 ? &selp<uint64_t> : &selp<uint32_t>);
  }
  if (ty == PRED) {
    i.d = use(o[0], ty);
    i.a = use(o[1], ty);
    i.flags = o[1].not_;
    if (o.size() > 2) {
      i.b = use(o[2], ty);
      i.flags |= o[2].not_ * 2;
    }
    if (name == "vote") {
      i.b = use(o[2], B32);
      i.flags = o[1].not_;
      i.ctl = SYNC;
      i.mode = has("all") ? 0 : has("any") ? 1 : 2;
      return with(&vote);
    }
    return with(name == "and"   ? &logic<0>
                : name == "or"  ? &logic<1>
                : name == "xor" ? &logic<2>
                : name == "not" ? &logic<3>
                                : nullptr);
  }
  if (name == "vote") {
    i.d = use(o[0], B32);
    i.a = use(o[1], PRED);
    i.flags = o[1].not_;
    i.b = use(o[2], B32);
    i.ctl = SYNC;
    i.mode = 3;
    return with(&vote);
  }
  if (name == "shfl") {
    i.ctl = SYNC;
    i.mode = has("up") ? 0 : has("down") ? 1 : has("bfly") ? 2 : 3;
    if (o[0].kind == Operand::PAIR) {
      i.d = use(o[0].parts[0], B32);
      i.v[0] = use(o[0].parts[1], PRED);
    } else i.d = use(o[0], B32);
    i.a = use(o[1], B32);
    i.b = use(o[2], B32);
    i.c = use(o[3], B32);
    i.target = use(o[4], B32);
    return with(&shfl);
  }
  if (name == "redux") {
    i.ctl = SYNC;
    i.d = use(o[0], ty);
    i.a = use(o[1], ty);
    i.b = use(o[2], B32);
    if (has("add")) return with(&redux<uint32_t, Add>);
    if (has("min"))
      return with(ty == S32    ? &redux<int32_t, Min>
                  : ty == U32  ? &redux<uint32_t, Min>
                  : has("NaN") ? &redux<float, MinNan>
                               : &redux<float, Min>);
    if (has("max"))
      return with(ty == S32    ? &redux<int32_t, Max>
                  : ty == U32  ? &redux<uint32_t, Max>
                  : has("NaN") ? &redux<float, MaxNan>
                               : &redux<float, Max>);
    return with(has("and") ? &redux<uint32_t, And> : has("or") ? &redux<uint32_t, Or> : &redux<uint32_t, Xor>);
  }
  if (name == "elect") {
    i.ctl = SYNC;
    if (o[0].kind == Operand::PAIR) {
      i.d = use(o[0].parts[0], B32);
      i.v[0] = use(o[0].parts[1], PRED);
    }
    i.b = use(o[1], B32);
    return with(&elect);
  }
  if (name == "activemask") {
    i.d = use(o[0], B32);
    return with(&activemask);
  }
  if (name == "ldmatrix" || name == "stmatrix") {
    const bool ld = name[0] == 'l';
    const Operand& r = o[ld ? 0 : 1];
    const Operand& address = o[ld ? 1 : 0];
    std::vector<Operand> values = r.kind == Operand::VECTOR ? r.parts : std::vector<Operand>{r};
    i.vec = uint8_t(values.size());
    for (int k = 0; k < i.vec; ++k) i.v[k] = use(values[k], B32);
    i.flags = has("trans");
    i.imm = address.offset;
    i.size = 4;
    i.space = SHARED;
    i.ctl = SYNC;
    i.b = rows.constant(~0u, 32);
    const Operand& base = address.parts[0];
    if (base.kind == Operand::IMM) {
      i.wide_s = true;
      i.a = rows.constant(base.value, 64);
    } else {
      i.a = base.row;
      i.wide_s = base.bits == 64;
    }
    return with(ld ? &ldmatrix : &stmatrix);
  }
  if (name == "cp" && has("async")) {
    if (has("commit_group")) return with(&cp_commit);
    if (has("wait_all")) {
      i.mode = 0;
      return with(&cp_wait);
    }
    if (has("wait_group")) {
      i.mode = int(o[0].value);
      return with(&cp_wait);
    }
    if (has("bulk") || has("mbarrier")) return false;
    auto base = [&](const Operand& x, int& at, int64_t& off, bool& wide) {
      off = x.offset;
      const Operand& b = x.parts[0];
      if (b.kind == Operand::IMM) {
        wide = true;
        at = rows.constant(b.value, 64);
      } else {
        at = b.row;
        wide = b.bits == 64;
      }
    };
    int64_t off2;
    bool wide2;
    base(o[0], i.a, i.imm, i.wide_s);
    base(o[1], i.b, off2, wide2);
    if (!wide2) return false;
    i.v[1] = int(off2);
    i.vec = uint8_t(o[2].value);
    i.c = o.size() > 3 ? use(o[3], B32) : -1;
    i.mode = i.vec;
    return with(&cp_async);
  }
  if (name == "mma") {
    const int K = has("m16n8k4") ? 4 : has("m16n8k8") ? 8 : has("m16n8k16") ? 16 : 0;
    if (K && ty == F64) {
      i.ctl = SYNC;
      i.target = rows.constant(~0u, 32);
      i.mode = K;
      int n = 0;
      for (int q = 0; q < 4; ++q)
        for (const Operand& x : o[q].parts) i.v[n++] = use(x, F64);
      return n == 8 + K / 2 + K / 4 && with(&dmma16);
    }
    // m8n8k4 of f64: D, A, B, C
    if (!(has("m8n8k4") && ty == F64 && o[0].parts.size() == 2)) return false;
    i.ctl = SYNC;
    i.target = rows.constant(~0u, 32);
    for (int k = 0; k < 2; ++k) {
      i.v[k] = o[0].parts[k].row;
      i.v[4 + k] = use(o[3].parts[k], F64);
    }
    i.v[2] = use(o[1].parts[0], F64);
    i.v[3] = use(o[2].parts[0], F64);
    return with(&dmma);
  }
  if (name == "cvt") {
    const Ty d = types[0], sty = types.back();
    i.ty = d;
    i.ty2 = sty;
    i.d = use(o[0], d);
    i.wide_d = o[0].bits == 64;
    if (d == F16X2 || d == BF16X2) {
      if (sty != F32 || has("rz") || has("relu")) return false;
      i.a = use(o[1], F32);
      i.b = use(o[2], F32);
      return with(d == F16X2 ? &f32_pair<true> : &f32_pair<false>);
    }
    i.a = use(o[1], sty);
    i.wide_s = o[1].kind == Operand::REG ? o[1].bits == 64 : bits_of(sty) == 64;
    if (is_int(d) && is_int(sty)) {
      i.flags = has("sat");
      i.mode = o[0].bits;
      return with(cvt_ints(sty, d));
    }
    if (d == F32 && sty == F16 && !has("sat")) return with(&half_f32);
    if (d == F32 && sty == BF16 && !has("sat")) return with(&bf_f32);
    if (d == F32 && sty == F32 && has("sat") && !has("rni") && !z) return with(&sat_f32);
    if (!has("sat") && !z && !has("rz") && !has("rm") && !has("rp")) {
      if (d == F64 && sty == F32) return with(&cvt_plain<float, double>);
      if (d == F32 && sty == F64 && has("rn")) return with(&cvt_plain<double, float>);
      if (d == F32 && sty == S32) return with(&cvt_plain<int32_t, float>);
      if (d == F32 && sty == U32) return with(&cvt_plain<uint32_t, float>);
      if (d == F64 && sty == S32) return with(&cvt_plain<int32_t, double>);
      if (d == F64 && sty == U32) return with(&cvt_plain<uint32_t, double>);
      if (d == F64 && sty == S64) return with(&cvt_plain<int64_t, double>);
      if (d == F64 && sty == U64) return with(&cvt_plain<uint64_t, double>);
    }
    const bool to_integral = has("rni") || has("rzi") || has("rmi") || has("rpi");
    i.mode = has("rni") || has("rn")   ? 0
             : has("rzi") || has("rz") ? 1
             : has("rmi") || has("rm") ? 2
             : has("rpi") || has("rp") ? 3
                                       : 0;
    i.flags = (has("sat") && !is_int(d) ? 1 : 0) | (z ? 2 : 0) | (to_integral && !is_int(d) ? 4 : 0) |
              (o[0].bits == 16 ? 8 : 0);
    return with(&cvt_any);
  }
  if (name == "shl" || name == "shr") {
    i.d = use(o[0], ty);
    i.a = use(o[1], ty);
    i.b = use(o[2], U32);
    return with(name == "shl" ? shift_of<true>(ty) : shift_of<false>(ty));
  }
  if (name == "bfe") {
    i.d = use(o[0], ty);
    i.a = use(o[1], ty);
    i.b = use(o[2], U32);
    i.c = use(o[3], U32);
    return with(ty == U32 ? &bfe<uint32_t> : ty == S32 ? &bfe<int32_t> : ty == U64 ? &bfe<uint64_t> : &bfe<int64_t>);
  }
  if (name == "bfi") {
    i.d = use(o[0], ty);
    i.a = use(o[1], ty);
    i.b = use(o[2], ty);
    i.c = use(o[3], U32);
    i.v[0] = use(o[4], U32);
    return with(ty == B32 ? &bfi<uint32_t> : &bfi<uint64_t>);
  }
  if (name == "shf") {
    abc(B32);
    return with(has("l") ? (has("wrap") ? &funnel<true, true> : &funnel<true, false>)
                         : (has("wrap") ? &funnel<false, true> : &funnel<false, false>));
  }
  if (name == "prmt") {
    if (op.size() != 2) return false;
    abc(B32);
    return with(&prmt);
  }
  if (name == "lop3") {
    i.d = use(o[0], B32);
    i.a = use(o[1], B32);
    i.b = use(o[2], B32);
    i.c = use(o[3], B32);
    i.imm = int64_t(o[4].value);
    return with(&lop3);
  }
  if (name == "popc" || name == "clz") {
    i.d = use(o[0], U32);
    i.a = use(o[1], ty);
    return with(name == "popc" ? (bits_of(ty) == 64 ? &count<uint64_t, 0> : &count<uint32_t, 0>)
                               : (bits_of(ty) == 64 ? &count<uint64_t, 1> : &count<uint32_t, 1>));
  }
  if (name == "brev") {
    i.d = use(o[0], B32);
    i.a = use(o[1], B32);
    return ty == B32 && with(&brev);
  }

  if ((name == "mul" || name == "mad") && has("wide")) {
    const Ty wide = ty == U16 || ty == S16 ? U32 : U64;
    i.d = use(o[0], wide);
    i.a = use(o[1], ty);
    i.b = use(o[2], ty);
    if (name == "mad") {
      i.c = use(o[3], wide);
      return with(ty == U32   ? &mad_wide<uint32_t, uint64_t>
                  : ty == S32 ? &mad_wide<int32_t, int64_t>
                  : ty == U16 ? &mad_wide<uint16_t, uint32_t>
                              : &mad_wide<int16_t, int32_t>);
    }
    return with(ty == U32   ? &mul_wide<uint32_t, uint64_t>
                : ty == S32 ? &mul_wide<int32_t, int64_t>
                : ty == U16 ? &mul_wide<uint16_t, uint32_t>
                : ty == S16 ? &mul_wide<int16_t, int32_t>
                            : nullptr);
  }
  const bool halves = ty == F16 || ty == BF16 || ty == F16X2 || ty == BF16X2;
  if (o.size() < 2) return false;
  abc(ty);
  if (halves) {
    if (z || has("sat") || has("relu") || has("NaN")) return false;
    static const char* names[] = {"add", "sub", "mul", "fma", "min", "max", "neg", "abs", "ex2", "tanh"};
    for (int k = 0; k < 10; ++k)
      if (name == names[k]) return with(half_of(ty, k));
    return false;
  }
  const bool fl = ty == F32 || ty == F64, sat = has("sat");
  if (has("f32x2")) {
    if (name == "add") return with(z ? &pair_of_floats<PairAdd, true> : &pair_of_floats<PairAdd, false>);
    if (name == "sub") return with(z ? &pair_of_floats<PairSub, true> : &pair_of_floats<PairSub, false>);
    if (name == "mul") return with(z ? &pair_of_floats<PairMul, true> : &pair_of_floats<PairMul, false>);
    return name == "fma" && with(z ? &pair_of_floats<PairFma, true> : &pair_of_floats<PairFma, false>);
  }
  if (has("rz") || has("rm") || has("rp") || has("cc")) return false;
  if (name == "add") {
    if (sat) return ty == F32 && with(&then_saturate<&two<float, Add>>);
    return with(fl ? float2<Add>(ty, z) : int2<Add>(ty));
  }
  if (name == "sub") {
    if (sat) return ty == F32 && with(&then_saturate<&two<float, Sub>>);
    return with(fl ? float2<Sub>(ty, z) : int2<Sub>(ty));
  }
  if (name == "mul") {
    if (sat) return ty == F32 && with(&then_saturate<&two<float, Mul>>);
    return with(fl ? float2<Mul>(ty, z) : has("hi") ? int2<MulHi>(ty) : int2<Mul>(ty));
  }
  if (name == "fma" || (name == "mad" && fl)) {
    if (sat) return ty == F32 && with(&then_saturate<&three<float, Fma>>);
    return with(ty == F64   ? &three<double, Fma>
                : ty == F32 ? (z ? &three<float, Fma, true> : &three<float, Fma>)
                            : nullptr);
  }
  if (name == "mad") return with(has("hi") ? int3<MadHi>(ty) : int3<Mad>(ty));
  if (name == "div")
    return with(!fl                                           ? int2<Div>(ty)
                : ty == F32 && (has("full") || has("approx")) ? (z ? &div_full<true> : &div_full<false>)
                                                              : float2<Div>(ty, z));
  if (name == "rem") return with(int2<Rem>(ty));
  if (name == "min") return with(!fl ? int2<Min>(ty) : has("NaN") ? float2<MinNan>(ty, z) : float2<Min>(ty, z));
  if (name == "max") return with(!fl ? int2<Max>(ty) : has("NaN") ? float2<MaxNan>(ty, z) : float2<Max>(ty, z));
  if (name == "and") return with(bit2<And>(ty));
  if (name == "or") return with(bit2<Or>(ty));
  if (name == "xor") return with(bit2<Xor>(ty));
  if (name == "not") return with(bit1<Not>(ty));
  if (name == "cnot") return with(bit1<Cnot>(ty));
  if (name == "neg") return with(fl ? float1<Neg>(ty, z) : int1<Neg>(ty));
  if (name == "abs") return with(fl ? float1<Abs>(ty, z) : int1<Abs>(ty));
  if (name == "copysign") return with(float2<CopySign>(ty, false));
  if (name == "sqrt")
    return with(has("approx") ? (z ? &approx<SqrtA, true> : &approx<SqrtA, false>) : float1<Sqrt>(ty, z));
  if (name == "rcp")
    return with(ty == F64 && has("approx") ? &rcp_f64<false>
                : has("approx")            ? (z ? &approx<RcpA, true> : &approx<RcpA, false>)
                                           : float1<Rcp>(ty, z));
  if (name == "rsqrt") return with(ty == F64 ? &rcp_f64<true> : z ? &approx<RsqrtA, true> : &approx<RsqrtA, false>);
  if (ty == F32 && name == "ex2") return with(z ? &approx<Ex2, true> : &approx<Ex2, false>);
  if (ty == F32 && name == "lg2") return with(z ? &approx<Lg2, true> : &approx<Lg2, false>);
  if (ty == F32 && name == "sin") return with(z ? &approx<Sin, true> : &approx<Sin, false>);
  if (ty == F32 && name == "cos") return with(z ? &approx<Cos, true> : &approx<Cos, false>);
  if (ty == F32 && name == "tanh") return with(&approx<Tanh, false>);
  return false;
}

}  // namespace ptx
