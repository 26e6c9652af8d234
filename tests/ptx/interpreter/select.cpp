// Which file executes an instruction, by its name; and operands.
#include "select.h"

namespace ptx {

namespace {

void nothing(Warp&, const Instruction&, uint32_t) {}
bool select_nothing(Selector& s) { return s.with(&nothing); }

bool select_control(Selector& s) {
  s.i.control = s.name == "trap" ? Control::TRAP : Control::RETURN;
  return true;
}

// Barrier 0 of all threads of the block.
bool select_barrier(Selector& s) {
  if (s.has("warp")) return select_exchange(s);
  Instruction& i = s.i;
  i.control = Control::BARRIER;
  i.aligned = s.name == "bar" || s.has("aligned");
  if (s.has_any({"arrive", "cluster"})) return false;
  size_t k = 0;
  if (s.has("red")) {
    i.reduction = s.has("popc") ? Reduction::COUNT : s.has("and") ? Reduction::AND : Reduction::OR;
    i.d = s.use(0, i.reduction == Reduction::COUNT ? U32 : PRED);
    k = 1;
  }
  const Operand& barrier = s.operand(k++);
  if (barrier.kind != Operand::IMMEDIATE || barrier.value != 0) return false;
  if (s.has("red")) {
    const Operand& p = s.s.operands.back();
    i.a = s.use(p, PRED);
    i.not_a = p.negated;
    if (s.operands() > k + 1) i.b = s.use(k, U32);
  } else if (s.operands() > k) i.b = s.use(k, U32);  // how many threads
  return true;
}

bool select_arithmetic(Selector& s) {
  switch (s.type) {
    case F16:
    case BF16:
    case F16X2:
    case BF16X2: return select_half(s);
    case F32:
    case F64:
    case F32X2: return select_float(s);
    default: return select_integer(s);
  }
}

bool select_logic(Selector& s) { return s.type == PRED ? select_compare(s) : select_bits(s); }
bool select_function(Selector& s) {
  return s.type == F16 || s.type == BF16 || s.type == F16X2 || s.type == BF16X2 ? select_half(s)
                                                                                : select_approximate(s);
}
// Those with an approximate and a rounded form.
bool select_either(Selector& s) { return s.has_any({"approx", "full"}) ? select_approximate(s) : select_arithmetic(s); }

using Select = bool (*)(Selector&);
const std::map<std::string, Select> table = {
    {"add", &select_arithmetic},
    {"sub", &select_arithmetic},
    {"mul", &select_arithmetic},
    {"mad", &select_arithmetic},
    {"fma", &select_arithmetic},
    {"rem", &select_arithmetic},
    {"min", &select_arithmetic},
    {"max", &select_arithmetic},
    {"neg", &select_arithmetic},
    {"abs", &select_arithmetic},
    {"copysign", &select_float},
    {"div", &select_either},
    {"sqrt", &select_either},
    {"rcp", &select_either},
    {"rsqrt", &select_either},
    {"ex2", &select_function},
    {"lg2", &select_function},
    {"sin", &select_function},
    {"cos", &select_function},
    {"tanh", &select_function},
    {"and", &select_logic},
    {"or", &select_logic},
    {"xor", &select_logic},
    {"not", &select_logic},
    {"cnot", &select_bits},
    {"shl", &select_bits},
    {"shr", &select_bits},
    {"bfe", &select_bits},
    {"bfi", &select_bits},
    {"shf", &select_bits},
    {"prmt", &select_bits},
    {"lop3", &select_bits},
    {"popc", &select_bits},
    {"clz", &select_bits},
    {"brev", &select_bits},
    {"setp", &select_compare},
    {"selp", &select_compare},
    {"cvt", &select_convert},
    {"mov", &select_move},
    {"cvta", &select_move},
    {"shfl", &select_exchange},
    {"vote", &select_exchange},
    {"match", &select_exchange},
    {"redux", &select_exchange},
    {"elect", &select_exchange},
    {"activemask", &select_exchange},
    {"bar", &select_barrier},
    {"barrier", &select_barrier},
    {"mma", &select_matrix},
    {"ldmatrix", &select_matrix},
    {"stmatrix", &select_matrix},
    {"ld", &select_memory},
    {"ldu", &select_memory},
    {"st", &select_memory},
    {"atom", &select_atomic},
    {"red", &select_atomic},
    {"cp", &select_copy},
    {"ret", &select_control},
    {"exit", &select_control},
    {"trap", &select_control},
    {"membar", &select_nothing},
    {"fence", &select_nothing},
    {"griddepcontrol", &select_nothing},
    {"discard", &select_nothing},
    {"prefetch", &select_nothing},
    {"prefetchu", &select_nothing},
    {"nanosleep", &select_nothing},
};

}  // namespace

int Selector::use(const Operand& x, Type t) {
  if (x.kind == Operand::REGISTER) return x.row;
  if (x.kind == Operand::SINK) return -1;
  if (x.kind != Operand::IMMEDIATE) throw std::runtime_error("operand " + x.text + " of " + name);
  uint64_t value = x.value;
  const int bits = bits_of(t);
  if (x.is_float && bits == 32) {
    // 0f...: the bits as they are written, in `offset`.
    const bool exact = x.text.size() == 10 && (x.text[1] == 'f' || x.text[1] == 'F');
    value = exact ? static_cast<uint32_t>(x.offset) : to_bits(static_cast<float>(from_bits<double>(value)));
  } else if (bits == 32) value &= 0xffffffffu;
  else if (bits == 16) value &= 0xffff;
  return rows.constant(value, bits);
}

void Selector::use_address(const Operand& x) {
  if (x.kind != Operand::ADDRESS) throw std::runtime_error("operand " + x.text + " of " + name + " is no address");
  const Operand& base = x.parts[0];
  i.immediate = x.offset;
  if (base.kind == Operand::IMMEDIATE) {
    i.wide_a = true;
    i.a = rows.constant(base.value, 64);
  } else if (base.kind == Operand::REGISTER) {
    i.a = base.row;
    i.wide_a = base.bits == 64;
  } else if (base.symbol == Operand::THREAD_LOCAL) {
    i.immediate += base.offset;
    i.a = base.row;
    i.wide_a = true;
    i.space = Space::LOCAL;
  } else throw std::runtime_error("address " + base.text + " of " + name);
}

bool select(const Statement& statement, Instruction& i, Rows& rows) {
  const auto it = table.find(statement.op[0]);
  if (it == table.end()) return false;
  Selector s(statement, i, rows);
  return it->second(s);
}

}  // namespace ptx
