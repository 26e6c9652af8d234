// Barriers of a block and collectives of a warp.
#include "warp.h"

namespace udml_host {

namespace {

const char* const COLLECTIVES[] = {"__syncwarp",      "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                   "__shfl_xor_sync", "__any_sync",  "__all_sync",     "__ballot_sync"};
const char* const BARRIERS[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or"};

const char* name_of(Collective kind) { return COLLECTIVES[static_cast<int>(kind)]; }
const char* name_of(Barrier kind) { return BARRIERS[static_cast<int>(kind)]; }

std::string place_of(const Thread& thread) {
  if (thread.state == State::DONE) return "exited";
  if (thread.state == State::BARRIER) return text("at %s", name_of(thread.request.barrier));
  if (thread.state == State::WARP) return text("at %s, mask 0x%08x", name_of(thread.request.kind), thread.request.mask);
  return "ready";
}

uint64_t reduced(Barrier kind, unsigned count) {
  if (kind == Barrier::COUNT) return count;
  return kind == Barrier::AND ? count == launch_state.threads : count > 0;
}

// All threads of the block have arrived.
void pass_barrier(Thread& last) {
  unsigned count = 0;
  for (unsigned id = 0; id < launch_state.threads; ++id) {
    const Request& request = threads[id].request;
    if (request.barrier != last.request.barrier)
      fail(last, text("is at %s, while thread %u is at %s", name_of(last.request.barrier), id, name_of(request.barrier)));
    count += request.value != 0;
  }
  block_state.at_barrier = 0;
  ++launch_state.epoch;
  for (const uint16_t id : order_of(launch_state.serial - launch_state.first)) {
    Thread& thread = threads[id];
    thread.request.result = reduced(last.request.barrier, count);
    thread.warp_syncs = 0;
    if (&thread != &last) make_ready(thread);
  }
}

unsigned lane_of(const Thread& thread) { return thread.id % WARP; }

unsigned existing_lanes(const Thread& thread) {
  const unsigned count = launch_state.threads - thread.id / WARP * WARP;
  return count >= WARP ? 0xffffffffu : (1u << count) - 1;
}

// The lane whose value a shuffle hands to `self`: its own where the other lies outside its segment.
unsigned source_of(const Thread& self) {
  const Request& request = self.request;
  const int own = static_cast<int>(lane_of(self)), begin = own & ~(request.width - 1), end = begin + request.width;
  int source = own;
  if (request.kind == Collective::IDX) source = begin | (request.argument & (request.width - 1));
  if (request.kind == Collective::UP) source = own - request.argument < begin ? own : own - request.argument;
  if (request.kind == Collective::DOWN) source = own + request.argument >= end ? own : own + request.argument;
  if (request.kind == Collective::XOR) source = (own ^ request.argument) >= end ? own : own ^ request.argument;
  return static_cast<unsigned>(source);
}

bool is_shuffle(Collective kind) { return kind >= Collective::IDX && kind <= Collective::XOR; }

uint64_t vote_of(Collective kind, unsigned lanes, unsigned votes) {
  if (kind == Collective::BALLOT) return votes;
  return kind == Collective::ANY ? votes != 0 : kind == Collective::ALL && votes == lanes;
}

// f(lane) for every lane of a mask.
template <class F>
void for_each_lane(unsigned lanes, const F& f) {
  for (; lanes != 0; lanes &= lanes - 1) f(static_cast<unsigned>(__builtin_ctz(lanes)));
}

// Hands out the results of a collective at which all `lanes` of its mask wait.
void share_results(Thread* warp, Collective kind, unsigned lanes) {
  if (is_shuffle(kind)) {
    for_each_lane(lanes, [=](unsigned l) {
      const unsigned source = source_of(warp[l]);
      if ((lanes >> source & 1u) == 0)
        fail(warp[l], text("calls %s with mask 0x%08x and reads lane %u, which takes no part", name_of(kind),
                           warp[l].request.mask, source));
      warp[l].request.result = warp[source].request.value;
    });
    return;
  }
  unsigned votes = 0;
  for_each_lane(lanes, [&](unsigned l) { votes |= static_cast<unsigned>(warp[l].request.value & 1u) << l; });
  const uint64_t result = vote_of(kind, lanes, votes);
  for_each_lane(lanes, [=](unsigned l) { warp[l].request.result = result; });
}

void pass_collective(Thread& last, unsigned lanes) {
  Thread* const warp = &last - lane_of(last);
  const Request& request = last.request;
  for_each_lane(lanes, [&](unsigned l) {
    const Request& other = warp[l].request;
    if (other.kind != request.kind || other.width != request.width)
      fail(last, text("is at %s (width %d), while lane %u is at %s (width %d)", name_of(request.kind), request.width, l,
                      name_of(other.kind), other.width));
  });
  share_results(warp, request.kind, lanes);
  block_state.waiting[last.id / WARP] &= ~lanes;
  const bool whole = request.kind == Collective::SYNC && lanes == existing_lanes(last);
  for_each_lane(lanes, [&](unsigned l) {
    warp[l].warp_syncs = static_cast<uint16_t>(warp[l].warp_syncs + whole);
    if (l != lane_of(last)) make_ready(warp[l]);
  });
  last.state = State::READY;
}

}  // namespace

int barrier(Barrier kind, int predicate) {
  Thread& self = *launch_state.running;
  self.request.barrier = kind;
  self.request.value = predicate != 0;
  if (++block_state.at_barrier == launch_state.threads) {
    pass_barrier(self);
  } else {
    self.state = State::BARRIER;
    leave(self);
  }
  return static_cast<int>(self.request.result);
}

uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width) {
  Thread& self = *launch_state.running;
  if ((mask >> lane_of(self) & 1u) == 0)
    fail(self, text("calls %s with mask 0x%08x, which does not name its lane %u", name_of(kind), mask, lane_of(self)));
  if (width < 1 || width > static_cast<int>(WARP) || (width & (width - 1)) != 0)
    fail(self, text("calls %s with width %d", name_of(kind), width));
  self.request = {kind, Barrier::PLAIN, mask, argument, width, value, 0};
  self.state = State::WARP;
  unsigned& waiting = block_state.waiting[self.id / WARP];
  waiting |= 1u << lane_of(self);
  const unsigned lanes = mask & existing_lanes(self);
  bool all = (waiting & lanes) == lanes;
  if (all) for_each_lane(lanes, [&](unsigned l) { all &= (&self - lane_of(self))[l].request.mask == mask; });
  if (all) {
    pass_collective(self, lanes);
  } else {
    leave(self);
  }
  return self.request.result;
}

std::string describe_threads() {
  std::vector<std::pair<std::string, std::string>> groups;
  for (unsigned id = 0, end; id < launch_state.threads; id = end) {
    const std::string place = place_of(threads[id]);
    for (end = id + 1; end < launch_state.threads && place_of(threads[end]) == place;) ++end;
    const std::string ids = end - id == 1 ? text("%u", id) : text("%u-%u", id, end - 1);
    size_t i = 0;
    while (i < groups.size() && groups[i].first != place) ++i;
    if (i == groups.size()) {
      groups.push_back({place, ids});
    } else if (groups[i].second.size() < 200) {
      groups[i].second += ", " + ids;
    }
  }
  std::string all;
  for (const auto& [place, ids] : groups) all += (all.empty() ? "threads " : "; threads ") + ids + " " + place;
  return all;
}

}  // namespace udml_host
