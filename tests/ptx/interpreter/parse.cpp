// PTX text -> decoded instructions.
#include <cstdlib>
#include <functional>
#include <sstream>

#include "ptx.h"

namespace ptx {

struct Token {
  std::string s;
  int line;
};

static std::vector<Token> tokens_of(const std::string& t) {
  std::vector<Token> out;
  int line = 1;
  auto word = [](char c) {
    return isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
  };
  for (size_t i = 0; i < t.size();) {
    const char c = t[i];
    if (c == '\n') {
      ++line;
      ++i;
      continue;
    }
    if (isspace(static_cast<unsigned char>(c))) {
      ++i;
      continue;
    }
    if (c == '/' && t[i + 1] == '/') {
      while (i < t.size() && t[i] != '\n') ++i;
      continue;
    }
    if (c == '/' && t[i + 1] == '*') {
      while (!(t[i] == '*' && t[i + 1] == '/')) {
        if (t[i] == '\n') ++line;
        ++i;
      }
      i += 2;
      continue;
    }
    if (c == '"') {
      size_t j = i + 1;
      while (t[j] != '"') ++j;
      out.push_back({t.substr(i, j + 1 - i), line});
      i = j + 1;
      continue;
    }
    if (word(c)) {
      size_t j = i;
      while (j < t.size() && (word(t[j]) || (t[j] == ':' && t[j + 1] == ':') || (t[j] == ':' && t[j - 1] == ':'))) ++j;
      out.push_back({t.substr(i, j - i), line});
      i = j;
      continue;
    }
    out.push_back({std::string(1, c), line});
    ++i;
  }
  return out;
}

Ty type_of(const std::string& s) {
  static const std::map<std::string, Ty> table = {
      {"pred", PRED},     {"u8", U8},     {"s8", S8},   {"b8", B8},   {"u16", U16},   {"s16", S16}, {"b16", B16},
      {"f16", F16},       {"bf16", BF16}, {"u32", U32}, {"s32", S32}, {"b32", B32},   {"f32", F32}, {"f16x2", F16X2},
      {"bf16x2", BF16X2}, {"u64", U64},   {"s64", S64}, {"b64", B64}, {"f32x2", B64}, {"f64", F64}};
  auto it = table.find(s);
  return it == table.end() ? NONE : it->second;
}
int bits_of(Ty t) {
  switch (t) {
    case NONE: return 0;
    case PRED: return 1;
    case U8:
    case S8:
    case B8: return 8;
    case U16:
    case S16:
    case B16:
    case F16:
    case BF16: return 16;
    case U64:
    case S64:
    case B64:
    case F64: return 64;
    default: return 32;
  }
}

int Rows::constant(uint64_t value, int bits) {
  bits = bits == 64 ? 64 : bits == 1 ? 1 : 32;
  auto key = std::make_pair(bits, value);
  auto it = constants.find(key);
  if (it != constants.end()) return it->second;
  const int at = add(bits);
  if (bits == 64)
    for (int l = 0; l < 32; ++l) memcpy(&f.frame[at + 8 * l], &value, 8);
  else if (bits == 32) {
    const uint32_t v = static_cast<uint32_t>(value);
    for (int l = 0; l < 32; ++l) memcpy(&f.frame[at + 4 * l], &v, 4);
  } else {
    const uint32_t v = value ? ~0u : 0;
    memcpy(&f.frame[at], &v, 4);
  }
  return constants[key] = at;
}

struct Parser {
  std::vector<Token> t;
  size_t i = 0;
  Module& m;
  std::string module;
  std::shared_ptr<std::vector<std::string>> lines = std::make_shared<std::vector<std::string>>();
  std::shared_ptr<std::map<int, std::string>> files = std::make_shared<std::map<int, std::string>>();
  std::map<std::string, uint64_t> globals;  // address
  std::map<std::string, int64_t> shared;    // offset; -1: dynamic
  int shared_size = 0;

  [[noreturn]] void bad(const std::string& what) {
    throw std::runtime_error(module + ":" + std::to_string(i < t.size() ? t[i].line : 0) + ": " + what);
  }
  const std::string& s() {
    if (i >= t.size()) bad("unexpected end");
    return t[i].s;
  }
  std::string next() {
    std::string r = s();
    ++i;
    return r;
  }
  bool accept(const char* w) {
    if (i < t.size() && t[i].s == w) {
      ++i;
      return true;
    }
    return false;
  }
  void expect(const char* w) {
    if (!accept(w)) bad(std::string("expected ") + w + ", found " + s());
  }
  void skip_line() {
    const int line = t[i].line;
    while (i < t.size() && t[i].line == line) ++i;
  }

  int64_t integer() {
    bool negative = accept("-");
    std::string w = next();
    while (!w.empty() && (w.back() == 'U')) w.pop_back();
    const int64_t v = static_cast<int64_t>(strtoull(w.c_str(), nullptr, 0));
    return negative ? -v : v;
  }

  // .global / .shared / .const / .local [.align n] .b8 name[n] [= {..}];
  struct Variable {
    std::string name;
    int align = 1, element = 1;
    int64_t size = 0;
    bool dynamic = false;
    std::vector<uint8_t> init;
  };
  Variable variable() {
    Variable v;
    bool sized = false;
    for (;;) {
      if (accept(".align")) v.align = static_cast<int>(integer());
      else if (s()[0] == '.' && type_of(s().substr(1)) != NONE) {
        v.element = bits_of(type_of(next().substr(1))) / 8;
      } else if (s()[0] == '.') next();
      else break;
    }
    v.name = next();
    int64_t count = 1;
    while (accept("[")) {
      if (accept("]")) {
        v.dynamic = true;
        count = 0;
      } else {
        count *= integer();
        expect("]");
      }
      sized = true;
    }
    (void)sized;
    v.size = count * v.element;
    v.align = std::max(v.align, v.element);
    if (accept("=")) {
      auto put = [&](int64_t x) {
        for (int k = 0; k < v.element; ++k) v.init.push_back(static_cast<uint8_t>(x >> (8 * k)));
      };
      if (accept("{")) {
        while (!accept("}")) {
          put(integer());
          accept(",");
        }
      } else put(integer());
    }
    return v;
  }
  void declare(const std::string& space) {
    Variable v = variable();
    expect(";");
    if (space == ".shared") {
      if (v.dynamic) shared[v.name] = -1;
      else {
        shared_size = (shared_size + v.align - 1) / v.align * v.align;
        shared[v.name] = shared_size;
        shared_size += static_cast<int>(v.size);
      }
    } else {
      auto p = std::make_unique<char[]>(v.size + 16 + v.align);
      uint64_t at = (reinterpret_cast<uint64_t>(p.get()) + v.align - 1) / v.align * v.align;
      memset(reinterpret_cast<void*>(at), 0, v.size);
      memcpy(reinterpret_cast<void*>(at), v.init.data(), v.init.size());
      globals[v.name] = at;
      allocations[at] = {at, static_cast<uint64_t>(v.size), 0, {}};
      m.memory.push_back(std::move(p));
    }
  }

  Param param() {
    expect(".param");
    Param p{"", 0, 1, 0, -1};
    int element = 0;
    for (;;) {
      if (accept(".align")) p.align = std::max<int>(p.align, static_cast<int>(integer()));
      else if (accept(".ptr")) {
        while (s()[0] == '.') {
          if (accept(".align")) integer();
          else next();
        }
      } else if (s()[0] == '.') {
        element = bits_of(type_of(next().substr(1))) / 8;
      } else break;
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
  std::vector<Param> params() {
    std::vector<Param> out;
    expect("(");
    while (!accept(")")) {
      out.push_back(param());
      accept(",");
    }
    return out;
  }

  void module_level() {
    while (i < t.size()) {
      const std::string w = s();
      if (w == ".version" || w == ".target" || w == ".address_size") skip_line();
      else if (w == ".file") {
        ++i;
        int n = static_cast<int>(integer());
        std::string f = next();
        (*files)[n] = f.substr(1, f.size() - 2);
        skip_rest();
      } else if (w == ".section") {
        while (s() != "{") ++i;
        int depth = 0;
        do {
          if (s() == "{") ++depth;
          if (s() == "}") --depth;
          ++i;
        } while (depth);
      } else if (w == ".extern" || w == ".visible" || w == ".weak" || w == ".common") ++i;
      else if (w == ".shared" || w == ".global" || w == ".const") {
        ++i;
        declare(w);
      } else if (w == ".entry" || w == ".func") {
        ++i;
        function(w == ".entry");
      } else if (w == ".pragma") {
        while (next() != ";") {
        }
      } else bad("unexpected " + w);
    }
  }
  void skip_rest() {
    if (i == 0 || i >= t.size()) return;
    const int line = t[i - 1].line;
    while (i < t.size() && t[i].line == line) ++i;
  }

  // ---- A function
  Function* f = nullptr;
  std::unique_ptr<Rows> rows;
  struct Reg {
    int row, bits;
  };
  std::vector<std::map<std::string, Reg>> scopes;
  std::vector<std::map<std::string, int>> local_params;  // .param declared in a body: rows
  std::map<std::string, int> labels;
  std::map<std::string, int> locals;  // .local name -> offset in a thread's memory
  std::vector<Statement> statements;

  void function(bool entry) {
    Param result{"", 0, 1, 0, -1};
    if (!entry && s() == "(") {
      ++i;
      result = param();
      expect(")");
    }
    const std::string name = next();
    auto& slot = m.functions[name];  // it may have been declared
    if (!slot) slot = std::make_unique<Function>();
    f = slot.get();
    f->name = name;
    f->entry = entry;
    f->module = module;
    f->lines = lines;
    f->files = files;
    f->result = result;
    rows = std::make_unique<Rows>(Rows{*f, {}});
    scopes.assign(1, {});
    local_params.assign(1, {});
    labels.clear();
    statements.clear();
    all_params.clear();
    locals.clear();
    if (s() == "(") f->params = params();
    while (s() != "{" && s() != ";") ++i;  // .maxntid, .reqntid, .minnctapersm, .noreturn
    if (accept(";")) return;               // a declaration
    ++i;
    int offset = 0;
    for (Param& p : f->params) {
      offset = (offset + p.align - 1) / p.align * p.align;
      p.offset = offset;
      offset += p.size;
      if (!entry) {
        p.row = rows->add(p.size * 8);
        local_params[0][p.name] = p.row;
      }
    }
    f->param_size = offset;
    if (!entry && f->result.size) {
      f->result.row = rows->add(f->result.size * 8);
      local_params[0][f->result.name] = f->result.row;
    }
    for (int k = 0; k < 16; ++k) f->special[k] = rows->add(32);
    f->local_row = rows->add(64);
    body();
    finish();
  }

  void body() {
    int depth = 1, file = 0, source = 0;
    while (depth > 0) {
      const std::string& w = s();
      if (w == "{") {
        ++i;
        ++depth;
        scopes.emplace_back();
        local_params.emplace_back();
        continue;
      }
      if (w == "}") {
        ++i;
        --depth;
        scopes.pop_back();
        local_params.pop_back();
        continue;
      }
      if (w == ";") {
        ++i;
        continue;
      }
      if (w == ".loc") {
        ++i;
        file = static_cast<int>(integer());
        source = static_cast<int>(integer());
        skip_rest();
        continue;
      }
      if (w == ".pragma") {
        while (next() != ";") {
        }
        continue;
      }
      if (w == ".reg") {
        ++i;
        reg();
        continue;
      }
      if (w == ".shared") {
        ++i;
        declare(".shared");
        continue;
      }
      if (w == ".local") {
        ++i;
        Variable v = variable();
        expect(";");
        f->local_size = (f->local_size + v.align - 1) / v.align * v.align;
        locals[v.name] = f->local_size;
        f->local_size += static_cast<int>(v.size);
        continue;
      }
      if (w == ".param") {
        Param p = param();
        expect(";");
        const int at = rows->add(p.size * 8);
        local_params.back()[p.name] = at;
        all_params.push_back({p.name, {static_cast<int>(statements.size()), at}});
        continue;
      }
      if (t[i + 1].s == ":") {
        labels[w] = static_cast<int>(statements.size());
        i += 2;
        continue;
      }
      statement(file, source);
    }
  }

  void reg() {
    Ty ty = type_of(next().substr(1));
    if (ty == NONE) bad("register type");
    do {
      std::string name = next();
      if (accept("<")) {
        int64_t n = integer();
        expect(">");
        for (int64_t k = 0; k < n; ++k) scopes.back()[name + std::to_string(k)] = {-1, bits_of(ty)};
      } else scopes.back()[name] = {-1, bits_of(ty)};
    } while (accept(","));
    expect(";");
  }

  Reg* find(const std::string& name) {
    for (size_t k = scopes.size(); k-- > 0;) {
      auto it = scopes[k].find(name);
      if (it != scopes[k].end()) {
        if (it->second.row < 0) it->second.row = rows->add(it->second.bits);
        return &it->second;
      }
    }
    return nullptr;
  }

  Operand operand() {
    Operand o;
    if (accept("!")) {
      o = operand();
      o.not_ = true;
      return o;
    }
    if (accept("{")) {
      o.kind = Operand::VECTOR;
      while (!accept("}")) {
        o.parts.push_back(operand());
        accept(",");
      }
      return o;
    }
    if (accept("(")) {
      o.kind = Operand::VECTOR;
      while (!accept(")")) {
        o.parts.push_back(operand());
        accept(",");
      }
      return o;
    }
    if (accept("[")) {
      o.kind = Operand::ADDRESS;
      o.parts.push_back(operand());
      while (!accept("]")) {
        if (accept("+")) o.offset += integer();
        else if (s() == "-") o.offset += integer();
        else bad("address " + s());
      }
      return o;
    }
    const bool negative = accept("-");
    std::string w = next();
    o.text = w;
    if (w == "_") return o;
    if (isdigit(static_cast<unsigned char>(w[0]))) {
      o.kind = Operand::IMM;
      if (w.size() > 2 && w[0] == '0' && (w[1] == 'f' || w[1] == 'F') && w.size() == 10) {
        const uint32_t b = static_cast<uint32_t>(strtoul(w.c_str() + 2, nullptr, 16));
        float x;
        memcpy(&x, &b, 4);
        double d = negative ? -x : x;
        memcpy(&o.value, &d, 8);
        o.is_float = true;
        o.offset = b ^ (negative ? 0x80000000u : 0);
      } else if (w.size() == 18 && w[0] == '0' && (w[1] == 'd' || w[1] == 'D')) {
        o.value = strtoull(w.c_str() + 2, nullptr, 16);
        if (negative) o.value ^= 1ull << 63;
        o.is_float = true;
        o.offset = -1;
      } else if (w.find('.') != std::string::npos && w.find("0x") != 0) {
        double d = strtod(w.c_str(), nullptr);
        if (negative) d = -d;
        memcpy(&o.value, &d, 8);
        o.is_float = true;
        o.offset = -1;
      } else {
        --i;
        o.value = static_cast<uint64_t>(integer());
        if (negative) o.value = 0 - o.value;
      }
      return o;
    }
    if (Reg* r = find(w)) {
      o.kind = Operand::REG;
      o.row = r->row;
      o.bits = r->bits;
      if (accept("|")) {
        Operand pair;
        pair.kind = Operand::PAIR;
        pair.parts = {o, operand()};
        return pair;
      }
      return o;
    }
    o.kind = w[0] == '%' ? Operand::SPECIAL : Operand::SYMBOL;
    return o;
  }

  void statement(int file, int source) {
    Statement st;
    st.inst.line = t[i].line;
    st.inst.file = file;
    st.inst.source_line = source;
    if (accept("@")) {
      st.inst.negated = accept("!");
      Reg* r = find(next());
      if (!r || r->bits != 1) bad("guard");
      st.inst.guard = r->row;
    }
    std::string op = next(), part;
    std::stringstream parts(op);
    while (std::getline(parts, part, '.')) st.op.push_back(part);
    while (!accept(";")) {
      st.operands.push_back(operand());
      accept(",");
    }
    resolve(st);
    statements.push_back(std::move(st));
  }

  // Symbols and special registers become constants or rows.
  void resolve(Statement& st) {
    if (st.op[0] == "call" || st.op[0] == "bra") return;
    for (Operand& o : st.operands) resolve_one(o);
  }
  void resolve_one(Operand& o) {
    for (Operand& p : o.parts) resolve_one(p);
    if (o.kind == Operand::SPECIAL) {
      static const char* names[] = {"%tid.x",   "%tid.y",   "%tid.z",       "%ntid.x",     "%ntid.y",   "%ntid.z",
                                    "%ctaid.x", "%ctaid.y", "%ctaid.z",     "%nctaid.x",   "%nctaid.y", "%nctaid.z",
                                    "%laneid",  "%warpid",  "%lanemask_lt", "%lanemask_eq"};
      for (int k = 0; k < 16; ++k)
        if (o.text == names[k]) {
          o.kind = Operand::REG;
          o.row = f->special[k];
          o.bits = 32;
          return;
        }
      bad("special register " + o.text);
    }
    if (o.kind != Operand::SYMBOL) return;
    for (size_t k = local_params.size(); k-- > 0;) {
      auto it = local_params[k].find(o.text);
      if (it != local_params[k].end()) {
        o.row = it->second;
        o.bits = -1;
        return;
      }  // a parameter of a call
    }
    for (const Param& p : f->params)
      if (p.name == o.text) {
        o.bits = -2;
        o.offset = p.offset;
        return;
      }  // of the entry
    auto g = globals.find(o.text);
    if (g != globals.end()) {
      o.kind = Operand::IMM;
      o.value = g->second;
      return;
    }
    auto sh = shared.find(o.text);
    if (sh != shared.end()) {
      o.kind = Operand::IMM;
      o.value = static_cast<uint64_t>(sh->second);
      if (sh->second < 0) o.bits = -3;
      return;
    }
    auto lo = locals.find(o.text);
    if (lo != locals.end()) {
      o.bits = -4;
      o.offset = lo->second;
      o.row = f->local_row;
      return;
    }
    if (labels.count(o.text) || o.text[0] == '$') return;
    bad("unknown symbol " + o.text);
  }

  void finish() {
    f->shared_static = (shared_size + 15) / 16 * 16;
    // Dynamic shared memory begins behind the static.
    std::function<void(Operand&)> place = [&](Operand& o) {
      for (auto& p : o.parts) place(p);
      if (o.kind == Operand::IMM && o.bits == -3) {
        o.value = f->shared_static;
        o.bits = 0;
      }
    };
    for (Statement& st : statements) {
      for (Operand& o : st.operands) place(o);
      Inst in = st.inst;
      if (st.op[0] == "bra") {
        in.ctl = BRA;
        auto l = labels.find(st.operands[0].text);
        if (l == labels.end()) bad("label " + st.operands[0].text);
        in.target = l->second;
      } else if (st.op[0] == "call") {
        in.ctl = CALL;
        size_t k = 0;
        Operand* result = nullptr;
        if (st.operands[k].kind == Operand::VECTOR) result = &st.operands[k++];
        auto callee = m.functions.find(st.operands[k].text);
        if (callee == m.functions.end()) {
          i = 0;
          bad("callee " + st.operands[k].text);
        }
        in.callee = callee->second.get();
        ++k;
        auto rowof = [&](Operand& o) {
          for (size_t q = all_params.size(); q-- > 0;)
            if (all_params[q].first == o.text &&
                all_params[q].second.first <= static_cast<int>(&st - statements.data()))
              return all_params[q].second.second;
          bad("call parameter " + o.text);
        };
        if (result) in.d = rowof(result->parts[0]);
        int n = 0;
        if (k < st.operands.size())
          for (Operand& p : st.operands[k].parts) in.v[n++] = rowof(p);
      } else if (!select(st, in, *f, *rows)) {
        std::string op;
        for (auto& p : st.op) op += p + ".";
        throw std::runtime_error(module + ":" + std::to_string(in.line) + ": cannot execute " + op + " in " + f->name);
      }
      if (in.ctl == SYNC && in.target < 0) in.target = in.b;
      if (in.fn && st.op[0] == "cp") in.size = 0;
      if (in.size && (in.space == GLOBAL || in.space == GENERIC))
        f->granule_global = std::min<int>(f->granule_global, in.size);
      if (in.size && (in.space == SHARED || in.space == GENERIC))
        f->granule_shared = std::min<int>(f->granule_shared, in.size);
      f->code.push_back(in);
    }
    Inst end;
    end.ctl = RET;
    f->code.push_back(end);
    f->hits.assign(f->code.size(), 0);
  }
  // Parameters of calls by the statement from which on they are declared.
  std::vector<std::pair<std::string, std::pair<int, int>>> all_params;
};

Module* parse(const char* text, const char* name) {
  auto m = std::make_unique<Module>();
  Parser p{{}, 0, *m, name};
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) p.lines->push_back(line);
  p.t = tokens_of(text);
  p.module_level();
  return m.release();
}

}  // namespace ptx
