// atom and red: the lanes of a warp one after the other, in the order of their numbers.
#include "select.h"

namespace ptx {

namespace {

enum class Op { ADD, AND, OR, XOR, EXCH, CAS, MIN, MAX, INC, DEC };

template <class T>
uint64_t integer(Op op, uint64_t old_bits, uint64_t b_bits, uint64_t c_bits) {
  using U = std::make_unsigned_t<T>;
  const T old = T(old_bits), b = T(b_bits), c = T(c_bits);
  auto of = [&]() -> T {
    switch (op) {
      case Op::ADD: return T(U(old) + U(b));
      case Op::AND: return old & b;
      case Op::OR: return old | b;
      case Op::XOR: return old ^ b;
      case Op::EXCH: return b;
      case Op::CAS: return old == b ? c : old;
      case Op::MIN: return std::min(old, b);
      case Op::MAX: return std::max(old, b);
      case Op::INC: return old >= b ? T(0) : T(old + 1);
      default: return old == 0 || old > b ? b : T(old - 1);
    }
  };
  return U(of());
}

uint64_t updated(const Instruction& i, Space space, uint64_t old, uint64_t b, uint64_t c) {
  const Op op = Op(i.mode);
  switch (i.type) {
    case F32: {
      const float x = from_bits<float>(old), y = from_bits<float>(b);
      // In global memory subnormals are flushed.
      if (space == Space::SHARED) return to_bits(canonical(x + y));
      return to_bits(canonical(flushed(flushed(x) + flushed(y))));
    }
    case F64: return to_bits(canonical(from_bits<double>(old) + from_bits<double>(b)));
    case S32: return integer<int32_t>(op, old, b, c);
    case S64: return integer<int64_t>(op, old, b, c);
    case U64:
    case B64: return integer<uint64_t>(op, old, b, c);
    default: return integer<uint32_t>(op, old, b, c);
  }
}

uint64_t value_of(Warp& w, const Instruction& i, int offset, int lane) {
  if (offset < 0) return 0;
  return i.size == 8 ? row<uint64_t>(w, offset)[lane] : row<uint32_t>(w, offset)[lane];
}

void update(Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t before[32];
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    Space space;
    void* p = reinterpret_cast<void*>(resolve(w, i, l, address_of(w, i, l), i.size, Access::ATOMIC, space));
    before[l] = 0;
    memcpy(&before[l], p, i.size);
    const uint64_t after = updated(i, space, before[l], value_of(w, i, i.b, l), value_of(w, i, i.c, l));
    memcpy(p, &after, i.size);
  }
  for (int l = 0; l < 32; ++l) {
    if (i.d < 0 || !(lanes >> l & 1)) continue;
    if (i.size == 8) row<uint64_t>(w, i.d)[l] = before[l];
    else row<uint32_t>(w, i.d)[l] = static_cast<uint32_t>(before[l]);
  }
}

const std::map<std::string, Op> names = {{"add", Op::ADD},   {"and", Op::AND}, {"or", Op::OR},   {"xor", Op::XOR},
                                         {"exch", Op::EXCH}, {"cas", Op::CAS}, {"min", Op::MIN}, {"max", Op::MAX},
                                         {"inc", Op::INC},   {"dec", Op::DEC}};

}  // namespace

bool select_atomic(Selector& s) {
  Instruction& i = s.i;
  size_t found = 0;
  Op op = Op::ADD;
  for (size_t k = 1; k < s.s.op.size(); ++k)
    if (const auto it = names.find(s.s.op[k]); it != names.end()) {
      op = it->second;
      ++found;
    }
  if (found != 1 || s.types.size() != 1 || s.has_any({"async", "v2", "v4", "v8", "shared::cluster"})) return false;
  i.mode = int(op);
  i.size = static_cast<uint8_t>(bits_of(s.type) / 8);
  const bool is_float = s.type == F32 || s.type == F64;
  if (is_float ? op != Op::ADD && op != Op::EXCH : !is_integer(s.type)) return false;
  if (i.size != 4 && i.size != 8) return false;
  if (is_float && op == Op::EXCH) i.type = s.type == F32 ? B32 : B64;
  i.space = s.has("global") ? Space::GLOBAL : s.has_any({"shared", "shared::cta"}) ? Space::SHARED : Space::GENERIC;
  size_t k = 0;
  if (s.name == "atom") i.d = s.use(k++, s.type);
  s.use_address(s.operand(k++));
  i.b = s.use(k++, s.type);
  if (op == Op::CAS) i.c = s.use(k, s.type);
  return s.with(&update);
}

}  // namespace ptx
