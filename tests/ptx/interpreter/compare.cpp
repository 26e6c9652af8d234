// Comparisons, selection, logic of predicates.
#include <utility>

#include "half.h"
#include "select.h"

namespace ptx {

enum Comparison { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
const char* const comparisons[COMPARISONS] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                              "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

namespace {

// If an operand is NaN, the ordered comparisons (lt) are false and the unordered ones (ltu) are true.
template <class T>
inline bool compare(int comparison, T a, T b) {
  switch (comparison) {
    case EQ: return a == b;
    case NE: return std::is_integral_v<T> ? a != b : (a < b || a > b);
    case LT: return a < b;
    case LE: return a <= b;
    case GT: return a > b;
    case GE: return a >= b;
    case EQU: return !(a < b || a > b);
    case NEU: return a != b;
    case LTU: return !(a >= b);
    case LEU: return !(a > b);
    case GTU: return !(a <= b);
    case GEU: return !(a < b);
    case NUM: return a == a && b == b;
    default: return a != a || b != b;
  }
}

template <class T, bool Flush = false>
struct Values : Lanes<T> {
  using Lanes<T>::Lanes;
  T operator[](int l) const { return maybe_flushed<Flush>(Lanes<T>::operator[](l)); }
};
template <class H>
struct Halves {
  Lanes<uint32_t> p;
  int shift;
  Halves(Warp& w, int offset, int s = 0) : p(w, offset), shift(s) {}
  float operator[](int l) const { return H::widened(static_cast<uint16_t>(p[l] >> shift)); }
};

enum class Join { NONE, AND, OR, XOR };
// p = comparison op c, q = !comparison op c.
template <class V, int K>
void setp(Warp& w, const Instruction& i, uint32_t lanes) {
  const V a(w, i.a), b(w, i.b);
  uint32_t p = 0;
  for (int l = 0; l < 32; ++l) p |= uint32_t(compare(K, a[l], b[l])) << l;
  uint32_t q = ~p;
  if (i.c >= 0) {
    const uint32_t c = predicate(w, i.c, i.not_c);
    auto join = [&](uint32_t x) {
      return Join(i.mode) == Join::AND ? x & c : Join(i.mode) == Join::OR ? x | c : x ^ c;
    };
    p = join(p);
    q = join(q);
  }
  if (i.d >= 0) set_predicate(w, i.d, p, lanes);
  if (i.v[0] >= 0) set_predicate(w, i.v[0], q, lanes);
}
// Of pairs: p of the lower half, q of the upper.
template <class H, int K>
void setp_pair(Warp& w, const Instruction& i, uint32_t lanes) {
  for (int k = 0; k < 2; ++k) {
    const Halves<H> a(w, i.a, 16 * k), b(w, i.b, 16 * k);
    uint32_t p = 0;
    for (int l = 0; l < 32; ++l) p |= uint32_t(compare(K, a[l], b[l])) << l;
    const int to = k == 0 ? i.d : i.v[0];
    if (to >= 0) set_predicate(w, to, p, lanes);
  }
}

template <class V, int... K>
Execute setp_at(int comparison, std::integer_sequence<int, K...>) {
  static const Execute table[] = {&setp<V, K>...};
  return table[comparison];
}
template <class V>
Execute setp_of(int comparison) {
  return setp_at<V>(comparison, std::make_integer_sequence<int, COMPARISONS>());
}
template <class H, int... K>
Execute setp_pair_at(int comparison, std::integer_sequence<int, K...>) {
  static const Execute table[] = {&setp_pair<H, K>...};
  return table[comparison];
}
template <class H>
Execute setp_pair_of(int comparison) {
  return setp_pair_at<H>(comparison, std::make_integer_sequence<int, COMPARISONS>());
}

Execute setp_of(Type type, int comparison, bool flush) {
  switch (type) {
    case U16:
    case B16: return setp_of<Values<uint16_t>>(comparison);
    case S16: return setp_of<Values<int16_t>>(comparison);
    case U32:
    case B32: return setp_of<Values<uint32_t>>(comparison);
    case S32: return setp_of<Values<int32_t>>(comparison);
    case U64:
    case B64: return setp_of<Values<uint64_t>>(comparison);
    case S64: return setp_of<Values<int64_t>>(comparison);
    case F32: return flush ? setp_of<Values<float, true>>(comparison) : setp_of<Values<float>>(comparison);
    case F64: return setp_of<Values<double>>(comparison);
    case F16: return setp_of<Halves<Half>>(comparison);
    case BF16: return setp_of<Halves<Bfloat>>(comparison);
    case F16X2: return setp_pair_of<Half>(comparison);
    case BF16X2: return setp_pair_of<Bfloat>(comparison);
    default: return nullptr;
  }
}

int comparison_of(const std::string& name) {
  // Of unsigned integers: lower, lower or same, higher, higher or same.
  static const std::map<std::string, int> others = {{"lo", LT}, {"ls", LE}, {"hi", GT}, {"hs", GE}};
  for (int k = 0; k < COMPARISONS; ++k)
    if (name == comparisons[k]) return k;
  const auto it = others.find(name);
  return it == others.end() ? -1 : it->second;
}

bool select_setp(Selector& s) {
  Instruction& i = s.i;
  const Operand& to = s.operand(0);
  if (to.kind == Operand::PAIR) {
    i.d = s.use(to.parts[0], PRED);
    i.v[0] = s.use(to.parts[1], PRED);
  } else i.d = s.use(to, PRED);
  i.a = s.use(1, s.type);
  i.b = s.use(2, s.type);
  if (s.operands() > 3) {
    i.c = s.use(3, PRED);
    i.not_c = s.operand(3).negated;
    i.mode = int(s.has("and") ? Join::AND : s.has("or") ? Join::OR : Join::XOR);
  }
  const bool half = s.type == F16 || s.type == BF16 || s.type == F16X2 || s.type == BF16X2;
  if (half && (s.has("ftz") || ((s.type == F16X2 || s.type == BF16X2) && i.c >= 0))) return false;
  const int comparison = comparison_of(s.s.op[1]);
  return comparison >= 0 && s.with(setp_of(s.type, comparison, s.has("ftz")));
}

template <class T>
void selp(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a), b(w, i.b);
  const uint32_t p = predicate(w, i.c, i.not_c);
  each<T>(w, i.d, lanes, [&](int l) { return (p >> l & 1) ? a[l] : b[l]; });
}

enum class Logic { AND, OR, XOR, NOT };
template <Logic K>
void logic(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t a = predicate(w, i.a, i.not_a), b = i.b >= 0 ? predicate(w, i.b, i.not_b) : 0;
  set_predicate(w, i.d, K == Logic::AND ? a & b : K == Logic::OR ? a | b : K == Logic::XOR ? a ^ b : ~a, lanes);
}

}  // namespace

bool select_compare(Selector& s) {
  Instruction& i = s.i;
  if (s.name == "setp") return select_setp(s);
  i.d = s.use(0, s.type);
  i.a = s.use(1, s.type);
  if (s.name == "selp") {
    i.b = s.use(2, s.type);
    i.c = s.use(3, PRED);
    i.not_c = s.operand(3).negated;
    return s.with(bits_of(s.type) == 64 ? &selp<uint64_t> : &selp<uint32_t>);
  }
  i.not_a = s.operand(1).negated;
  if (s.name == "not") return s.with(&logic<Logic::NOT>);
  i.b = s.use(2, PRED);
  i.not_b = s.operand(2).negated;
  return s.with(s.name == "and"   ? &logic<Logic::AND>
                : s.name == "or"  ? &logic<Logic::OR>
                : s.name == "xor" ? &logic<Logic::XOR>
                                  : nullptr);
}

}  // namespace ptx
