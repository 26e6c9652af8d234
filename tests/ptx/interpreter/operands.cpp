// The parser: operands, and what their symbols stand for.
#include <cctype>
#include <cstdlib>

#include "parser.h"

namespace ptx {

Operand Parser::list(const char* end) {
  Operand o;
  o.kind = Operand::VECTOR;
  while (!accept(end)) {
    o.parts.push_back(operand());
    accept(",");
  }
  return o;
}

Operand Parser::address() {
  Operand o;
  o.kind = Operand::ADDRESS;
  o.parts.push_back(operand());
  while (!accept("]")) {
    if (!accept("+") && peek() != "-") bad("address " + peek());
    o.offset += integer();
  }
  return o;
}

// 0f and 0d: the bits of a float or double; with a point: decimal; else an integer.
Operand Parser::number(bool negative, const std::string& text) {
  Operand o;
  o.kind = Operand::IMMEDIATE;
  o.text = text;
  auto as_double = [&](double x) {
    o.is_float = true;
    x = negative ? -x : x;
    memcpy(&o.value, &x, 8);
  };
  const char kind = text.size() > 2 && text[0] == '0' ? static_cast<char>(std::tolower(text[1])) : ' ';
  if (kind == 'f' && text.size() == 10) {
    const uint32_t bits = static_cast<uint32_t>(strtoul(text.c_str() + 2, nullptr, 16));
    float x;
    memcpy(&x, &bits, 4);
    as_double(x);
    o.offset = bits ^ (negative ? 0x80000000u : 0);
  } else if (kind == 'd' && text.size() == 18) {
    const uint64_t bits = strtoull(text.c_str() + 2, nullptr, 16);
    double x;
    memcpy(&x, &bits, 8);
    as_double(x);
  } else if (text.find('.') != std::string::npos) {
    as_double(strtod(text.c_str(), nullptr));
  } else {
    --at;
    o.value = static_cast<uint64_t>(integer());
    if (negative) o.value = 0 - o.value;
  }
  return o;
}

Operand Parser::operand() {
  if (accept("!")) {
    Operand o = operand();
    o.negated = true;
    return o;
  }
  if (accept("{")) return list("}");
  if (accept("(")) return list(")");
  if (accept("[")) return address();
  const bool negative = accept("-");
  const std::string text = next();
  if (std::isdigit(static_cast<unsigned char>(text[0]))) return number(negative, text);
  Operand o;
  o.text = text;
  if (text == "_") return o;
  if (const Register* r = find_register(text)) {
    o.kind = Operand::REGISTER;
    o.row = r->row;
    o.bits = r->bits;
  } else o.kind = text[0] == '%' ? Operand::SPECIAL : Operand::SYMBOL;
  if (!accept("|")) return o;
  Operand pair;
  pair.kind = Operand::PAIR;
  pair.parts = {o, operand()};
  return pair;
}

void Parser::resolve_special(Operand& o) {
  static const char* const names[SPECIALS] = {
      "%tid.x",       "%tid.y",       "%tid.z",       "%ntid.x",      "%ntid.y",     "%ntid.z", "%ctaid.x",
      "%ctaid.y",     "%ctaid.z",     "%nctaid.x",    "%nctaid.y",    "%nctaid.z",   "%laneid", "%warpid",
      "%lanemask_lt", "%lanemask_le", "%lanemask_eq", "%lanemask_ge", "%lanemask_gt"};
  for (int k = 0; k < SPECIALS; ++k) {
    if (o.text != names[k]) continue;
    o.kind = Operand::REGISTER;
    o.row = f->special[k];
    o.bits = 32;
    return;
  }
  if (o.text != "WARP_SZ") bad("special register " + o.text);
}

void Parser::resolve(Operand& o) {
  for (Operand& part : o.parts) resolve(part);
  if (o.kind == Operand::SPECIAL) resolve_special(o);
  if (o.kind != Operand::SYMBOL) return;
  auto constant = [&](uint64_t value) {
    o.kind = Operand::IMMEDIATE;
    o.value = value;
  };
  if (o.text == "WARP_SZ") return constant(32);
  for (size_t k = scoped_parameters.size(); k-- > 0;) {
    const auto it = scoped_parameters[k].find(o.text);
    if (it == scoped_parameters[k].end()) continue;
    o.symbol = Operand::CALL_PARAMETER;
    o.row = it->second;
    return;
  }
  for (const Parameter& p : f->parameters) {
    if (p.name != o.text) continue;
    o.symbol = Operand::ENTRY_PARAMETER;
    o.offset = p.offset;
    return;
  }
  if (const auto it = globals.find(o.text); it != globals.end()) return constant(it->second);
  if (const auto it = shared.offsets.find(o.text); it != shared.offsets.end()) {
    if (it->second == DYNAMIC) o.symbol = Operand::DYNAMIC_SHARED;
    else if (const auto variable = shared.unused.find(o.text); variable != shared.unused.end()) {
      shared.used += variable->second;
      shared.unused.erase(variable);
    }
    return constant(it->second == DYNAMIC ? 0 : static_cast<uint64_t>(it->second));
  }
  if (const auto it = locals.find(o.text); it != locals.end()) {
    o.symbol = Operand::THREAD_LOCAL;
    o.offset = it->second;
    o.row = f->local_row;
    return;
  }
  bad("unknown symbol " + o.text);
}

// Dynamic shared memory begins behind the static, which the whole body declares.
void Parser::place_dynamic(Operand& o) const {
  for (Operand& part : o.parts) place_dynamic(part);
  if (o.symbol == Operand::DYNAMIC_SHARED) o.value = static_cast<uint64_t>(f->shared_static);
}

}  // namespace ptx
