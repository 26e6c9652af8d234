// The parser: statements of a body -> instructions.
#include "parser.h"

namespace ptx {

std::vector<std::pair<Function*, int>> instructions;

void Parser::finish() {
  constexpr size_t ALIGN = 128;
  f->shared_static = static_cast<int>((shared.in_variable.size() + ALIGN - 1) / ALIGN * ALIGN);
  f->shared_declared = shared.used;
  f->in_variable = shared.in_variable;
  f->in_variable.resize(static_cast<size_t>(f->shared_static), 0);
  for (Statement& s : statements) {
    for (Operand& o : s.operands) place_dynamic(o);
    Instruction i = s.instruction;
    decode(s, i);
    add(i);
  }
  Instruction end;
  end.control = Control::RETURN;
  end.line = tokens[at - 1].line;
  add(end);
  f->hits.assign(f->code.size(), 0);
}

void Parser::add(const Instruction& i) {
  f->code.push_back(i);
  f->code.back().number = static_cast<int>(instructions.size());
  instructions.emplace_back(f, static_cast<int>(f->code.size()) - 1);
}

void Parser::decode(const Statement& s, Instruction& i) {
  auto error = [&](const std::string& what) {
    return std::runtime_error(module_name + ":" + std::to_string(i.line) + ": " + what + " in " + f->name);
  };
  const std::string& name = s.op[0];
  if (name == "bra") {
    const auto label = s.operands.empty() ? labels.end() : labels.find(s.operands[0].text);
    if (label == labels.end()) throw error("a branch to an unknown label");
    i.control = Control::BRANCH;
    i.target = label->second;
    return;
  }
  if (name == "call") return decode_call(s, i);
  std::string op = name;
  for (size_t k = 1; k < s.op.size(); ++k) op += "." + s.op[k];
  try {
    if (!select(s, i, *rows) || (name == "exit" && !f->entry)) throw std::runtime_error("cannot execute " + op);
  } catch (const std::exception& e) {
    throw error(e.what());
  }
  f->has_atomics = f->has_atomics || name == "atom" || name == "red";
  if (i.size == 0) return;
  if (i.space == Space::GLOBAL || i.space == Space::GENERIC) f->unit_global = std::min<int>(f->unit_global, i.size);
  if (i.space == Space::SHARED || i.space == Space::GENERIC) f->unit_shared = std::min<int>(f->unit_shared, i.size);
}

int Parser::call_parameter(const std::string& name, int statement) const {
  for (size_t k = call_parameters.size(); k-- > 0;)
    if (call_parameters[k].name == name && call_parameters[k].statement <= statement) return call_parameters[k].row;
  throw std::runtime_error(module_name + ": the parameter " + name + " of a call in " + f->name);
}

// call {(result),} function{, (parameters)};
void Parser::decode_call(const Statement& s, Instruction& i) {
  const int number = static_cast<int>(&s - statements.data());
  size_t k = 0;
  i.control = Control::CALL;
  f->calls = true;
  if (s.operands.at(0).kind == Operand::VECTOR) {
    i.d = call_parameter(s.operands[0].parts.at(0).text, number);
    k = 1;
  }
  const auto callee = module.functions.find(s.operands.at(k).text);
  if (callee == module.functions.end())
    throw std::runtime_error(module_name + ":" + std::to_string(i.line) + ": cannot execute a call of " +
                             s.operands[k].text + " in " + f->name);
  i.callee = callee->second.get();
  f->callees.push_back(i.callee);
  if (k + 1 >= s.operands.size()) return;
  int n = 0;
  for (const Operand& p : s.operands[k + 1].parts) {
    if (n == 20) throw std::runtime_error(module_name + ": more than 20 parameters of a call in " + f->name);
    i.v[n++] = call_parameter(p.text, number);
  }
}

}  // namespace ptx
