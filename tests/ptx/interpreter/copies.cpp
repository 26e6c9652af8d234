// cp.async. Copies happen as late as they may: at the wait.
#include "select.h"

namespace ptx {

namespace {

// a, immediate: the address in shared memory; b, v[1]: that in global memory; mode: bytes; c: bytes that are read.
void copy(Warp& w, const Instruction& i, uint32_t lanes) {
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    const uint64_t from = row<uint64_t>(w, i.b)[l] + static_cast<uint64_t>(static_cast<int64_t>(i.v[1]));
    const int read = i.c >= 0 ? static_cast<int>(row<uint32_t>(w, i.c)[l]) : i.mode;
    w.copies.push_back({&i, l, w.pending_group, address_of(w, i, l), from, i.mode, read});
  }
}

void commit(Warp& w, const Instruction&, uint32_t) { ++w.pending_group; }

void complete(Warp& w, const Copy& c) {
  const Instruction& i = *c.instruction;
  uint8_t value[16] = {};
  const int piece = c.bytes_read & (c.bytes_read - 1) ? 1 : c.bytes_read;
  for (int k = 0; k < c.bytes_read; k += piece) {
    const uint64_t from = c.from + static_cast<uint64_t>(k);
    const uint64_t at = resolve_in(Space::GLOBAL, w, i, c.lane, from, piece, Access::READ);
    memcpy(value + k, reinterpret_cast<void*>(at), static_cast<size_t>(piece));
  }
  const uint64_t to = resolve_in(Space::SHARED, w, i, c.lane, c.to, c.bytes, Access::WRITE, value);
  memcpy(reinterpret_cast<void*>(to), value, static_cast<size_t>(c.bytes));
}
// mode: how many of the latest groups may remain; -1: none, not even what is not committed.
void wait(Warp& w, const Instruction& i, uint32_t) {
  std::vector<Copy> left;
  for (const Copy& c : w.copies) {
    if (i.mode >= 0 && c.group >= w.pending_group - i.mode) left.push_back(c);
    else complete(w, c);
  }
  w.copies.swap(left);
}

}  // namespace

bool select_copy(Selector& s) {
  Instruction& i = s.i;
  if (!s.has("async") || s.has_any({"bulk", "mbarrier"})) return false;
  if (s.has("commit_group")) return s.with(&commit);
  if (s.has("wait_all")) {
    i.mode = -1;
    return s.with(&wait);
  }
  if (s.has("wait_group")) {
    i.mode = static_cast<int>(s.operand(0).value);
    return s.with(&wait);
  }
  const Operand& from = s.operand(1);
  if (from.kind != Operand::ADDRESS) return false;
  const Operand& base = from.parts[0];
  i.b = s.use(base, U64);
  if (base.kind == Operand::REGISTER && base.bits != 64) return false;
  s.use_address(s.operand(0));
  i.v[1] = static_cast<int>(from.offset);
  i.mode = static_cast<int>(s.operand(2).value);
  i.size = static_cast<uint8_t>(i.mode);
  i.space = Space::GENERIC;  // both
  if (s.operands() > 3) {
    const Operand& x = s.operand(3);
    if (x.kind == Operand::REGISTER && x.bits == 1) return false;
    if (x.bits != 64) i.c = s.use(x, B32);  // 64 bits: a cache policy
  }
  return s.with(&copy);
}

}  // namespace ptx
