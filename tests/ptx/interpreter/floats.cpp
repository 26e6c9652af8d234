// Arithmetic of f32, f64 and pairs of f32, each rounded once.
#include <immintrin.h>

#include <limits>

#include "select.h"

namespace ptx {

namespace {

struct Add {
  template <class T>
  static T f(T a, T b) {
    return a + b;
  }
};
struct Sub {
  template <class T>
  static T f(T a, T b) {
    return a - b;
  }
};
struct Mul {
  template <class T>
  static T f(T a, T b) {
    return a * b;
  }
};
struct Div {
  template <class T>
  static T f(T a, T b) {
    return a / b;
  }
};
// Of a NaN and a number the number; -0 is less than +0.
struct Min {
  template <class T>
  static T f(T a, T b) {
    return a != a ? b : b != b ? a : a == b ? from_bits<T>(to_bits(a) | to_bits(b)) : a < b ? a : b;
  }
};
struct Max {
  template <class T>
  static T f(T a, T b) {
    return a != a ? b : b != b ? a : a == b ? from_bits<T>(to_bits(a) & to_bits(b)) : a > b ? a : b;
  }
};
template <class O>
struct WithNan {
  template <class T>
  static T f(T a, T b) {
    return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : O::f(a, b);
  }
};
struct Fma {
  template <class T>
  static T f(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct Sqrt {
  template <class T>
  static T f(T a) {
    return std::sqrt(a);
  }
};
struct Rcp {
  template <class T>
  static T f(T a) {
    return T(1) / a;
  }
};

template <class T, class O, bool Flush>
void unary(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, lanes, [&](int l) { return canonical(maybe_flushed<Flush>(O::f(maybe_flushed<Flush>(a[l])))); });
}
template <class T, class O, bool Flush>
void binary(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b);
  each<T>(w, i.d, lanes, [&](int l) {
    return canonical(maybe_flushed<Flush>(O::f(maybe_flushed<Flush>(a[l]), maybe_flushed<Flush>(b[l]))));
  });
}
template <class T, class O, bool Flush>
void ternary(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b), c(w, i.c);
  each<T>(w, i.d, lanes, [&](int l) {
    return canonical(
        maybe_flushed<Flush>(O::f(maybe_flushed<Flush>(a[l]), maybe_flushed<Flush>(b[l]), maybe_flushed<Flush>(c[l]))));
  });
}

// neg, abs and copysign keep what a NaN holds.
template <class T, bool Flush>
void neg(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, lanes, [&](int l) { return -maybe_flushed<Flush>(a[l]); });
}
template <class T, bool Flush>
void abs(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, lanes, [&](int l) { return std::fabs(maybe_flushed<Flush>(a[l])); });
}
template <class T>
void copysign(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b);
  each<T>(w, i.d, lanes, [&](int l) { return std::copysign(b[l], a[l]); });
}

// Registers of 64 bits that hold two f32.
template <bool Flush, class F>
void pairs(Warp& w, const Instruction& i, uint32_t lanes, F f) {
  Lanes<uint64_t> a(w, i.a), b(w, i.b), c(w, i.c >= 0 ? i.c : i.a);
  auto of = [&](uint64_t x, uint64_t y, uint64_t z) {
    return to_bits(canonical(
        maybe_flushed<Flush>(f(maybe_flushed<Flush>(from_bits<float>(x)), maybe_flushed<Flush>(from_bits<float>(y)),
                               maybe_flushed<Flush>(from_bits<float>(z))))));
  };
  each<uint64_t>(w, i.d, lanes,
                 [&](int l) { return of(a[l], b[l], c[l]) | of(a[l] >> 32, b[l] >> 32, c[l] >> 32) << 32; });
}
template <class O, bool Flush>
void pair(Warp& w, const Instruction& i, uint32_t lanes) {
  pairs<Flush>(w, i, lanes, [](float a, float b, float) { return O::f(a, b); });
}
template <bool Flush>
void pair_fma(Warp& w, const Instruction& i, uint32_t lanes) {
  pairs<Flush>(w, i, lanes, [](float a, float b, float c) { return std::fma(a, b, c); });
}

// .rz, .rm, .rp: the processor's rounding is set around the instruction. .sat: to [0, 1], NaN to 0.
void modified(Warp& w, const Instruction& i, uint32_t lanes) {
  static const unsigned modes[] = {_MM_ROUND_NEAREST, _MM_ROUND_TOWARD_ZERO, _MM_ROUND_DOWN, _MM_ROUND_UP};
  const unsigned before = _MM_GET_ROUNDING_MODE();
  _MM_SET_ROUNDING_MODE(modes[static_cast<int>(i.rounding)]);
  i.inner(w, i, lanes);
  _MM_SET_ROUNDING_MODE(before);
  if (!i.saturate) return;
  Lanes<float> d(w, i.d);
  each<float>(w, i.d, lanes, [&](int l) { return d[l] > 0 ? (d[l] < 1 ? d[l] : 1.0f) : 0.0f; });
}

template <class O>
Execute unary_of(Type t, bool flush) {
  return t == F64 ? &unary<double, O, false> : flush ? &unary<float, O, true> : &unary<float, O, false>;
}
template <class O>
Execute binary_of(Type t, bool flush) {
  if (t == F32X2) return flush ? &pair<O, true> : &pair<O, false>;
  return t == F64 ? &binary<double, O, false> : flush ? &binary<float, O, true> : &binary<float, O, false>;
}
Execute fma_of(Type t, bool flush) {
  if (t == F32X2) return flush ? &pair_fma<true> : &pair_fma<false>;
  return t == F64 ? &ternary<double, Fma, false> : flush ? &ternary<float, Fma, true> : &ternary<float, Fma, false>;
}

Execute arithmetic_of(const std::string& name, Type t, bool flush, bool nan) {
  if (name == "add") return binary_of<Add>(t, flush);
  if (name == "sub") return binary_of<Sub>(t, flush);
  if (name == "mul") return binary_of<Mul>(t, flush);
  if (name == "fma" || name == "mad") return fma_of(t, flush);
  if (t == F32X2) return nullptr;
  if (name == "div") return binary_of<Div>(t, flush);
  if (name == "min") return nan ? binary_of<WithNan<Min>>(t, flush) : binary_of<Min>(t, flush);
  if (name == "max") return nan ? binary_of<WithNan<Max>>(t, flush) : binary_of<Max>(t, flush);
  if (name == "sqrt") return unary_of<Sqrt>(t, flush);
  if (name == "rcp") return unary_of<Rcp>(t, flush);
  if (name == "neg") return t == F64 ? &neg<double, false> : flush ? &neg<float, true> : &neg<float, false>;
  if (name == "abs") return t == F64 ? &abs<double, false> : flush ? &abs<float, true> : &abs<float, false>;
  if (name == "copysign") return t == F64 ? &copysign<double> : &copysign<float>;
  return nullptr;
}

}  // namespace

bool select_float(Selector& s) {
  Instruction& i = s.i;
  const bool three = s.name == "fma" || s.name == "mad";
  s.use_all(s.type);
  if ((s.operands() == 4) != three || s.has_any({"xorsign", "cc"})) return false;
  const Execute execute = arithmetic_of(s.name, s.type, s.has("ftz"), s.has("NaN"));
  i.saturate = s.has("sat");
  i.rounding = s.has("rz")   ? Rounding::ZERO
               : s.has("rm") ? Rounding::DOWN
               : s.has("rp") ? Rounding::UP
                             : Rounding::EVEN;
  if (!i.saturate && i.rounding == Rounding::EVEN) return s.with(execute);
  if (i.saturate && s.type != F32) return false;
  i.inner = execute;
  return s.with(execute ? &modified : nullptr);
}

}  // namespace ptx
