// Arithmetic of integers, modulo 2^n where it does not say otherwise.
#include <limits>

#include "select.h"

namespace ptx {

namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

struct Add {
  template <class T>
  static T f(T a, T b) {
    return T(Unsigned<T>(a) + Unsigned<T>(b));
  }
};
struct Sub {
  template <class T>
  static T f(T a, T b) {
    return T(Unsigned<T>(a) - Unsigned<T>(b));
  }
};
struct Mul {
  template <class T>
  static T f(T a, T b) {
    return T(uint64_t(a) * uint64_t(b));
  }
};
struct MulHi {
  template <class T>
  static T f(T a, T b) {
    if constexpr (sizeof(T) == 8 && std::is_signed_v<T>) return T((__int128(a) * b) >> 64);
    else if constexpr (sizeof(T) == 8) return T((static_cast<unsigned __int128>(a) * b) >> 64);
    else if constexpr (std::is_signed_v<T>) return T((int64_t(a) * b) >> (8 * sizeof(T)));
    else return T((uint64_t(a) * b) >> (8 * sizeof(T)));
  }
};
struct Min {
  template <class T>
  static T f(T a, T b) {
    return a < b ? a : b;
  }
};
struct Max {
  template <class T>
  static T f(T a, T b) {
    return a > b ? a : b;
  }
};
struct Mad {
  template <class T>
  static T f(T a, T b, T c) {
    return T(uint64_t(a) * uint64_t(b) + uint64_t(c));
  }
};
struct MadHi {
  template <class T>
  static T f(T a, T b, T c) {
    return Add::f(MulHi::f(a, b), c);
  }
};
struct Neg {
  template <class T>
  static T f(T a) {
    return T(0 - Unsigned<T>(a));
  }
};
struct Abs {
  template <class T>
  static T f(T a) {
    return a < 0 ? Neg::f(a) : a;
  }
};
// The quotient of the lowest number and -1 is the lowest number.
struct Div {
  template <class T>
  static T f(T a, T b) {
    if (b == 0) return T(-1);
    return std::is_signed_v<T> && b == T(-1) ? Neg::f(a) : T(a / b);
  }
};
struct Rem {
  template <class T>
  static T f(T a, T b) {
    if (b == 0) return a;
    return std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
  }
};

template <class T, class O>
void unary(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, lanes, [&](int l) { return O::template f<T>(a[l]); });
}
template <class T, class O>
void binary(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b);
  each<T>(w, i.d, lanes, [&](int l) { return O::template f<T>(a[l], b[l]); });
}
template <class T, class O>
void ternary(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b), c(w, i.c);
  each<T>(w, i.d, lanes, [&](int l) { return O::template f<T>(a[l], b[l], c[l]); });
}
template <class T, class O>
void divided(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> b(w, i.b);
  for (int l = 0; l < 32; ++l)
    if ((lanes >> l & 1) && b[l] == 0) fail(w, i, l, "integer division by zero");
  binary<T, O>(w, i, lanes);
}
// The product of n bits each has 2n.
template <class S, class D>
void mul_wide(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<S> a(w, i.a), b(w, i.b);
  each<D>(w, i.d, lanes, [&](int l) { return D(D(a[l]) * D(b[l])); });
}
template <class S, class D>
void mad_wide(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<S> a(w, i.a), b(w, i.b);
  Lanes<D> c(w, i.c);
  each<D>(w, i.d, lanes, [&](int l) { return Add::f(D(D(a[l]) * D(b[l])), c[l]); });
}

template <template <class, class> class Shape, class O>
Execute of_type(Type type) {
  switch (type) {
    case U16: return Shape<uint16_t, O>::execute;
    case S16: return Shape<int16_t, O>::execute;
    case U32:
    case B32: return Shape<uint32_t, O>::execute;
    case S32: return Shape<int32_t, O>::execute;
    case U64:
    case B64: return Shape<uint64_t, O>::execute;
    case S64: return Shape<int64_t, O>::execute;
    default: return nullptr;
  }
}
template <class T, class O>
struct Unary {
  static constexpr Execute execute = &unary<T, O>;
};
template <class T, class O>
struct Binary {
  static constexpr Execute execute = &binary<T, O>;
};
template <class T, class O>
struct Ternary {
  static constexpr Execute execute = &ternary<T, O>;
};
template <class T, class O>
struct Divided {
  static constexpr Execute execute = &divided<T, O>;
};

bool select_wide(Selector& s) {
  const bool mad = s.name == "mad";
  const Type wide = bits_of(s.type) == 16 ? U32 : U64;
  s.i.d = s.use(0, wide);
  s.i.a = s.use(1, s.type);
  s.i.b = s.use(2, s.type);
  if (mad) s.i.c = s.use(3, wide);
  switch (s.type) {
    case U16: return s.with(mad ? &mad_wide<uint16_t, uint32_t> : &mul_wide<uint16_t, uint32_t>);
    case S16: return s.with(mad ? &mad_wide<int16_t, int32_t> : &mul_wide<int16_t, int32_t>);
    case U32: return s.with(mad ? &mad_wide<uint32_t, uint64_t> : &mul_wide<uint32_t, uint64_t>);
    case S32: return s.with(mad ? &mad_wide<int32_t, int64_t> : &mul_wide<int32_t, int64_t>);
    default: return false;
  }
}

}  // namespace

bool select_integer(Selector& s) {
  const std::string& name = s.name;
  const bool high = s.has("hi");
  if (s.has_any({"sat", "cc", "relu", "x2"})) return false;
  if ((name == "mul" || name == "mad") && s.has("wide")) return select_wide(s);
  s.use_all(s.type);
  if ((s.operands() == 4) != (name == "mad")) return false;
  if (name == "add") return s.with(of_type<Binary, Add>(s.type));
  if (name == "sub") return s.with(of_type<Binary, Sub>(s.type));
  if (name == "mul") return s.with(high ? of_type<Binary, MulHi>(s.type) : of_type<Binary, Mul>(s.type));
  if (name == "mad") return s.with(high ? of_type<Ternary, MadHi>(s.type) : of_type<Ternary, Mad>(s.type));
  if (name == "div") return s.with(of_type<Divided, Div>(s.type));
  if (name == "rem") return s.with(of_type<Divided, Rem>(s.type));
  if (name == "min") return s.with(of_type<Binary, Min>(s.type));
  if (name == "max") return s.with(of_type<Binary, Max>(s.type));
  if (name == "neg") return s.with(of_type<Unary, Neg>(s.type));
  if (name == "abs") return s.with(of_type<Unary, Abs>(s.type));
  return false;
}

}  // namespace ptx
