// The race check keeps, for every word or byte that kernels touch, who touched it: see Set. Two accesses that
// conflict are ordered only by __syncthreads or, within a warp, by a __syncwarp of all its lanes; nothing orders
// the blocks of a launch, not even atomics and fences. Atomics do not conflict with each other.
#include "races.h"

#include <memory>
#include <unordered_map>
#include <vector>

#include "scheduler.h"

namespace udml_host {

#if !defined(UDML_HOST_RACES)

void record(const void*, size_t, Access) {}
void begin_watching() {}
std::string end_watching() { return {}; }

#else

namespace {

constexpr uint16_t NOBODY = 0xFFFF;

struct Mark {
  uint32_t epoch = 0;
  uint16_t thread = NOBODY, warp_syncs = 0;
};

// Those who made one kind of access. Two threads of the last block suffice: whatever conflicts with any of an
// epoch's threads conflicts with one of them (insert).
struct Set {
  uint32_t block = 0, earlier = 0;
  Mark marks[2];
};

struct Cell {
  Set sets[3];
};

struct Page {
  // A cell's bytes are 1 << shift.
  unsigned shift = 2;
  std::vector<Cell> cells = std::vector<Cell>(size_t(1) << (12 - 2));

  uintptr_t cell() const { return uintptr_t(1) << shift; }

  void split(unsigned finer) {
    std::vector<Cell> copies(size_t(1) << (12 - finer));
    for (size_t i = 0; i < copies.size(); ++i) copies[i] = cells[i >> (shift - finer)];
    cells = std::move(copies);
    shift = finer;
  }
};

// A page's cells take 72 KiB, or four times that: beyond so many the next launch begins afresh.
constexpr size_t MAX_PAGES = 1024;
constexpr size_t CACHED = 256;

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
struct {
  uintptr_t number;
  Page* page;
} cache[CACHED];

std::string first_error;
uint64_t errors;

Page& page_at(uintptr_t address) {
  const uintptr_t number = address >> 12;
  auto& cached = cache[number % CACHED];
  if (cached.page == nullptr || cached.number != number) {
    std::unique_ptr<Page>& page = pages[number];
    if (page == nullptr) page = std::make_unique<Page>();
    cached = {number, page.get()};
  }
  return *cached.page;
}

bool same_warp(uint16_t a, uint16_t b) { return a / WARP == b / WARP; }

bool ordered(const Mark& before, const Mark& now) {
  if (before.thread == now.thread || before.epoch != now.epoch) return true;
  return same_warp(before.thread, now.thread) && before.warp_syncs < now.warp_syncs;
}

// Who conflicts with an access: nobody, a thread of a block, or of an earlier block some thread.
struct Culprit {
  uint32_t block = 0;
  uint16_t thread = NOBODY;

  std::string told() const {
    const std::string who = thread == NOBODY ? "a thread" : "thread " + index_text(thread_index(thread));
    return who + " of block " + index_text(block_index(block));
  }
};

Culprit conflict(const Set& set, const Mark& now, bool shared) {
  if (set.block < launch_state.first) return {};
  if (set.block != launch_state.serial) return shared ? Culprit() : Culprit{set.block, set.marks[0].thread};
  if (!shared && set.earlier != 0) return {set.earlier, NOBODY};
  for (const Mark& mark : set.marks)
    if (mark.thread != NOBODY && !ordered(mark, now)) return {set.block, mark.thread};
  return {};
}

// Of threads of several warps any two stand for all; of one warp's, the two that made it last by __syncwarp.
void insert(Set& set, const Mark& now) {
  if (set.block != launch_state.serial) {
    set.earlier = set.block >= launch_state.first ? set.block : 0;
    set.block = launch_state.serial;
    set.marks[0] = now;
    set.marks[1] = Mark();
    return;
  }
  Mark &a = set.marks[0], &b = set.marks[1];
  if (a.thread == now.thread) {
    a = now;
  } else if (a.epoch != now.epoch) {
    a = now;
    b = Mark();
  } else if (b.thread == now.thread || b.thread == NOBODY || b.epoch != now.epoch) {
    b = now;
  } else if (same_warp(a.thread, b.thread)) {
    Mark& older = a.warp_syncs < b.warp_syncs ? a : b;
    if (!same_warp(a.thread, now.thread) || older.warp_syncs < now.warp_syncs) older = now;
  }
}

const SharedRange* shared_range(uintptr_t address) {
  for (const SharedRange& range : launch_state.shared)
    if (address - range.begin < range.size) return &range;
  return nullptr;
}

const char* const DOES[] = {"reads", "writes", "updates"};
const char* const DID[] = {"read", "written", "updated"};

std::string who_and_what(const Thread& self, uintptr_t at, size_t bytes, Access access, const SharedRange* shared) {
  const std::string place = shared == nullptr ? text("global memory at 0x%zx", static_cast<size_t>(at))
                                              : text("shared memory '%s', byte %zu", shared->name, at - shared->begin);
  return text("kernel '%s', block %s: thread %s %s %zu bytes of %s", launch_state.name,
              index_text(block_index(launch_state.serial)).c_str(), index_text(self.index).c_str(),
              DOES[static_cast<int>(access)], bytes, place.c_str());
}

// Whether an access to a cell is wrong, and what is.
bool wrong(const Cell& cell, Access access, const Mark& now, bool shared, std::string& what) {
  for (const Access other : {Access::WRITE, Access::READ, Access::ATOMIC}) {
    if (access == other && access != Access::WRITE) continue;
    const Culprit culprit = conflict(cell.sets[static_cast<int>(other)], now, shared);
    if (culprit.block == 0) continue;
    what = std::string(", a race: ") + DID[static_cast<int>(other)] + " by " + culprit.told();
    return true;
  }
  const auto written = [&](Access a) { return cell.sets[static_cast<int>(a)].block == launch_state.serial; };
  if (!shared || access == Access::WRITE || written(Access::WRITE) || written(Access::ATOMIC)) return false;
  what = ", uninitialised shared memory: no thread of the block has written it yet";
  return true;
}

}  // namespace

void record(const void* at, size_t bytes, Access access) {
  Thread* self = launch_state.running;
  if (self == nullptr) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at), stack = reinterpret_cast<uintptr_t>(self->fiber.stack());
  // Of no interest are the thread's own variables, and what host code touches meanwhile on another stack.
  const uintptr_t here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  if (begin - stack < Fiber::STACK || here - stack >= Fiber::STACK) return;
  const Unwatched none_of_its_doing;
  const SharedRange* shared = shared_range(begin);
  const Mark now{launch_state.epoch, static_cast<uint16_t>(self->id), self->warp_syncs};
  bool reported = false;
  std::string what;
  for (uintptr_t p = begin, step; p < begin + bytes; p += step) {
    Page& page = page_at(p);
    const uintptr_t rest = begin + bytes - p;
    while (page.shift > 0 && ((p & (page.cell() - 1)) != 0 || rest < page.cell())) page.split(page.shift - 1);
    step = page.cell();
    Cell& cell = page.cells[(p & 4095) >> page.shift];
    if (!reported && wrong(cell, access, now, shared != nullptr, what)) {
      reported = true;
      if (++errors == 1) first_error = who_and_what(*self, begin, bytes, access, shared) + what;
    }
    insert(cell.sets[static_cast<int>(access)], now);
  }
}

void begin_watching() {
  errors = 0;
  first_error.clear();
  if (pages.size() > MAX_PAGES) {
    pages.clear();
    for (auto& entry : cache) entry = {};
  }
}

std::string end_watching() {
  if (errors > 1) first_error += text(" (the first of %llu such accesses)", static_cast<unsigned long long>(errors));
  return std::move(first_error);
}

#endif

}  // namespace udml_host
