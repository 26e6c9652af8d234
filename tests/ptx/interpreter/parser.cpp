// The parser: modules, their variables and the parameters of functions.
#include "parser.h"

#include <cstdlib>
#include <sstream>

namespace ptx {

// Between the variables of shared memory, so that what is written behind one does not meet another.
constexpr int GAP = 32;

Parser::Parser(Module& m, const std::string& text, const char* name)
    : tokens(tokens_of(text)), module(m), module_name(name) {
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines->push_back(line);
}

void Parser::bad(const std::string& what) const {
  const int line = tokens.empty() ? 0 : tokens[std::min(at, tokens.size() - 1)].line;
  throw std::runtime_error(module_name + ":" + std::to_string(line) + ": " + what);
}
const std::string& Parser::peek() const {
  if (at >= tokens.size()) bad("unexpected end");
  return tokens[at].text;
}
std::string Parser::next() {
  const std::string& text = peek();
  ++at;
  return text;
}
bool Parser::accept(const char* text) {
  if (at >= tokens.size() || tokens[at].text != text) return false;
  ++at;
  return true;
}
void Parser::expect(const char* text) {
  if (!accept(text)) bad(std::string("expected ") + text + ", found " + peek());
}
void Parser::skip_line(int line) {
  while (at < tokens.size() && tokens[at].line == line) ++at;
}
void Parser::skip_to(const char* text) {
  while (next() != text) {
  }
}
int64_t Parser::integer() {
  const bool negative = accept("-");
  std::string text = next();
  while (!text.empty() && text.back() == 'U') text.pop_back();
  char* end = nullptr;
  const int64_t value = static_cast<int64_t>(strtoull(text.c_str(), &end, 0));
  if (text.empty() || *end) bad("expected an integer, found " + text);
  return negative ? -value : value;
}

Parser::Variable Parser::variable() {
  Variable v;
  while (peek()[0] == '.') {
    if (accept(".align")) v.align = static_cast<int>(integer());
    else if (const Type type = type_of(next().substr(1))) v.element = bits_of(type) / 8;
  }
  v.name = next();
  int64_t count = 1;
  while (accept("[")) {
    v.dynamic = accept("]");
    count *= v.dynamic ? 0 : integer();
    if (!v.dynamic) expect("]");
  }
  v.size = count * v.element;
  v.align = std::max(v.align, v.element);
  auto put = [&](int64_t x) {
    for (int k = 0; k < v.element; ++k) v.value.push_back(static_cast<uint8_t>(x >> (8 * k)));
  };
  if (accept("=")) {
    if (!accept("{")) put(integer());
    else
      while (!accept("}")) {
        put(integer());
        accept(",");
      }
  }
  expect(";");
  return v;
}

void Parser::declare_shared(const Variable& v) {
  if (v.dynamic) {
    shared.offsets[v.name] = DYNAMIC;
    return;
  }
  static uint8_t variables = 0;
  variables = static_cast<uint8_t>(variables % 255 + 1);
  const int begin = static_cast<int>(shared.in_variable.size() + static_cast<size_t>(v.align) - 1) / v.align * v.align;
  shared.offsets[v.name] = begin;
  shared.unused[v.name] = static_cast<int>(v.size);
  shared.in_variable.resize(static_cast<size_t>(begin), 0);
  shared.in_variable.resize(static_cast<size_t>(begin + v.size), variables);
  shared.in_variable.resize(static_cast<size_t>(begin + v.size + GAP), 0);
}

void Parser::declare_global(const Variable& v) {
  const uint64_t align = static_cast<uint64_t>(std::max(v.align, 16));
  auto memory = std::make_unique<char[]>(static_cast<size_t>(v.size) + 16 + align);
  const uint64_t begin = (reinterpret_cast<uint64_t>(memory.get()) + align - 1) / align * align;
  memset(reinterpret_cast<void*>(begin), 0, static_cast<size_t>(v.size));
  if (!v.value.empty()) memcpy(reinterpret_cast<void*>(begin), v.value.data(), v.value.size());
  globals[v.name] = begin;
  allocations[begin] = {begin, static_cast<uint64_t>(v.size), 0, {}, {}};
  module.memory.push_back(std::move(memory));
}

Parameter Parser::parameter() {
  expect(".param");
  Parameter p;
  int element = 0;
  while (peek()[0] == '.') {
    if (accept(".align")) p.align = std::max(p.align, static_cast<int>(integer()));
    else if (accept(".ptr")) {
      // Facts about what it points to.
      while (peek()[0] == '.')
        if (next() == ".align") integer();
    } else element = bits_of(type_of(next().substr(1))) / 8;
  }
  p.name = next();
  p.size = element;
  p.align = std::max(p.align, element);
  if (accept("[")) {
    p.size = static_cast<int>(integer()) * element;
    expect("]");
  }
  return p;
}
std::vector<Parameter> Parser::parameters() {
  std::vector<Parameter> out;
  expect("(");
  while (!accept(")")) {
    out.push_back(parameter());
    accept(",");
  }
  return out;
}

// Debug information.
void Parser::section() {
  skip_to("{");
  for (int depth = 1; depth > 0;) {
    const std::string text = next();
    depth += text == "{" ? 1 : text == "}" ? -1 : 0;
  }
}

void Parser::parse_file() {
  const int line = tokens[at - 1].line, number = static_cast<int>(integer());
  const std::string name = next();
  (*files)[number] = name.substr(1, name.size() - 2);
  skip_line(line);
}

void Parser::parse_module() {
  while (at < tokens.size()) {
    const int line = tokens[at].line;
    const std::string word = next();
    if (word == ".version" || word == ".target" || word == ".address_size") skip_line(line);
    else if (word == ".file") parse_file();
    else if (word == ".section") section();
    else if (word == ".extern" || word == ".visible" || word == ".weak" || word == ".common") continue;
    else if (word == ".shared") declare_shared(variable());
    else if (word == ".global" || word == ".const") declare_global(variable());
    else if (word == ".entry" || word == ".func") parse_function(word == ".entry");
    else if (word == ".pragma") skip_to(";");
    else {
      --at;
      bad("unexpected " + word);
    }
  }
}

namespace {

// The smallest accesses of what is called count too, for the marks of memory are one for all.
void include_callees(Function& f, const Function& g, std::vector<const Function*>& seen) {
  if (std::find(seen.begin(), seen.end(), &g) != seen.end()) return;
  seen.push_back(&g);
  f.unit_global = std::min(f.unit_global, g.unit_global);
  f.unit_shared = std::min(f.unit_shared, g.unit_shared);
  f.has_atomics = f.has_atomics || g.has_atomics;
  for (const Function* callee : g.callees) include_callees(f, *callee, seen);
}

}  // namespace

Module* parse(const char* text, const char* name) {
  // The module is never freed, also when parsing fails: `instructions` and `allocations` keep pointers into it.
  Module* module = new Module;
  Parser(*module, text, name).parse_module();
  for (auto& [_, f] : module->functions) {
    std::vector<const Function*> seen;
    include_callees(*f, *f, seen);
  }
  return module;
}

}  // namespace ptx
