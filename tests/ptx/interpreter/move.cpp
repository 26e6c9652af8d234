// mov and cvta: registers, parts of registers, addresses.
#include "select.h"

namespace ptx {

namespace {

template <class T>
void mov(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<T>(w, i.d, lanes, [&](int l) { return a[l]; });
}
void mov_predicate(Warp& w, const Instruction& i, uint32_t lanes) {
  set_predicate(w, i.d, predicate(w, i.a, i.not_a), lanes);
}

// mode: the bits of a part.
uint64_t low_bits(uint64_t x, int bits) { return x & ((uint64_t(1) << bits) - 1); }
void pack(Warp& w, const Instruction& i, uint32_t lanes) {
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    uint64_t value = 0;
    for (int k = 0; k < i.vector; ++k) value |= low_bits(row<uint32_t>(w, i.v[k])[l], i.mode) << (i.mode * k);
    if (i.wide_d) row<uint64_t>(w, i.d)[l] = value;
    else row<uint32_t>(w, i.d)[l] = uint32_t(value);
  }
}
void unpack(Warp& w, const Instruction& i, uint32_t lanes) {
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    const uint64_t value = i.wide_a ? row<uint64_t>(w, i.a)[l] : row<uint32_t>(w, i.a)[l];
    for (int k = 0; k < i.vector; ++k)
      if (i.v[k] >= 0) row<uint32_t>(w, i.v[k])[l] = uint32_t(low_bits(value >> (i.mode * k), i.mode));
  }
}

// Addresses of .local variables, of parameters; between shared addresses and generic ones.
void local_address(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint64_t> a(w, i.a);
  each<uint64_t>(w, i.d, lanes, [&](int l) { return a[l] + uint64_t(i.immediate); });
}
void parameter_address(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint64_t address = reinterpret_cast<uint64_t>(w.block->parameters) + uint64_t(i.immediate);
  each<uint64_t>(w, i.d, lanes, [&](int) { return address; });
}
void shared_to_generic(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint64_t> a(w, i.a);
  each<uint64_t>(w, i.d, lanes, [&](int l) { return a[l] + reinterpret_cast<uint64_t>(w.block->shared.data()); });
}
void generic_to_shared(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint64_t> a(w, i.a);
  each<uint64_t>(w, i.d, lanes, [&](int l) { return a[l] - reinterpret_cast<uint64_t>(w.block->shared.data()); });
}

bool select_symbol(Selector& s, const Operand& symbol) {
  s.i.immediate = symbol.offset;
  if (symbol.symbol == Operand::ENTRY_PARAMETER) return s.with(&parameter_address);
  s.i.a = symbol.row;
  return symbol.symbol == Operand::THREAD_LOCAL && s.with(&local_address);
}

}  // namespace

bool select_move(Selector& s) {
  Instruction& i = s.i;
  const Operand &to = s.operand(0), &from = s.operand(1);
  if (to.kind == Operand::VECTOR || from.kind == Operand::VECTOR) {
    if (to.kind == from.kind || s.name != "mov") return false;
    const bool packs = from.kind == Operand::VECTOR;
    const std::vector<Operand>& parts = packs ? from.parts : to.parts;
    i.vector = static_cast<uint8_t>(parts.size());
    i.mode = bits_of(s.type) / i.vector;
    if (bits_of(s.type) == 0 || i.mode > 32) return false;
    for (int k = 0; k < i.vector; ++k) i.v[k] = s.use(parts[k], i.mode == 32 ? B32 : B16);
    i.wide_d = i.wide_a = bits_of(s.type) == 64;
    (packs ? i.d : i.a) = s.use(packs ? to : from, s.type);
    return s.with(packs ? &pack : &unpack);
  }
  i.d = s.use(to, s.type);
  if (from.kind == Operand::SYMBOL) return select_symbol(s, from);
  i.a = s.use(from, s.type);
  if (s.name == "cvta") {
    if (!s.has("shared") && !s.has("shared::cta")) return s.with(&mov<uint64_t>);
    return s.with(s.has("to") ? &generic_to_shared : &shared_to_generic);
  }
  i.not_a = from.negated;
  if (s.type == PRED) return s.with(&mov_predicate);
  return s.with(bits_of(s.type) == 64 ? &mov<uint64_t> : &mov<uint32_t>);
}

}  // namespace ptx
