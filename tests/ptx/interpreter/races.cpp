// Races. Every unit of memory has marks of who wrote, who read and who updated it last (atomically). Two accesses
// conflict if one of them writes, or if one is atomic and the other is not. Within a block barriers order accesses,
// within a warp a bar.warp.sync of all its lanes; nothing orders the blocks of a launch.
#include <sstream>

#include "machine.h"

namespace ptx {

namespace {

// In Mark::block. In Mark::thread: the sum of LANES and a warp's number for several lanes of that warp; WARPS.
constexpr uint32_t SEVERAL_BLOCKS = ~0u;
constexpr uint16_t LANES = 0x8000, WARPS = 0xffff;

struct Who {
  uint32_t block, epoch;
  uint16_t thread, warp, syncs;
  int number;
};

inline bool in_warp_of(const Mark& m, const Who& x) {
  if (m.thread == WARPS) return false;
  return (m.thread & LANES ? m.thread & ~LANES : m.thread / 32) == x.warp;
}
inline bool is_unordered(const Mark& m, const Who& x) {
  if (m.block == 0) return false;
  if (m.block != x.block) return true;
  return m.epoch == x.epoch && m.thread != x.thread && !(m.syncs != x.syncs && in_warp_of(m, x));
}
inline void set(Mark& m, const Who& x) { m = {x.block, x.epoch, x.thread, x.syncs, x.number}; }
// Adds x to those whom the mark stands for.
inline void join(Mark& m, const Who& x) {
  if (m.block == SEVERAL_BLOCKS) return;
  if (m.block == 0 || (m.block == x.block && m.epoch != x.epoch)) {
    set(m, x);
    return;
  }
  if (m.block != x.block) {
    m.block = SEVERAL_BLOCKS;
    return;
  }
  if (m.thread != x.thread) {
    m.thread = in_warp_of(m, x) ? static_cast<uint16_t>(LANES | x.warp) : WARPS;
    m.number = x.number;
  }
  m.syncs = x.syncs;
}

const char* const now[] = {"reads", "writes", "updates"};
const char* const then[] = {" read", " wrote", " updated"};

[[noreturn]] void race(const Warp& w, const Instruction& i, int lane, Access access, const Mark& other,
                       Access other_access, const char* memory) {
  std::ostringstream s;
  s << "race in " << memory << " memory: " << now[static_cast<int>(access)] << " what ";
  if (other.block == SEVERAL_BLOCKS) s << "several blocks";
  else {
    s << block_name(*w.block, other.block - 1) << " ";
    if (other.thread & LANES) s << "several threads";
    else s << thread_name(*w.block, other.thread);
  }
  const auto& [function, index] = instructions[static_cast<size_t>(other.number)];
  s << then[static_cast<int>(other_access)] << " at " << place(*function, function->code[static_cast<size_t>(index)])
    << " without a barrier between";
  fail(w, i, lane, s.str());
}

// Shared memory that nobody of the block has written holds nothing.
inline void begin_block(const Warp& w, const Instruction& i, int lane, Cell& cell, Mark* atomic, uint32_t block,
                        Access access) {
  const bool updated = atomic && atomic->block == block;
  if (cell.write.block != block) {
    if (access != Access::WRITE && !updated) fail(w, i, lane, "reads shared memory that nobody has written");
    cell.write.block = 0;
  }
  if (cell.read.block != block) cell.read.block = 0;
  if (atomic && !updated) atomic->block = 0;
}

// Threads of a block that write one place by one instruction: copies of a value, which may be allowed.
inline void allow_copies(const Warp& w, const Instruction& i, Mark& write, const Who& x, bool shared, bool same) {
  if (write.block != x.block || write.epoch != x.epoch || write.number != x.number || write.thread == x.thread) return;
  if (same && options.replicated) write.thread = x.thread;
  else if (options.lenient) {
    if (!same) note_at(w, i, "threads of a block write different values to one place");
    else if (!shared) note_at(w, i, "several threads of a block write the same value to global memory");
    write.thread = x.thread;
  }
}

inline void watch(const Warp& w, const Instruction& i, int lane, Cell& cell, Mark* atomic, Access access, bool shared,
                  bool same, const Who& x) {
  const char* const memory = shared ? "shared" : "global";
  if (shared) begin_block(w, i, lane, cell, atomic, x.block, access);
  if (access == Access::WRITE && (options.replicated || options.lenient))
    allow_copies(w, i, cell.write, x, shared, same);
  if (is_unordered(cell.write, x)) race(w, i, lane, access, cell.write, Access::WRITE, memory);
  if (access != Access::ATOMIC && atomic && is_unordered(*atomic, x))
    race(w, i, lane, access, *atomic, Access::ATOMIC, memory);
  if (access == Access::READ) {
    join(cell.read, x);
    return;
  }
  if (is_unordered(cell.read, x)) race(w, i, lane, access, cell.read, Access::READ, memory);
  if (access == Access::WRITE) set(cell.write, x);
  else join(*atomic, x);
}

inline Who who(const Warp& w, const Instruction& i, int lane) {
  const uint16_t thread = static_cast<uint16_t>(w.first + static_cast<uint32_t>(lane));
  return {w.block->number + 1, w.block->epoch, thread, static_cast<uint16_t>(thread / 32), w.syncs, i.number};
}

}  // namespace

void watch_global(Warp& w, const Instruction& i, int lane, Allocation& a, uint64_t address, int bytes, Access access,
                  bool same) {
  const Function& f = *w.block->f;
  const uint64_t unit = static_cast<uint64_t>(f.unit_global);
  if (a.launch != launch_number) {
    a.launch = launch_number;
    a.cells.assign(a.size / unit + 1, {});
    a.atomics.assign(f.has_atomics ? a.cells.size() : 0, {});
  }
  const Who x = who(w, i, lane);
  const uint64_t from = (address - a.begin) / unit, to = (address - a.begin + static_cast<uint64_t>(bytes) - 1) / unit;
  for (uint64_t k = from; k <= to; ++k)
    watch(w, i, lane, a.cells[k], f.has_atomics ? &a.atomics[k] : nullptr, access, false, same, x);
}

void watch_shared(Warp& w, const Instruction& i, int lane, uint64_t at, int bytes, Access access, bool same) {
  Block& b = *w.block;
  const uint64_t unit = static_cast<uint64_t>(b.f->unit_shared);
  const Who x = who(w, i, lane);
  for (uint64_t k = at / unit; k <= (at + static_cast<uint64_t>(bytes) - 1) / unit; ++k)
    watch(w, i, lane, b.cells[k], b.f->has_atomics ? &b.atomics[k] : nullptr, access, true, same, x);
}

}  // namespace ptx
