// What the parser makes of PTX: modules, functions, instructions.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

enum Type : uint8_t {
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
  TF32,
  F16X2,
  BF16X2,
  F32X2,
  U64,
  S64,
  B64,
  F64
};
Type type_of(const std::string& name);
int bits_of(Type type);
inline bool is_integer(Type t) {
  return t != NONE && t != F16 && t != BF16 && t != F32 && t != TF32 && t != F64 && t != F16X2 && t != BF16X2 &&
         t != F32X2;
}

// How the control flow of a warp treats an instruction. COLLECTIVE: the lanes of its membermask execute it together.
enum class Control : uint8_t { NEXT, COLLECTIVE, BRANCH, RETURN, BARRIER, CALL, TRAP };
enum class Space : uint8_t { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST };
enum class Rounding : uint8_t { EVEN, ZERO, DOWN, UP, AWAY };  // AWAY: to nearest, ties away from zero
enum class Reduction : uint8_t { NONE, AND, OR, COUNT };

struct Warp;
struct Instruction;
struct Function;
struct Allocation;
// What an instruction does to the lanes of a mask.
using Execute = void (*)(Warp&, const Instruction&, uint32_t lanes);

// A register is a row of the warp's frame: its values in the 32 lanes. Operands are the rows' byte offsets; -1: none.
struct Instruction {
  Execute execute = nullptr;
  Execute inner = nullptr;  // of an instruction with a modifier: the same without it
  Control control = Control::NEXT;
  Space space = Space::GENERIC;
  Type type = NONE, from = NONE;  // from: the source's, of a conversion
  Rounding rounding = Rounding::EVEN;
  Reduction reduction = Reduction::NONE;  // of a barrier
  uint8_t vector = 1, size = 0;           // of a memory access: elements, bytes of each
  bool guard_negated = false;
  bool wide_d = false, wide_a = false;               // the register has 64 bits
  bool not_a = false, not_b = false, not_c = false;  // the predicate is negated
  bool saturate = false, flush = false, relu = false, to_integral = false;
  bool aligned = false, transposed = false, nan = false;
  bool left_out = false;  // a barrier that a mutation leaves out
  int guard = -1, members = -1, target = -1;
  int d = -1, a = -1, b = -1, c = -1;
  int64_t immediate = 0;
  int mode = 0;    // the variant, where the instruction has several
  int number = 0;  // in `instructions`
  mutable Allocation* seen = nullptr;
  Function* callee = nullptr;
  int v[20] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};  // more operands
  int line = 0, file = 0, source_line = 0;
};

struct Parameter {
  std::string name;
  int size = 0, align = 1, offset = 0, row = -1;
};

// tid, ntid, ctaid, nctaid in x, y, z; laneid, warpid; lanemask_lt, le, eq, ge, gt
constexpr int SPECIALS = 19;

struct Counts {
  uint64_t launches = 0, blocks = 0, instructions = 0, lanes = 0;
  uint64_t requests = 0, sectors = 0, ideal = 0, shared_requests = 0, shared_waves = 0, branches = 0, diverged = 0;
  uint64_t products = 0;  // of matrix instructions; one of TF32 is two of 16 bits, one of double 16
};

struct Function {
  std::string name, module;
  bool entry = false, defined = false;
  std::vector<Parameter> parameters;
  Parameter result;
  std::vector<Instruction> code;
  std::vector<uint8_t> frame;  // its first state: zeros and constants
  int frame_size = 0, special[SPECIALS] = {}, parameter_size = 0;
  int local_size = 0, local_row = -1;
  int most_threads = 1024;  // .maxntid
  int shared_static = 0;    // where dynamic shared memory begins
  int shared_declared = 0;  // bytes of static shared memory
  // Races are watched in units of the smallest access of the function and of those that it calls.
  int unit_global = 8, unit_shared = 8;
  bool has_atomics = false, calls = false;
  std::vector<Function*> callees;
  std::vector<uint8_t> in_variable;                 // by byte of static shared memory: 0 between variables
  std::shared_ptr<std::vector<std::string>> lines;  // of the module's text
  std::shared_ptr<std::map<int, std::string>> files;
  Counts counts;
  std::vector<uint64_t> hits;  // by instruction
};

struct Module {
  std::map<std::string, std::unique_ptr<Function>> functions;
  std::vector<std::unique_ptr<char[]>> memory;
};

// What the parser knows of an operand. Symbols: a .param of a call, of the entry; dynamic shared memory; .local.
struct Operand {
  enum Kind : uint8_t { REGISTER, IMMEDIATE, ADDRESS, VECTOR, SYMBOL, SPECIAL, SINK, PAIR } kind = SINK;
  enum Symbol : uint8_t { OTHER, CALL_PARAMETER, ENTRY_PARAMETER, DYNAMIC_SHARED, THREAD_LOCAL } symbol = OTHER;
  std::string text;
  int row = -1, bits = 0;
  bool negated = false, is_float = false;
  uint64_t value = 0;  // of an immediate: its bits; of a floating-point one those of a double
  int64_t offset = 0;  // of an address; of a symbol in its space
  std::vector<Operand> parts;
};
struct Statement {
  std::vector<std::string> op;  // split at the dots
  std::vector<Operand> operands;
  Instruction instruction;
};

// The rows of a function's frame.
struct Rows {
  Function& f;
  std::map<std::pair<int, uint64_t>, int> constants;
  int add(int bits) {
    const int at = f.frame_size;
    f.frame_size += bits == 1 ? 32 : bits == 64 ? 256 : 128;
    f.frame.resize(static_cast<size_t>(f.frame_size));
    return at;
  }
  int constant(uint64_t value, int bits);
};

Module* parse(const char* text, const char* name);
// Chooses the function that executes a statement. False: there is none.
bool select(const Statement& s, Instruction& i, Rows& rows);
// Every instruction by its number, with its function.
extern std::vector<std::pair<Function*, int>> instructions;

}  // namespace ptx
