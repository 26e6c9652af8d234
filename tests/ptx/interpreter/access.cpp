// ld and st.
#include "select.h"

namespace ptx {

namespace {

uint64_t fetch(uint64_t address, Type type, int size) {
  const void* p = reinterpret_cast<const void*>(address);
  switch (size) {
    case 1: {
      uint8_t x;
      memcpy(&x, p, 1);
      return type == S8 ? static_cast<uint64_t>(static_cast<int8_t>(x)) : x;
    }
    case 2: {
      uint16_t x;
      memcpy(&x, p, 2);
      return type == S16 ? static_cast<uint64_t>(static_cast<int16_t>(x)) : x;
    }
    case 4: {
      uint32_t x;
      memcpy(&x, p, 4);
      return type == S32 ? static_cast<uint64_t>(static_cast<int32_t>(x)) : x;
    }
    default: {
      uint64_t x;
      memcpy(&x, p, 8);
      return x;
    }
  }
}
// mode: the bits of the registers.
void put(Warp& w, const Instruction& i, int k, int lane, uint64_t value) {
  if (i.v[k] < 0) return;
  if (i.wide_d) row<uint64_t>(w, i.v[k])[lane] = value;
  else row<uint32_t>(w, i.v[k])[lane] = static_cast<uint32_t>(i.mode == 16 ? value & 0xffff : value);
}

void count(Warp& w, const Instruction& i, uint32_t lanes, Space space) {
  if (options.statistics && (space == Space::GLOBAL || space == Space::SHARED))
    count_traffic(w, i, lanes, space == Space::SHARED);
}

void load(Warp& w, const Instruction& i, uint32_t lanes) {
  const int bytes = i.size * i.vector;
  Space space = i.space;
  uint64_t at[32];
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) at[l] = resolve(w, i, l, address_of(w, i, l), bytes, Access::READ, space);
  // Before the registers change: that of the address may be among them.
  count(w, i, lanes, space);
  for (int l = 0; l < 32; ++l)
    for (int k = 0; k < i.vector && (lanes >> l & 1); ++k)
      put(w, i, k, l, fetch(at[l] + static_cast<uint64_t>(k * i.size), i.type, i.size));
}
void store(Warp& w, const Instruction& i, uint32_t lanes) {
  const int bytes = i.size * i.vector;
  Space space = i.space;
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    uint8_t value[64];
    for (int k = 0; k < i.vector; ++k) {
      const uint64_t x = i.wide_d ? row<uint64_t>(w, i.v[k])[l] : row<uint32_t>(w, i.v[k])[l];
      memcpy(value + k * i.size, &x, 8);
    }
    const uint64_t at = resolve(w, i, l, address_of(w, i, l), bytes, Access::WRITE, space, value);
    memcpy(reinterpret_cast<void*>(at), value, static_cast<size_t>(bytes));
  }
  count(w, i, lanes, space);
}

// Parameters of the kernel at a constant offset: one value for all lanes.
void load_parameter(Warp& w, const Instruction& i, uint32_t lanes) {
  if (i.immediate < 0 || i.immediate + i.size * i.vector > w.block->f->parameter_size)
    fail(w, i, first_lane(lanes), "parameter out of bounds");
  const uint64_t at = reinterpret_cast<uint64_t>(w.block->parameters) + static_cast<uint64_t>(i.immediate);
  for (int k = 0; k < i.vector; ++k) {
    const uint64_t x = fetch(at + static_cast<uint64_t>(k * i.size), i.type, i.size);
    for (int l = 0; l < 32; ++l)
      if (lanes >> l & 1) put(w, i, k, l, x);
  }
}

// Parameters of calls are rows.
void copy_row(Warp& w, const Instruction& i, uint32_t lanes, int to, int from) {
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    if (i.wide_d) row<uint64_t>(w, to)[l] = row<uint64_t>(w, from)[l];
    else row<uint32_t>(w, to)[l] = row<uint32_t>(w, from)[l];
  }
}
void load_row(Warp& w, const Instruction& i, uint32_t lanes) { copy_row(w, i, lanes, i.v[0], i.a); }
void store_row(Warp& w, const Instruction& i, uint32_t lanes) { copy_row(w, i, lanes, i.a, i.v[0]); }

Space space_of(const Selector& s) {
  if (s.has("global")) return Space::GLOBAL;
  if (s.has_any({"shared", "shared::cta"})) return Space::SHARED;
  if (s.has("local")) return Space::LOCAL;
  if (s.has_any({"param", "param::entry", "param::func"})) return Space::PARAM;
  return s.has("const") ? Space::CONST : Space::GENERIC;
}

}  // namespace

bool select_memory(Selector& s) {
  Instruction& i = s.i;
  const bool reads = s.name != "st";
  const Operand &value = s.operand(reads ? 0 : 1), &address = s.operand(reads ? 1 : 0);
  i.space = space_of(s);
  i.size = static_cast<uint8_t>(bits_of(s.type) / 8);
  i.vector = s.has("v2") ? 2 : s.has("v4") ? 4 : s.has("v8") ? 8 : 1;
  if (i.size == 0 || i.size * i.vector > 32 || s.has("shared::cluster")) return false;
  const std::vector<Operand> values = value.kind == Operand::VECTOR ? value.parts : std::vector<Operand>{value};
  if (values.size() != i.vector) return false;
  i.wide_d = i.size == 8;
  for (int k = 0; k < i.vector; ++k) {
    i.v[k] = s.use(values[static_cast<size_t>(k)], s.type);
    if (values[static_cast<size_t>(k)].kind != Operand::REGISTER) continue;
    i.mode = values[static_cast<size_t>(k)].bits;
    i.wide_d = i.wide_d || i.mode == 64;
  }
  if (address.kind != Operand::ADDRESS) return false;
  const Operand& base = address.parts[0];
  if (base.symbol == Operand::CALL_PARAMETER) {
    i.a = base.row;
    i.size = 0;
    return address.offset == 0 && i.vector == 1 && s.with(reads ? &load_row : &store_row);
  }
  if (base.symbol == Operand::ENTRY_PARAMETER) {
    i.immediate = address.offset + base.offset;
    return reads && s.with(&load_parameter);
  }
  s.use_address(address);
  return s.with(reads ? &load : &store);
}

}  // namespace ptx
