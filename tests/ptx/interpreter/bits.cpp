// Bits: logic, shifts, fields, counts.
#include "select.h"

namespace ptx {

namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

enum class Logic { AND, OR, XOR, NOT, CNOT };
template <class T, Logic K>
void logic(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b >= 0 ? i.b : i.a);
  each<T>(w, i.d, lanes, [&](int l) {
    switch (K) {
      case Logic::AND: return T(a[l] & b[l]);
      case Logic::OR: return T(a[l] | b[l]);
      case Logic::XOR: return T(a[l] ^ b[l]);
      case Logic::NOT: return T(~a[l]);
      default: return T(a[l] == 0);
    }
  });
}
template <Logic K>
Execute logic_of(int bits) {
  return bits == 16   ? &logic<uint16_t, K>
         : bits == 32 ? &logic<uint32_t, K>
         : bits == 64 ? &logic<uint64_t, K>
                      : nullptr;
}

// By n bits or more: 0, or the sign.
template <class T, bool Left>
void shift(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  Lanes<uint32_t> b(w, i.b);
  constexpr uint32_t n = sizeof(T) * 8;
  each<T>(w, i.d, lanes, [&](int l) {
    const uint32_t by = b[l];
    const T x = a[l];
    if (Left) return by >= n ? T(0) : T(Unsigned<T>(x) << (by & (n - 1)));
    return by >= n ? T(x < 0 ? -1 : 0) : T(x >> (by & (n - 1)));
  });
}
template <bool Left>
Execute shift_of(Type type) {
  switch (type) {
    case S16: return &shift<int16_t, Left>;
    case S32: return &shift<int32_t, Left>;
    case S64: return &shift<int64_t, Left>;
    case U16:
    case B16: return &shift<uint16_t, Left>;
    case U32:
    case B32: return &shift<uint32_t, Left>;
    case U64:
    case B64: return &shift<uint64_t, Left>;
    default: return nullptr;
  }
}

// `length` bits from `position` on. Behind the last bit, and above the field, the sign is repeated.
template <class T>
void bfe(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  Lanes<uint32_t> b(w, i.b), c(w, i.c);
  constexpr uint32_t n = sizeof(T) * 8;
  each<T>(w, i.d, lanes, [&](int l) {
    const uint32_t position = b[l] & 255, length = c[l] & 255;
    const Unsigned<T> x = Unsigned<T>(a[l]), all = ~Unsigned<T>(0);
    if (length == 0) return T(0);
    const bool negative = std::is_signed_v<T> && (x >> std::min(position + length - 1, n - 1) & 1);
    Unsigned<T> field = position >= n ? 0 : x >> position;
    if (negative && position + length > n) field |= position == 0 ? 0 : position >= n ? all : ~(all >> position);
    if (length >= n) return T(field);
    const Unsigned<T> mask = (Unsigned<T>(1) << length) - 1;
    return T(negative ? field | ~mask : field & mask);
  });
}
template <class T>
void bfi(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b);
  Lanes<uint32_t> c(w, i.c), e(w, i.v[0]);
  constexpr uint32_t n = sizeof(T) * 8;
  each<T>(w, i.d, lanes, [&](int l) {
    const uint32_t position = c[l] & 255, length = e[l] & 255;
    if (position >= n || length == 0) return b[l];
    const T mask = (length >= n ? ~T(0) : (T(1) << length) - 1) << position;
    return T((b[l] & ~mask) | ((a[l] << position) & mask));
  });
}

// Four of the eight bytes of a and b; bit 3 of a selector asks for the byte's sign.
void prmt(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  each<uint32_t>(w, i.d, lanes, [&](int l) {
    const uint64_t bytes = a[l] | uint64_t(b[l]) << 32;
    uint32_t r = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t selector = c[l] >> (4 * k) & 15;
      uint32_t byte = uint32_t(bytes >> (8 * (selector & 7))) & 255;
      if (selector & 8) byte = byte & 128 ? 255 : 0;
      r |= byte << (8 * k);
    }
    return r;
  });
}
// Any logic of three operands; the immediate is its truth table.
void lop3(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  each<uint32_t>(w, i.d, lanes, [&](int l) {
    uint32_t r = 0;
    for (int k = 0; k < 8; ++k)
      if (i.immediate >> k & 1) r |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    return r;
  });
}
// b:a, shifted; the upper or the lower word of it.
template <bool Left, bool Wrap>
void funnel(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c);
  each<uint32_t>(w, i.d, lanes, [&](int l) {
    const uint64_t x = a[l] | uint64_t(b[l]) << 32;
    const uint32_t n = Wrap ? c[l] & 31 : std::min(c[l], 32u);
    return Left ? uint32_t((x << n) >> 32) : uint32_t(x >> n);
  });
}
template <class T>
void popc(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<uint32_t>(w, i.d, lanes, [&](int l) { return uint32_t(__builtin_popcountll(a[l])); });
}
template <class T>
void clz(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  constexpr int n = sizeof(T) * 8;
  each<uint32_t>(w, i.d, lanes, [&](int l) { return uint32_t(a[l] == 0 ? n : __builtin_clzll(a[l]) - (64 - n)); });
}
template <class T>
void brev(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  constexpr int n = sizeof(T) * 8;
  each<T>(w, i.d, lanes, [&](int l) {
    T r = 0;
    for (int k = 0; k < n; ++k) r |= (a[l] >> k & 1) << (n - 1 - k);
    return r;
  });
}

bool select_shift_or_field(Selector& s) {
  Instruction& i = s.i;
  const Type type = s.type;
  i.d = s.use(0, type);
  i.a = s.use(1, type);
  if (s.name[0] == 's') {
    i.b = s.use(2, U32);
    return s.with(s.name == "shl" ? shift_of<true>(type) : shift_of<false>(type));
  }
  i.b = s.use(2, s.name == "bfi" ? type : U32);
  i.c = s.use(3, U32);
  if (s.name == "bfe")
    return s.with(type == U32   ? &bfe<uint32_t>
                  : type == S32 ? &bfe<int32_t>
                  : type == U64 ? &bfe<uint64_t>
                  : type == S64 ? &bfe<int64_t>
                                : nullptr);
  i.v[0] = s.use(4, U32);
  return s.with(type == B32 ? &bfi<uint32_t> : type == B64 ? &bfi<uint64_t> : nullptr);
}

bool select_words(Selector& s) {
  Instruction& i = s.i;
  i.d = s.use(0, B32);
  i.a = s.use(1, B32);
  i.b = s.use(2, B32);
  i.c = s.use(3, B32);
  if (s.name == "prmt") return s.s.op.size() == 2 && s.with(&prmt);
  if (s.name == "lop3") {
    i.immediate = static_cast<int64_t>(s.operand(4).value);
    return s.operands() == 5 && s.with(&lop3);
  }
  if (s.has("l")) return s.with(s.has("wrap") ? &funnel<true, true> : &funnel<true, false>);
  return s.with(s.has("wrap") ? &funnel<false, true> : &funnel<false, false>);
}

}  // namespace

bool select_bits(Selector& s) {
  const std::string& name = s.name;
  const int bits = bits_of(s.type);
  if (name == "shl" || name == "shr" || name == "bfe" || name == "bfi") return select_shift_or_field(s);
  if (name == "prmt" || name == "lop3" || name == "shf") return select_words(s);
  s.i.d = s.use(0, s.type);
  s.i.a = s.use(1, s.type);
  if (name == "popc") return s.with(bits == 64 ? &popc<uint64_t> : &popc<uint32_t>);
  if (name == "clz") return s.with(bits == 64 ? &clz<uint64_t> : &clz<uint32_t>);
  if (name == "brev") return s.with(bits == 64 ? &brev<uint64_t> : &brev<uint32_t>);
  if (name == "not") return s.with(logic_of<Logic::NOT>(bits));
  if (name == "cnot") return s.with(logic_of<Logic::CNOT>(bits));
  s.i.b = s.use(2, s.type);
  if (name == "and") return s.with(logic_of<Logic::AND>(bits));
  if (name == "or") return s.with(logic_of<Logic::OR>(bits));
  return s.with(logic_of<Logic::XOR>(bits));
}

}  // namespace ptx
