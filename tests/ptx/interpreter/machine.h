// What executes a program: warps, blocks, memory.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// Who accessed a unit of memory last. block: number + 1; 0: nobody.
struct Mark {
  uint32_t block = 0, epoch = 0;
  uint16_t thread = 0, syncs = 0;
  int number = 0;  // the instruction's
};
struct Cell {
  Mark write, read;
};
struct Allocation {
  uint64_t begin, size;
  uint64_t launch = 0;
  std::vector<Cell> cells;
  std::vector<Mark> atomics;
};

enum class Waits : uint8_t { NO, FOR_LANES, AT_BARRIER };
// Lanes at one place of the code.
struct Group {
  int pc;
  uint32_t lanes;
  Waits waits;
};
// A cp.async that is not complete.
struct Copy {
  const Instruction* instruction;
  int lane, group;
  uint64_t to, from;
  int bytes, bytes_read;
};

struct Block;
struct Warp {
  uint8_t* frame = nullptr;
  Function* f = nullptr;
  Block* block = nullptr;
  uint32_t existing = 0, live = 0, first = 0;  // first: the thread number of lane 0
  std::vector<Group> groups;
  std::vector<uint8_t> memory;  // of the frame
  // .local memory, the stack of each lane: `local_stride` bytes, of which the function's begin at `local_offset`.
  std::vector<uint8_t> local_memory;
  uint64_t local = 0, local_stride = 0, local_offset = 0;
  int depth = 0;       // of calls
  uint16_t syncs = 0;  // how often all lanes were at a bar.warp.sync
  std::vector<Copy> copies;
  int pending_group = 0;
};
struct Block {
  Function* f;
  unsigned grid[3], size[3], index[3];
  uint32_t number, epoch = 1;  // epoch: passed barriers + 1
  std::vector<uint8_t> shared;
  std::vector<Cell> cells;
  std::vector<Mark> atomics;
  const uint8_t* parameters;
  std::vector<Warp> warps;
};

// The error of approximate instructions: none, the documented one with a random sign, added, subtracted.
enum class Approximate : int { EXACT, RANDOM, PLUS, MINUS };
struct Options {
  bool races = true;
  Approximate approximate = Approximate::EXACT;
  int statistics = 0;  // 1: memory traffic; 2: instructions reached
  bool reverse_warps = false, reverse_blocks = false;
  // Reads out of bounds, and threads of a block that write one place by one instruction, are findings, no errors.
  bool lenient = false;
  bool replicated = false;  // threads of a block may write one value to one place by one instruction
  unsigned sampled = 0;     // so many blocks at each end of a grid are executed; 0: all
};
extern Options options;
extern std::map<uint64_t, Allocation> allocations;
extern uint64_t launch_number;

struct Total {
  uint64_t launches = 0, instructions = 0, lanes = 0;
  double seconds = 0;
};
extern Total total;

// messages.cpp
[[noreturn]] void fail(const Warp& w, const Instruction& i, int lane, const std::string& what);
std::string thread_name(const Block& b, int thread);
std::string block_name(const Block& b, uint32_t number);
std::string place(const Function& f, const Instruction& i);
// What is odd, but no error; statistics.cpp
void note(const std::string& kernel, const std::string& what);
inline void note_at(const Warp& w, const Instruction& i, const char* what) {
  note(w.block->f->name, std::string(what) + " at " + place(*w.f, i));
}
std::string statistics(const std::map<std::string, Function*>& kernels, bool clear);

bool run(Warp& w);  // until its lanes have ended, or false: until they wait at a barrier
void launch(Function& f, const unsigned* grid, const unsigned* size, unsigned dynamic, const uint8_t* parameters);

template <class T>
inline T* row(Warp& w, int offset) {
  return reinterpret_cast<T*>(w.frame + offset);
}
inline int first_lane(uint32_t lanes) { return __builtin_ctz(lanes); }

// memory.cpp: the host address of an access, checked. `space` becomes that in which it is, `value` is what it writes.
enum class Access : uint8_t { READ, WRITE, ATOMIC };
uint64_t resolve(Warp& w, const Instruction& i, int lane, uint64_t address, int bytes, Access access, Space& space,
                 const void* value = nullptr);
uint64_t resolve_in(Space space, Warp& w, const Instruction& i, int lane, uint64_t address, int bytes, Access access,
                    const void* value = nullptr);
inline uint64_t address_of(Warp& w, const Instruction& i, int lane) {
  if (i.wide_a) return row<uint64_t>(w, i.a)[lane] + static_cast<uint64_t>(i.immediate);
  return row<uint32_t>(w, i.a)[lane] + static_cast<uint32_t>(i.immediate);
}
// approximate.cpp: y, off by a relative error as an approximate instruction of argument x is.
float approximated(double y, double error, double x, unsigned salt);
// races.cpp
void watch_global(Warp& w, const Instruction& i, int lane, Allocation& a, uint64_t address, int bytes, Access access,
                  bool same);
void watch_shared(Warp& w, const Instruction& i, int lane, uint64_t at, int bytes, Access access, bool same);
// traffic.cpp: counts the sectors and the bank conflicts of an access.
void count_traffic(Warp& w, const Instruction& i, uint32_t lanes, bool shared);

}  // namespace ptx
