// PTX text -> tokens; types by their names.
#include <cctype>

#include "parser.h"

namespace ptx {

namespace {

bool in_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

// The end of what begins at i: a comment, a string, a word (with `::`), or one character.
size_t end_of_token(const std::string& t, size_t i) {
  auto find = [&](const char* what, size_t from, size_t length) {
    const size_t k = t.find(what, from);
    return k == std::string::npos ? t.size() : k + length;
  };
  if (t.compare(i, 2, "//") == 0) return find("\n", i, 0);
  if (t.compare(i, 2, "/*") == 0) return find("*/", i + 2, 2);
  if (t[i] == '"') return find("\"", i + 1, 1);
  size_t j = i;
  while (j < t.size() &&
         (in_word(t[j]) || (j > i && t.compare(j, 2, "::") == 0) || (j > i + 1 && t.compare(j - 1, 2, "::") == 0)))
    ++j;
  return std::max(j, i + 1);
}

}  // namespace

std::vector<Token> tokens_of(const std::string& t) {
  std::vector<Token> out;
  int line = 1;
  for (size_t i = 0; i < t.size();) {
    const size_t end = end_of_token(t, i);
    const bool comment = t[i] == '/' && i + 1 < t.size() && (t[i + 1] == '/' || t[i + 1] == '*');
    if (!comment && !std::isspace(static_cast<unsigned char>(t[i]))) out.push_back({t.substr(i, end - i), line});
    line += static_cast<int>(
        std::count(t.begin() + static_cast<std::ptrdiff_t>(i), t.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    i = end;
  }
  return out;
}

Type type_of(const std::string& name) {
  static const std::map<std::string, Type> table = {
      {"pred", PRED},   {"u8", U8},         {"s8", S8},       {"b8", B8},   {"u16", U16}, {"s16", S16}, {"b16", B16},
      {"f16", F16},     {"bf16", BF16},     {"u32", U32},     {"s32", S32}, {"b32", B32}, {"f32", F32}, {"tf32", TF32},
      {"f16x2", F16X2}, {"bf16x2", BF16X2}, {"f32x2", F32X2}, {"u64", U64}, {"s64", S64}, {"b64", B64}, {"f64", F64}};
  const auto it = table.find(name);
  return it == table.end() ? NONE : it->second;
}

int bits_of(Type type) {
  switch (type) {
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
    case F32X2:
    case U64:
    case S64:
    case B64:
    case F64: return 64;
    default: return 32;
  }
}

int Rows::constant(uint64_t value, int bits) {
  bits = bits == 64 ? 64 : bits == 1 ? 1 : 32;
  const auto key = std::make_pair(bits, value);
  const auto it = constants.find(key);
  if (it != constants.end()) return it->second;
  const int at = add(bits);
  const uint32_t word = bits == 1 ? (value ? ~0u : 0) : static_cast<uint32_t>(value);
  for (int l = 0; l < (bits == 1 ? 1 : 32); ++l) {
    if (bits == 64) memcpy(&f.frame[static_cast<size_t>(at + 8 * l)], &value, 8);
    else memcpy(&f.frame[static_cast<size_t>(at + 4 * l)], &word, 4);
  }
  return constants[key] = at;
}

}  // namespace ptx
