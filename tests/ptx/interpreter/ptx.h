// A PTX interpreter: what the parser makes, and what executes it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace ptx {

enum Ty : uint8_t {
  NONE,
  PRED,
  U8,
  S8,
  B8,
  U16,
  S16,
  B16,
  F16,
  BF16,
  U32,
  S32,
  B32,
  F32,
  F16X2,
  BF16X2,
  U64,
  S64,
  B64,
  F64
};
int bits_of(Ty t);

struct Warp;
struct Inst;
using Fn = void (*)(Warp&, const Inst&, uint32_t);
enum Ctl : uint8_t { PLAIN, SYNC, BRA, RET, BAR, CALL, TRAP };
enum Space : uint8_t { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST };

struct Alloc;
struct Function;
struct Inst {
  Fn fn = nullptr;
  Ctl ctl = PLAIN;
  bool negated = false, wide_d = false, wide_s = false;  // wide: the register is of 64 bits
  uint8_t vec = 1, size = 0;                             // of a memory access: values, bytes of each
  Space space = GENERIC;
  Ty ty = NONE, ty2 = NONE;
  int guard = -1, target = -1;
  int d = -1, a = -1, b = -1, c = -1;  // byte offsets of rows in the frame
  int v[20] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  int64_t imm = 0;
  int mode = 0, flags = 0;
  int line = 0, file = 0, source_line = 0;
  Function* callee = nullptr;
  mutable Alloc* seen = nullptr;
};

struct Param {
  std::string name;
  int size, align, offset, row;
};
struct Function {
  std::string name, module;
  bool entry = false;
  std::vector<Param> params;
  Param result{"", 0, 0, 0, -1};
  std::vector<Inst> code;
  std::vector<uint8_t> frame;  // its first state: zeros, constants
  int frame_size = 0, special[16], param_size = 0, local_size = 0, local_row = -1;
  int shared_static = 0, granule_global = 8, granule_shared = 8;
  std::shared_ptr<std::vector<std::string>> lines;  // PTX text
  std::shared_ptr<std::map<int, std::string>> files;
  // statistics
  uint64_t launches = 0, instructions = 0, lanes = 0, blocks = 0;
  uint64_t requests = 0, sectors = 0, ideal = 0, shared_requests = 0, shared_waves = 0, branches = 0, diverged = 0;
  std::vector<uint64_t> hits;
};

struct Module {
  std::map<std::string, std::unique_ptr<Function>> functions;
  std::vector<std::unique_ptr<char[]>> memory;
};

struct Shadow {
  uint32_t wb = 0, we = 0, rb = 0, re = 0;
  uint16_t wt = 0, rt = 0, ws = 0, rs = 0;
  int wi = 0, ri = 0;
};
struct Alloc {
  uint64_t begin, size;
  uint64_t launch = 0;
  std::vector<Shadow> shadow;
};

struct Group {
  int pc;
  uint32_t mask;
  uint8_t blocked;
};  // blocked: 0 no, 1 at a warp's synchronisation, 2 at a barrier
struct Block;
struct Copy {
  const Inst* inst;
  int lane, group;
  uint64_t to, from;
  int bytes, bytes_read;
};
struct Warp {
  uint8_t* R = nullptr;
  Function* f = nullptr;
  Block* block = nullptr;
  uint32_t live = 0, mask = 0, first = 0;  // first: thread number of lane 0
  std::vector<Group> groups;
  std::vector<uint8_t> memory, local;
  uint16_t syncs = 0;  // of this warp alone
  std::vector<Copy> copies;
  int pending_group = 0;
};
struct Block {
  Function* f;
  unsigned grid[3], size[3], index[3];
  uint32_t serial, epoch = 1;
  std::vector<uint8_t> shared;
  std::vector<Shadow> shadow;
  const uint8_t* params;
  std::vector<Warp> warps;
};

struct Options {
  int races = 1, approx = 0, stats = 0, order = 0, lenient = 0;
  int replicated = 0;  // threads of a block may store the same value to one place of global memory
  uint64_t seed = 1;
};
extern Options options;
extern std::map<uint64_t, Alloc> allocations;

[[noreturn]] void fail(const Warp& w, const Inst& i, int lane, const std::string& what);
void note(const std::string& kernel, const std::string& what);
Module* parse(const char* text, const char* name);
void decode(Function& f, Module& m);
bool run(Warp& w);  // false: at a barrier

template <class T>
inline T* row(Warp& w, int offset) {
  return reinterpret_cast<T*>(w.R + offset);
}

// What the parser knows of an operand.
struct Operand {
  enum Kind : uint8_t { REG, IMM, ADDRESS, VECTOR, SYMBOL, SPECIAL, SINK, PAIR } kind = SINK;
  std::string text;
  int row = -1, bits = 0;  // register
  bool not_ = false, is_float = false;
  uint64_t value = 0;  // bits of an immediate; of a double if it is a float
  int64_t offset = 0;  // of an address
  std::vector<Operand> parts;
};
struct Statement {
  std::vector<std::string> op;
  std::vector<Operand> operands;
  Inst inst;
};
bool select(const Statement& s, Inst& i, Function& f, struct Rows& rows);  // ops.cpp: the function of an instruction

// Rows of a frame for constants.
struct Rows {
  Function& f;
  std::map<std::pair<int, uint64_t>, int> constants;
  int add(int bits) {
    int at = f.frame_size;
    f.frame_size += bits == 1 ? 32 : bits == 64 ? 256 : 128;
    f.frame.resize(f.frame_size);
    return at;
  }
  int constant(uint64_t value, int bits);
};
Ty type_of(const std::string& s);

}  // namespace ptx
