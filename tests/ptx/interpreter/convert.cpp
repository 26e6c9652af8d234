// Conversions. The usual ones have functions of their own; `any` does the rest through long double, which holds every
// source exactly.
#include <limits>

#include "half.h"
#include "select.h"

namespace ptx {

namespace {

// ---- Integers to integers. A register that is wider than the type gets the sign or zeros.
template <class S, class D>
void integers(Warp& w, const Instruction& i, uint32_t lanes) {
  auto go = [&](auto source, auto destination) {
    using From = decltype(source);
    using To = decltype(destination);
    Lanes<From> a(w, i.a);
    each<To>(w, i.d, lanes, [&](int l) {
      const S x = S(a[l]);
      D y = D(x);
      if (i.saturate) {
        const __int128 v = x;
        if (v < __int128(std::numeric_limits<D>::min())) y = std::numeric_limits<D>::min();
        else if (v > __int128(std::numeric_limits<D>::max())) y = std::numeric_limits<D>::max();
      }
      To r = To(std::conditional_t<std::is_signed_v<D>, int64_t, uint64_t>(y));
      if (sizeof(To) == 4 && i.mode == 16) r &= 0xffff;  // a register of 16 bits
      return r;
    });
  };
  if (i.wide_a) i.wide_d ? go(uint64_t(), uint64_t()) : go(uint64_t(), uint32_t());
  else i.wide_d ? go(uint32_t(), uint64_t()) : go(uint32_t(), uint32_t());
}
template <class S>
Execute integers_to(Type d) {
  switch (d) {
    case U8:
    case B8: return &integers<S, uint8_t>;
    case S8: return &integers<S, int8_t>;
    case U16:
    case B16: return &integers<S, uint16_t>;
    case S16: return &integers<S, int16_t>;
    case U32:
    case B32: return &integers<S, uint32_t>;
    case S32: return &integers<S, int32_t>;
    case U64:
    case B64: return &integers<S, uint64_t>;
    case S64: return &integers<S, int64_t>;
    default: return nullptr;
  }
}
Execute integers_of(Type s, Type d) {
  switch (s) {
    case U8:
    case B8: return integers_to<uint8_t>(d);
    case S8: return integers_to<int8_t>(d);
    case U16:
    case B16: return integers_to<uint16_t>(d);
    case S16: return integers_to<int16_t>(d);
    case U32:
    case B32: return integers_to<uint32_t>(d);
    case S32: return integers_to<int32_t>(d);
    case U64:
    case B64: return integers_to<uint64_t>(d);
    case S64: return integers_to<int64_t>(d);
    default: return nullptr;
  }
}

// ---- Rounding
template <class T>
inline T integral(T x, Rounding r) {
  switch (r) {
    case Rounding::ZERO: return std::trunc(x);
    case Rounding::DOWN: return std::floor(x);
    case Rounding::UP: return std::ceil(x);
    case Rounding::AWAY: return std::round(x);
    default: return std::nearbyint(x);
  }
}
// Beyond the range the nearest end of it. NaN: 0, or the highest bit if one of the types has 64 bits.
template <class D, class T>
inline D to_integer(T x, const Instruction& i) {
  if (x != x) return i.from == F64 || sizeof(D) == 8 ? D(uint64_t(1) << (8 * sizeof(D) - 1)) : D(0);
  x = integral(x, i.rounding);
  if (x < T(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
  if (x >= std::ldexp(T(1), std::numeric_limits<D>::digits)) return std::numeric_limits<D>::max();
  return D(x);
}

struct Format {
  int precision, lowest;  // bits; the exponent of the smallest subnormal
  long double largest;
};
Format format_of(Type t) {
  switch (t) {
    case F16: return {11, -24, 65504.0L};
    case BF16: return {8, -133, 0x1.fep127L};
    case TF32: return {11, -136, 0x1.ffcp127L};
    case F32: return {24, -149, 0x1.fffffep127L};
    default: return {53, -1074, 0x1.fffffffffffffp1023L};
  }
}
long double rounded(long double x, Type type, Rounding r) {
  if (x == 0 || std::isnan(x) || std::isinf(x)) return x;
  const Format f = format_of(type);
  int exponent;
  std::frexp(x, &exponent);
  const int ulp = std::max(exponent - f.precision, f.lowest);
  const long double y = std::ldexp(integral(std::ldexp(x, -ulp), r), ulp);
  if (std::fabs(y) <= f.largest) return std::copysign(y, x);
  const bool stays = r == Rounding::ZERO || (r == Rounding::DOWN && x > 0) || (r == Rounding::UP && x < 0);
  return std::copysign(stays ? f.largest : std::numeric_limits<long double>::infinity(), x);
}

// ---- The usual ones
template <class S, class D>
void plain(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<S> a(w, i.a);
  each<D>(w, i.d, lanes, [&](int l) { return D(a[l]); });
}
template <class T>
void to_integral(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, lanes, [&](int l) { return integral(a[l], i.rounding); });
}
template <class S, class D>
void float_to_integer(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<S> a(w, i.a);
  each<D>(w, i.d, lanes, [&](int l) { return to_integer<D>(double(a[l]), i); });
}
void saturated(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<float> a(w, i.a);
  each<float>(w, i.d, lanes, [&](int l) { return a[l] > 0 ? (a[l] < 1 ? a[l] : 1.0f) : 0.0f; });
}
template <class H>
void widen(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint16_t> a(w, i.a);
  each<float>(w, i.d, lanes, [&](int l) { return H::widened(a[l]); });
}
template <class H>
void narrow(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<float> a(w, i.a);
  each<uint32_t>(w, i.d, lanes, [&](int l) { return uint32_t(H::narrowed(a[l])); });
}

// ---- All others
template <class T>
T narrow_register(Warp& w, int offset, bool wide, int l) {
  return wide ? T(row<uint64_t>(w, offset)[l]) : T(row<uint32_t>(w, offset)[l]);
}
long double read(Warp& w, const Instruction& i, int l) {
  switch (i.from) {
    case F16: return Half::widened(narrow_register<uint16_t>(w, i.a, i.wide_a, l));
    case BF16: return Bfloat::widened(narrow_register<uint16_t>(w, i.a, i.wide_a, l));
    case F32: return i.flush ? flushed(row<float>(w, i.a)[l]) : row<float>(w, i.a)[l];
    case F64: return row<double>(w, i.a)[l];
    case U8: return narrow_register<uint8_t>(w, i.a, i.wide_a, l);
    case S8: return narrow_register<int8_t>(w, i.a, i.wide_a, l);
    case U16: return narrow_register<uint16_t>(w, i.a, i.wide_a, l);
    case S16: return narrow_register<int16_t>(w, i.a, i.wide_a, l);
    case U32: return row<uint32_t>(w, i.a)[l];
    case S32: return row<int32_t>(w, i.a)[l];
    case S64: return row<int64_t>(w, i.a)[l];
    default: return row<uint64_t>(w, i.a)[l];
  }
}
uint16_t half_bits(long double x, Type type, bool relu) {
  if (relu && x < 0) return 0;
  return type == F16 ? Half::narrowed(float(x)) : Bfloat::narrowed(float(x));
}
uint64_t converted(long double x, const Instruction& i) {
  switch (i.type) {
    case F64: return to_bits(double(rounded(x, F64, i.rounding)));
    case F32:
    case TF32: {
      const float y = float(rounded(x, i.type, i.rounding));
      return to_bits(i.flush ? flushed(y) : y);
    }
    case F16:
    case BF16: return half_bits(rounded(x, i.type, i.rounding), i.type, i.relu);
    case U8: return to_integer<uint8_t>(x, i);
    case S8: return uint64_t(int64_t(to_integer<int8_t>(x, i)));
    case U16: return to_integer<uint16_t>(x, i);
    case S16: return uint64_t(int64_t(to_integer<int16_t>(x, i)));
    case U32: return to_integer<uint32_t>(x, i);
    case S32: return uint64_t(int64_t(to_integer<int32_t>(x, i)));
    case U64: return to_integer<uint64_t>(x, i);
    default: return uint64_t(to_integer<int64_t>(x, i));
  }
}
// immediate: the bits of the destination register.
void any(Warp& w, const Instruction& i, uint32_t lanes) {
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    long double x = read(w, i, l);
    if (i.to_integral) x = integral(x, i.rounding);
    if (i.saturate) x = x > 0 ? (x < 1 ? x : 1.0L) : 0.0L;
    const uint64_t y = converted(x, i);
    if (i.wide_d) row<uint64_t>(w, i.d)[l] = y;
    else row<uint32_t>(w, i.d)[l] = uint32_t(i.immediate == 16 ? y & 0xffff : y);
  }
}
// Two f32 into a pair of f16 or bf16: a the upper, b the lower.
void pack(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<float> a(w, i.a), b(w, i.b);
  const Type type = i.type == F16X2 ? F16 : BF16;
  auto half = [&](float x) { return uint32_t(half_bits(rounded(x, type, i.rounding), type, i.relu)); };
  each<uint32_t>(w, i.d, lanes, [&](int l) { return half(a[l]) << 16 | half(b[l]); });
}
template <class H>
void pack_to_nearest(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<float> a(w, i.a), b(w, i.b);
  each<uint32_t>(w, i.d, lanes, [&](int l) { return uint32_t(H::narrowed(a[l])) << 16 | H::narrowed(b[l]); });
}

Execute plain_of(Type from, Type to) {
  if (to == F64)
    return from == F32   ? &plain<float, double>
           : from == S32 ? &plain<int32_t, double>
           : from == U32 ? &plain<uint32_t, double>
           : from == S64 ? &plain<int64_t, double>
           : from == U64 ? &plain<uint64_t, double>
                         : nullptr;
  if (to == F32)
    return from == F64    ? &plain<double, float>
           : from == S32  ? &plain<int32_t, float>
           : from == U32  ? &plain<uint32_t, float>
           : from == S64  ? &plain<int64_t, float>
           : from == U64  ? &plain<uint64_t, float>
           : from == F16  ? &widen<Half>
           : from == BF16 ? &widen<Bfloat>
                          : nullptr;
  if (from == F32 && to == F16) return &narrow<Half>;
  if (from == F32 && to == BF16) return &narrow<Bfloat>;
  return nullptr;
}
template <class S>
Execute to_integer_of(Type to) {
  return to == S32   ? &float_to_integer<S, int32_t>
         : to == U32 ? &float_to_integer<S, uint32_t>
         : to == S64 ? &float_to_integer<S, int64_t>
         : to == U64 ? &float_to_integer<S, uint64_t>
                     : nullptr;
}
Execute usual(const Selector& s) {
  const Instruction& i = s.i;
  if (i.flush || i.relu || (i.wide_d && bits_of(i.type) < 64) || (i.wide_a && bits_of(i.from) < 64)) return nullptr;
  if (i.saturate && !is_integer(i.type)) return i.type == F32 && i.from == F32 && !i.to_integral ? &saturated : nullptr;
  if (is_integer(i.type))
    return i.from == F32 ? to_integer_of<float>(i.type) : i.from == F64 ? to_integer_of<double>(i.type) : nullptr;
  if (i.to_integral)
    return i.type != i.from ? nullptr
           : i.type == F32  ? &to_integral<float>
           : i.type == F64  ? &to_integral<double>
                            : nullptr;
  return i.rounding == Rounding::EVEN ? plain_of(i.from, i.type) : nullptr;
}

}  // namespace

bool select_convert(Selector& s) {
  Instruction& i = s.i;
  if (s.types.size() != 2 || s.has_any({"pack", "satfinite", "rs"})) return false;
  i.type = s.types[0];
  i.from = s.types[1];
  i.d = s.use(0, i.type);
  i.wide_d = s.operand(0).bits == 64;
  i.a = s.use(1, i.from);
  i.wide_a = s.operand(1).kind == Operand::REGISTER ? s.operand(1).bits == 64 : bits_of(i.from) == 64;
  i.saturate = s.has("sat");
  i.flush = s.has("ftz");
  i.rounding = s.has_any({"rzi", "rz"})   ? Rounding::ZERO
               : s.has_any({"rmi", "rm"}) ? Rounding::DOWN
               : s.has_any({"rpi", "rp"}) ? Rounding::UP
               : s.has("rna")             ? Rounding::AWAY
                                          : Rounding::EVEN;
  if (is_integer(i.type) && is_integer(i.from)) {
    i.mode = s.operand(0).bits;
    return s.with(integers_of(i.from, i.type));
  }
  i.relu = s.has("relu");
  if (i.type == F16X2 || i.type == BF16X2) {
    if (i.from != F32 || i.flush || i.saturate) return false;
    i.b = s.use(2, F32);
    if (i.relu || i.rounding != Rounding::EVEN) return s.with(&pack);
    return s.with(i.type == F16X2 ? &pack_to_nearest<Half> : &pack_to_nearest<Bfloat>);
  }
  if (s.operands() != 2 || i.from == F16X2 || i.from == BF16X2 || i.from == TF32) return false;
  i.to_integral = !is_integer(i.type) && s.has_any({"rni", "rzi", "rmi", "rpi"});
  i.immediate = s.operand(0).bits;
  if (const Execute execute = usual(s)) return s.with(execute);
  return s.with(&any);
}

}  // namespace ptx
