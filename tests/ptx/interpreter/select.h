// Choosing the function that executes a statement.
#pragma once
#include <algorithm>

#include "lanes.h"

namespace ptx {

struct Selector {
  const Statement& s;
  Instruction& i;
  Rows& rows;
  std::vector<Type> types;
  const std::string& name;
  Type type;

  Selector(const Statement& statement, Instruction& instruction, Rows& r)
      : s(statement), i(instruction), rows(r), name(statement.op[0]) {
    for (size_t k = 1; k < s.op.size(); ++k)
      if (Type t = type_of(s.op[k])) types.push_back(t);
    type = types.empty() ? NONE : types[0];
    i.type = type;
  }

  bool has(const char* modifier) const { return std::find(s.op.begin() + 1, s.op.end(), modifier) != s.op.end(); }
  bool has_any(std::initializer_list<const char*> modifiers) const {
    return std::any_of(modifiers.begin(), modifiers.end(), [&](const char* m) { return has(m); });
  }
  size_t operands() const { return s.operands.size(); }
  const Operand& operand(size_t k) const {
    if (k >= s.operands.size()) throw std::runtime_error(name + ": too few operands");
    return s.operands[k];
  }
  // The row of an operand of a type; an immediate gets a row of its own.
  int use(const Operand& x, Type t);
  int use(size_t k, Type t) { return use(operand(k), t); }
  // d, a and, where they are, b and c, all of type t.
  void use_all(Type t) {
    i.d = use(0, t);
    i.a = use(1, t);
    if (operands() > 2) i.b = use(2, t);
    if (operands() > 3) i.c = use(3, t);
  }
  // The address of a memory operand: i.a, i.immediate, i.wide_a.
  void use_address(const Operand& x);
  bool with(Execute execute) {
    i.execute = execute;
    return execute != nullptr;
  }
  bool together(int members, Execute execute) {
    i.control = Control::COLLECTIVE;
    i.members = members;
    return with(execute);
  }
};

constexpr int COMPARISONS = 14;
extern const char* const comparisons[COMPARISONS];  // the names, in the order of `Comparison`

// Each returns false for what it cannot execute.
bool select_float(Selector& s);        // floats.cpp: arithmetic of f32 and f64
bool select_integer(Selector& s);      // integers.cpp
bool select_bits(Selector& s);         // bits.cpp
bool select_approximate(Selector& s);  // approximate.cpp
bool select_half(Selector& s);         // half.cpp: arithmetic of f16, bf16 and pairs
bool select_compare(Selector& s);      // compare.cpp: setp, selp, logic of predicates
bool select_convert(Selector& s);      // convert.cpp
bool select_move(Selector& s);         // move.cpp: mov, cvta
bool select_exchange(Selector& s);     // exchange.cpp: shfl, vote, match, redux, elect, bar.warp
bool select_matrix(Selector& s);       // matrix.cpp: mma, ldmatrix, stmatrix
bool select_memory(Selector& s);       // access.cpp: ld, st
bool select_atomic(Selector& s);       // atomics.cpp
bool select_copy(Selector& s);         // copies.cpp: cp.async

}  // namespace ptx
