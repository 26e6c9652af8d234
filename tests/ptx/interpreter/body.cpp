// The parser: functions, from their heads to their statements.
#include <sstream>

#include "parser.h"

namespace ptx {

void Parser::parse_function(bool entry) {
  Parameter result;
  if (!entry && accept("(")) {
    result = parameter();
    expect(")");
  }
  const std::string name = next();
  auto& slot = module.functions[name];  // it may have been declared
  if (!slot) slot = std::make_unique<Function>();
  f = slot.get();
  f->name = name;
  f->entry = entry;
  f->module = module_name;
  f->lines = lines;
  f->files = files;
  f->result = result;
  rows = std::make_unique<Rows>(Rows{*f, {}});
  scopes.assign(1, {});
  scoped_parameters.assign(1, {});
  call_parameters.clear();
  labels.clear();
  locals.clear();
  statements.clear();
  if (peek() == "(") f->parameters = parameters();
  directives();
  if (accept(";")) return;  // a declaration
  expect("{");
  f->defined = true;
  lay_out_parameters();
  for (int& special : f->special) special = rows->add(32);
  f->local_row = rows->add(64);
  // Shared memory that the body declares is the function's own.
  const SharedMemory of_module = shared;
  parse_body();
  finish();
  shared = of_module;
}

// .maxntid, .reqntid x{, y{, z}}: at most as many threads in a block. Others do not matter here.
void Parser::directives() {
  while (peek() != "{" && peek() != ";") {
    const std::string word = next();
    if (word != ".maxntid" && word != ".reqntid") continue;
    int64_t threads = integer();
    while (accept(",")) threads *= integer();
    f->most_threads = static_cast<int>(threads);
  }
}

void Parser::lay_out_parameters() {
  int offset = 0;
  auto add_row = [&](Parameter& p) {
    if (p.size > 8) bad("parameter " + p.name + " of " + std::to_string(p.size) + " bytes of a function");
    p.row = rows->add(p.size * 8);
    scoped_parameters[0][p.name] = p.row;
  };
  for (Parameter& p : f->parameters) {
    offset = (offset + p.align - 1) / p.align * p.align;
    p.offset = offset;
    offset += p.size;
    if (!f->entry) add_row(p);
  }
  f->parameter_size = offset;
  if (!f->entry && f->result.size) add_row(f->result);
}

void Parser::parse_body() {
  for (int depth = 1; depth > 0;) {
    const std::string word = peek();
    if (word == "{") {
      ++at;
      ++depth;
      scopes.emplace_back();
      scoped_parameters.emplace_back();
    } else if (word == "}") {
      ++at;
      --depth;
      scopes.pop_back();
      scoped_parameters.pop_back();
    } else if (parse_declaration(word)) {
      continue;
    } else if (at + 1 < tokens.size() && tokens[at + 1].text == ":") {
      labels[word] = static_cast<int>(statements.size());
      at += 2;
    } else parse_statement();
  }
}

bool Parser::parse_declaration(const std::string& word) {
  if (word == ";") ++at;
  else if (word == ".loc") {
    const int line = tokens[at++].line;
    file = static_cast<int>(integer());
    source_line = static_cast<int>(integer());
    skip_line(line);
  } else if (word == ".pragma") skip_to(";");
  else if (word == ".reg") {
    ++at;
    declare_registers();
  } else if (word == ".shared") {
    ++at;
    if (!f->entry) bad("shared memory of a function");
    declare_shared(variable());
  } else if (word == ".local") {
    ++at;
    const Variable v = variable();
    f->local_size = (f->local_size + v.align - 1) / v.align * v.align;
    locals[v.name] = f->local_size;
    f->local_size += static_cast<int>(v.size);
  } else if (word == ".param") {
    const Parameter p = parameter();
    expect(";");
    if (p.size > 8) bad("parameter " + p.name + " of " + std::to_string(p.size) + " bytes of a call");
    const int row = rows->add(p.size * 8);
    scoped_parameters.back()[p.name] = row;
    call_parameters.push_back({p.name, static_cast<int>(statements.size()), row});
  } else return false;
  return true;
}

void Parser::declare_registers() {
  const Type type = type_of(next().substr(1));
  if (type == NONE) bad("register type");
  do {
    const std::string name = next();
    if (accept("<")) {
      const int64_t count = integer();
      expect(">");
      for (int64_t k = 0; k < count; ++k) scopes.back()[name + std::to_string(k)] = {-1, bits_of(type)};
    } else scopes.back()[name] = {-1, bits_of(type)};
  } while (accept(","));
  expect(";");
}

// A register gets its row when it is first used.
Parser::Register* Parser::find_register(const std::string& name) {
  for (size_t k = scopes.size(); k-- > 0;) {
    const auto it = scopes[k].find(name);
    if (it == scopes[k].end()) continue;
    if (it->second.row < 0) it->second.row = rows->add(it->second.bits);
    return &it->second;
  }
  return nullptr;
}

void Parser::parse_statement() {
  Statement s;
  s.instruction.line = tokens[at].line;
  s.instruction.file = file;
  s.instruction.source_line = source_line;
  if (accept("@")) {
    s.instruction.guard_negated = accept("!");
    const Register* r = find_register(next());
    if (!r || r->bits != 1) bad("the guard is no predicate");
    s.instruction.guard = r->row;
  }
  std::stringstream parts(next());
  for (std::string part; std::getline(parts, part, '.');) s.op.push_back(part);
  while (!accept(";")) {
    s.operands.push_back(operand());
    accept(",");
  }
  if (s.op[0] != "call" && s.op[0] != "bra")
    for (Operand& o : s.operands) resolve(o);
  statements.push_back(std::move(s));
}

}  // namespace ptx
