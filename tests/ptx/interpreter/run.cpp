// Execution of a warp. Its lanes are in groups by where they are in the code; the lowest goes first, until it meets
// another group, and so lanes that have diverged come together again.
#include <climits>
#include <sstream>

#include "machine.h"

namespace ptx {

namespace {

// More would overflow the stack that a thread has by default.
constexpr int MOST_CALLS = 256;

std::string hexadecimal(uint32_t lanes) {
  std::ostringstream s;
  s << "0x" << std::hex << lanes;
  return s.str();
}

// Calls run to their end at once, with a frame of their own.
void call(Warp& w, const Instruction& i, uint32_t lanes) {
  Function& g = *i.callee;
  if (!g.defined) fail(w, i, first_lane(lanes), "calls " + g.name + ", which has no body");
  Warp c;
  c.f = &g;
  c.block = w.block;
  c.existing = w.existing;
  c.live = w.live;
  c.first = w.first;
  c.syncs = w.syncs;
  c.depth = w.depth + 1;
  c.local = w.local;
  c.local_stride = w.local_stride;
  c.local_offset = w.local_offset + static_cast<uint64_t>(w.f->local_size + 15) / 16 * 16;
  if (c.depth > MOST_CALLS || c.local_offset + static_cast<uint64_t>(g.local_size) > c.local_stride)
    fail(w, i, first_lane(lanes), "the calls overflow the stack");
  c.memory.resize(static_cast<size_t>(g.frame_size) + 64);
  c.frame = reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(c.memory.data()) + 63) / 64 * 64);
  memcpy(c.frame, g.frame.data(), g.frame.size());
  for (int k = 0; k < SPECIALS; ++k) memcpy(c.frame + g.special[k], w.frame + w.f->special[k], 128);
  for (uint64_t l = 0; l < 32; ++l) row<uint64_t>(c, g.local_row)[l] = c.local + l * c.local_stride + c.local_offset;
  for (size_t p = 0; p < g.parameters.size(); ++p)
    memcpy(c.frame + g.parameters[p].row, w.frame + i.v[p], g.parameters[p].size == 8 ? 256 : 128);
  c.groups.push_back({0, lanes, Waits::NO});
  if (!run(c)) fail(w, i, first_lane(lanes), "a barrier in a function");
  w.syncs = c.syncs;
  if (i.d < 0) return;
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    if (g.result.size == 8) row<uint64_t>(w, i.d)[l] = row<uint64_t>(c, g.result.row)[l];
    else row<uint32_t>(w, i.d)[l] = row<uint32_t>(c, g.result.row)[l];
  }
}

// Executes a collective instruction for the lanes whose membermask is complete; gives the others.
uint32_t collective(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t* masks = row<uint32_t>(w, i.members);
  uint32_t waiting = 0;
  while (lanes) {
    const int first = first_lane(lanes);
    const uint32_t members = masks[first];
    uint32_t here = 0;  // the lanes with this mask
    for (int l = first; l < 32; ++l) here |= uint32_t(masks[l] == members) << l;
    here &= lanes;
    lanes &= ~here;
    if (const uint32_t strangers = here & ~members)
      fail(w, i, first_lane(strangers),
           "lane " + std::to_string(first_lane(strangers)) + " is not in its membermask " + hexadecimal(members));
    if (const uint32_t gone = members & w.existing & ~w.live)
      fail(w, i, first, "lanes " + hexadecimal(gone) + " of the membermask " + hexadecimal(members) + " have exited");
    if (members & w.existing & ~here) waiting |= here;
    else i.execute(w, i, here);
  }
  return waiting;
}

// Groups at one place become one. In order of their places.
void merge(std::vector<Group>& groups) {
  std::sort(groups.begin(), groups.end(),
            [](const Group& a, const Group& b) { return a.pc != b.pc ? a.pc < b.pc : a.waits < b.waits; });
  size_t n = 0;
  for (size_t k = 1; k < groups.size(); ++k) {
    Group &a = groups[n], &b = groups[k];
    const bool a_at_barrier = a.waits == Waits::AT_BARRIER, b_at_barrier = b.waits == Waits::AT_BARRIER;
    if (a.pc != b.pc || a_at_barrier != b_at_barrier) {
      groups[++n] = b;
      continue;
    }
    a.lanes |= b.lanes;
    if (!a_at_barrier) a.waits = Waits::NO;
  }
  groups.resize(n + 1);
}

void fail_if_lanes_are_awaited(Warp& w) {
  for (const Group& g : w.groups) {
    if (g.waits != Waits::FOR_LANES) continue;
    const Instruction& i = w.f->code[static_cast<size_t>(g.pc)];
    const int lane = first_lane(g.lanes);
    fail(w, i, lane,
         "lanes " + hexadecimal(g.lanes) + " wait for others of " + hexadecimal(row<uint32_t>(w, i.members)[lane]) +
             ", which never come");
  }
}

// The place of the next group at or behind `pc` that is not at a barrier.
int next_place(const std::vector<Group>& groups, int pc) {
  int place = INT_MAX;
  for (const Group& g : groups)
    if (g.waits != Waits::AT_BARRIER && g.pc >= pc) place = std::min(place, g.pc);
  return place;
}
bool one_is_before(const std::vector<Group>& groups, int pc) {
  return std::any_of(groups.begin(), groups.end(), [&](const Group& g) { return g.waits == Waits::NO && g.pc < pc; });
}

// A group of lanes on its way through the code.
struct Runner {
  Warp& w;
  int pc;
  uint32_t lanes;
  int limit;  // the next group's place
  uint64_t instructions = 0, executed = 0;

  // Returns whether the group stops here.
  bool branch(const Instruction& i, uint32_t taken) {
    Counts& counts = w.f->counts;
    ++counts.branches;
    if (taken == lanes) pc = i.target;
    else if (taken == 0) ++pc;
    else {
      ++counts.diverged;
      const int here = std::min(pc + 1, i.target), there = std::max(pc + 1, i.target);
      if (here != there) {
        const uint32_t first = pc + 1 < i.target ? lanes & ~taken : taken;
        w.groups.push_back({there, lanes & ~first, Waits::NO});
        lanes = first;
        limit = std::min(limit, there);
      }
      pc = here;
    }
    if (w.groups.empty() || pc >= limit) return false;
    // After a jump back others may be lower, or next.
    limit = next_place(w.groups, pc);
    return one_is_before(w.groups, pc);
  }
  bool together(const Instruction& i, uint32_t guarded) {
    if (guarded != lanes) {  // the others go on
      if (guarded) w.groups.push_back({pc, guarded, Waits::NO});
      lanes &= ~guarded;
      ++pc;
      return guarded != 0;
    }
    const uint32_t waiting = collective(w, i, guarded);
    if (waiting) w.groups.push_back({pc, waiting, Waits::FOR_LANES});
    lanes &= ~waiting;
    ++pc;
    return waiting != 0;
  }
  bool leave(const Instruction& i, uint32_t guarded) {
    if (i.control == Control::BARRIER && guarded) w.groups.push_back({pc + 1, guarded, Waits::AT_BARRIER});
    if (i.control == Control::RETURN && w.depth == 0) w.live &= ~guarded;
    lanes &= ~guarded;
    ++pc;
    return lanes == 0;
  }
  bool other(const Instruction& i, uint32_t guarded) {
    switch (i.control) {
      case Control::BRANCH: return branch(i, guarded);
      case Control::COLLECTIVE: return together(i, guarded);
      case Control::RETURN:
      case Control::BARRIER: return leave(i, guarded);
      case Control::CALL:
        if (guarded) call(w, i, guarded);
        break;
      default:
        if (guarded) fail(w, i, first_lane(guarded), "trap");
    }
    ++pc;
    return false;
  }
  void go() {
    const Instruction* code = w.f->code.data();
    uint64_t* hits = options.statistics > 1 ? w.f->hits.data() : nullptr;
    for (bool stop = false; !stop && pc < limit;) {
      const Instruction& i = code[pc];
      ++instructions;
      executed += static_cast<uint64_t>(__builtin_popcount(lanes));
      if (hits) ++hits[pc];
      uint32_t guarded = lanes;
      if (i.guard >= 0) {
        const uint32_t p = *row<uint32_t>(w, i.guard);
        guarded &= i.guard_negated ? ~p : p;
      }
      if (i.control == Control::NEXT) {
        if (guarded) i.execute(w, i, guarded);
        ++pc;
      } else stop = other(i, guarded);
    }
  }
  ~Runner() {
    w.f->counts.instructions += instructions;
    w.f->counts.lanes += executed;
    total.instructions += instructions;
    total.lanes += executed;
  }
};

}  // namespace

bool run(Warp& w) {
  std::vector<Group>& groups = w.groups;
  while (!groups.empty()) {
    if (groups.size() > 1) merge(groups);
    const auto next = std::find_if(groups.begin(), groups.end(), [](const Group& g) { return g.waits == Waits::NO; });
    if (next == groups.end()) {
      fail_if_lanes_are_awaited(w);
      return false;
    }
    const Group g = *next;
    groups.erase(next);
    Runner runner{w, g.pc, g.lanes, next_place(groups, g.pc)};
    runner.go();
    if (runner.lanes) groups.push_back({runner.pc, runner.lanes, Waits::NO});
  }
  return true;
}

}  // namespace ptx
