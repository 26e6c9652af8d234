// Exchange between the lanes of a warp. `lanes` are those of the membermask, and all of them are here.
#include "select.h"

namespace ptx {

namespace {

enum class Shuffle { UP, DOWN, BUTTERFLY, INDEX };
// c: the last lane that may be read, and, in bits 8 to 12, the bits of a lane number that name its segment.
void shfl(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b), c(w, i.c), d(w, i.d);
  uint32_t out[32], p = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    const int by = int(b[l] & 31), clamp = int(c[l] & 31), segment = int(c[l] >> 8 & 31);
    if (const int inverse = ~segment & 31; inverse & (inverse + 1))
      fail(w, i, l, "shfl with the segment mask " + std::to_string(segment) + ", whose segments are no power of two");
    const int last = (l & segment) | (clamp & ~segment), begin = l & segment;
    int from;
    bool inside;
    switch (Shuffle(i.mode)) {
      case Shuffle::UP:
        from = l - by;
        inside = from >= last;
        break;
      case Shuffle::DOWN:
        from = l + by;
        inside = from <= last;
        break;
      case Shuffle::BUTTERFLY:
        from = l ^ by;
        inside = from <= last;
        break;
      default: from = begin | (by & ~segment); inside = from <= last;
    }
    if (!inside) from = l;
    if (!(lanes >> from & 1)) fail(w, i, l, "shfl reads lane " + std::to_string(from) + ", which is not active");
    out[l] = a[from];
    p |= uint32_t(inside) << l;
  }
  for (int l = 0; l < 32; ++l)
    if (i.d >= 0 && (lanes >> l & 1)) d.set(l, out[l]);
  if (i.v[0] >= 0) set_predicate(w, i.v[0], p, lanes);
}

enum class Vote { ALL, ANY, UNIFORM, BALLOT };
void vote(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t p = predicate(w, i.a, i.not_a) & lanes;
  if (Vote(i.mode) == Vote::BALLOT) {
    each<uint32_t>(w, i.d, lanes, [&](int) { return p; });
    return;
  }
  const bool r = Vote(i.mode) == Vote::ALL ? p == lanes : Vote(i.mode) == Vote::ANY ? p != 0 : p == 0 || p == lanes;
  set_predicate(w, i.d, r ? ~0u : 0, lanes);
}

// The lanes that have the same value.
template <class T>
void match_any(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  each<uint32_t>(w, i.d, lanes, [&](int l) {
    uint32_t equal = 0;
    for (int k = 0; k < 32; ++k) equal |= uint32_t((lanes >> k & 1) && a[k] == a[l]) << k;
    return equal;
  });
}
template <class T>
void match_all(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<T> a(w, i.a);
  bool equal = true;
  for (int k = 0; k < 32; ++k) equal = equal && (!(lanes >> k & 1) || a[k] == a[first_lane(lanes)]);
  if (i.d >= 0) each<uint32_t>(w, i.d, lanes, [&](int) { return equal ? lanes : 0; });
  if (i.v[0] >= 0) set_predicate(w, i.v[0], equal ? ~0u : 0, lanes);
}

template <class T, class F>
void reduce(Warp& w, const Instruction& i, uint32_t lanes, F f) {
  Lanes<T> a(w, i.a);
  T r = a[first_lane(lanes)];
  for (int l = first_lane(lanes) + 1; l < 32; ++l)
    if (lanes >> l & 1) r = f(r, a[l]);
  each<T>(w, i.d, lanes, [&](int) { return r; });
}
enum class Redux { ADD, MIN, MAX, AND, OR, XOR };
template <class T>
void redux(Warp& w, const Instruction& i, uint32_t lanes) {
  reduce<T>(w, i, lanes, [&](T x, T y) -> T {
    switch (Redux(i.mode)) {
      case Redux::ADD: return T(uint32_t(x) + uint32_t(y));
      case Redux::MIN: return std::min(x, y);
      case Redux::MAX: return std::max(x, y);
      case Redux::AND: return x & y;
      case Redux::OR: return x | y;
      default: return x ^ y;
    }
  });
}
void redux_float(Warp& w, const Instruction& i, uint32_t lanes) {
  reduce<float>(w, i, lanes, [&](float x, float y) {
    const float number = i.nan ? NAN : x != x ? y : x;
    if (x != x || y != y) return canonical(number);
    return Redux(i.mode) == Redux::MIN ? std::min(x, y) : std::max(x, y);
  });
}

void activemask(Warp& w, const Instruction& i, uint32_t lanes) {
  each<uint32_t>(w, i.d, lanes, [&](int) { return lanes; });
}
void elect(Warp& w, const Instruction& i, uint32_t lanes) {
  if (i.d >= 0) each<uint32_t>(w, i.d, lanes, [&](int) { return uint32_t(first_lane(lanes)); });
  if (i.v[0] >= 0) set_predicate(w, i.v[0], 1u << first_lane(lanes), lanes);
}
// It orders the accesses of a warp if all of its lanes are here; those of a part of a warp count as unordered.
void warp_sync(Warp& w, const Instruction&, uint32_t lanes) {
  if (lanes == w.live) ++w.syncs;
}

void use_pair(Selector& s) {
  const Operand& to = s.operand(0);
  if (to.kind == Operand::PAIR) {
    s.i.d = s.use(to.parts[0], B32);
    s.i.v[0] = s.use(to.parts[1], PRED);
  } else s.i.d = s.use(to, B32);
}

bool select_shfl(Selector& s) {
  Instruction& i = s.i;
  i.mode = int(s.has("up")     ? Shuffle::UP
               : s.has("down") ? Shuffle::DOWN
               : s.has("bfly") ? Shuffle::BUTTERFLY
                               : Shuffle::INDEX);
  use_pair(s);
  i.a = s.use(1, B32);
  i.b = s.use(2, B32);
  i.c = s.use(3, B32);
  return s.together(s.use(4, B32), &shfl);
}

bool select_vote(Selector& s) {
  Instruction& i = s.i;
  i.mode = int(s.has("ballot") ? Vote::BALLOT : s.has("all") ? Vote::ALL : s.has("any") ? Vote::ANY : Vote::UNIFORM);
  i.d = s.use(0, s.type);
  i.a = s.use(1, PRED);
  i.not_a = s.operand(1).negated;
  return s.together(s.use(2, B32), &vote);
}

bool select_redux(Selector& s) {
  Instruction& i = s.i;
  i.d = s.use(0, s.type);
  i.a = s.use(1, s.type);
  i.mode = int(s.has("add")   ? Redux::ADD
               : s.has("min") ? Redux::MIN
               : s.has("max") ? Redux::MAX
               : s.has("and") ? Redux::AND
               : s.has("or")  ? Redux::OR
                              : Redux::XOR);
  if (s.has("abs") || bits_of(s.type) != 32) return false;
  i.nan = s.has("NaN");
  return s.together(s.use(2, B32), s.type == F32 ? &redux_float : s.type == S32 ? &redux<int32_t> : &redux<uint32_t>);
}

}  // namespace

bool select_exchange(Selector& s) {
  Instruction& i = s.i;
  if (s.name == "activemask") {
    i.d = s.use(0, B32);
    return s.with(&activemask);
  }
  if (s.name == "bar" || s.name == "barrier") return s.together(s.use(0, B32), &warp_sync);
  if (s.name == "elect") {
    use_pair(s);
    return s.together(s.use(1, B32), &elect);
  }
  if (!s.has("sync")) return false;
  if (s.name == "shfl") return select_shfl(s);
  if (s.name == "vote") return select_vote(s);
  if (s.name == "redux") return select_redux(s);
  use_pair(s);
  i.a = s.use(1, s.type);
  const bool wide = bits_of(s.type) == 64;
  const int members = s.use(2, B32);
  if (s.has("any")) return s.together(members, wide ? &match_any<uint64_t> : &match_any<uint32_t>);
  return s.together(members, wide ? &match_all<uint64_t> : &match_all<uint32_t>);
}

}  // namespace ptx
