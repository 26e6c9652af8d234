// Execution of blocks, one after the other; of a block's warps, each up to the next barrier.
#include <time.h>

#include <numeric>
#include <sstream>

#include "lanes.h"

namespace ptx {

Options options;
uint64_t launch_number = 0;

namespace {

constexpr int CALL_STACK = 4096;  // bytes of .local memory of a thread, for functions that are called

void set_specials(Warp& w, unsigned warp) {
  const Block& b = *w.block;
  for (unsigned l = 0; l < 32; ++l) {
    const unsigned t = w.first + l, bit = 1u << l;
    const unsigned values[SPECIALS] = {t % b.size[0],
                                       t / b.size[0] % b.size[1],
                                       t / b.size[0] / b.size[1],
                                       b.size[0],
                                       b.size[1],
                                       b.size[2],
                                       b.index[0],
                                       b.index[1],
                                       b.index[2],
                                       b.grid[0],
                                       b.grid[1],
                                       b.grid[2],
                                       l,
                                       warp,
                                       bit - 1,
                                       bit | (bit - 1),
                                       bit,
                                       ~(bit - 1),
                                       ~(bit | (bit - 1))};
    for (int k = 0; k < SPECIALS; ++k) row<uint32_t>(w, w.f->special[k])[l] = values[k];
    row<uint64_t>(w, w.f->local_row)[l] = w.local + l * w.local_stride;
  }
}

void allocate(Warp& w) {
  const Function& f = *w.f;
  w.memory.resize(static_cast<size_t>(f.frame_size) + 64);
  w.frame = reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(w.memory.data()) + 63) / 64 * 64);
  memcpy(w.frame, f.frame.data(), f.frame.size());
  w.local_stride = static_cast<uint64_t>(f.local_size + 15) / 16 * 16 + (f.calls ? CALL_STACK : 0);
  w.local_memory.assign(w.local_stride * 32 + 16, 0xff);
  w.local = (reinterpret_cast<uint64_t>(w.local_memory.data()) + 15) / 16 * 16;
}

void begin(Block& b) {
  const unsigned threads = b.size[0] * b.size[1] * b.size[2];
  b.warps.resize((threads + 31) / 32);
  for (size_t k = 0; k < b.warps.size(); ++k) {
    Warp& w = b.warps[k];
    w.f = b.f;
    w.block = &b;
    w.first = static_cast<uint32_t>(32 * k);
    w.copies.clear();
    w.pending_group = 0;
    w.syncs = 0;
    if (w.memory.empty()) allocate(w);
    const unsigned count = std::min(32u, threads - w.first);
    w.existing = w.live = count == 32 ? ~0u : (1u << count) - 1;
    set_specials(w, static_cast<unsigned>(k));
    w.groups.assign(1, {0, w.live, Waits::NO});
  }
  b.epoch = 1;
  std::fill(b.shared.begin(), b.shared.end(), uint8_t(0xff));
}

const Instruction& barrier_of(const Warp& w, const Group& g) { return w.f->code[static_cast<size_t>(g.pc - 1)]; }

// All threads that have not ended have to wait, at barriers of one kind, and none may have ended.
void check_barrier(const Block& b) {
  const Instruction* first = nullptr;
  bool several = false;
  for (const Warp& w : b.warps) {
    for (const Group& g : w.groups) {
      const Instruction& i = barrier_of(w, g);
      const int lane = first_lane(g.lanes);
      if (!first) first = &i;
      several = several || first != &i;
      if (i.reduction != first->reduction)
        fail(w, i, lane, "waits at a barrier of another kind than others, at " + place(*b.f, *first));
      if (g.lanes != w.live && i.aligned) {
        const Group& other = w.groups[&g == &w.groups[0] ? 1 : 0];
        fail(w, i, lane, "lanes of a warp wait at different barriers, others at " + place(*b.f, barrier_of(w, other)));
      }
      if (i.b >= 0 && *row<uint32_t>(const_cast<Warp&>(w), i.b) != b.size[0] * b.size[1] * b.size[2])
        fail(w, i, lane, "a barrier of a part of the block, which is not supported");
    }
  }
  for (const Warp& w : b.warps) {
    if (w.live == w.existing) continue;
    const int lane = first_lane(w.existing & ~w.live);
    for (const Warp& waiting : b.warps)
      for (const Group& g : waiting.groups)
        fail(waiting, barrier_of(waiting, g), first_lane(g.lanes),
             "waits at a barrier, while " + thread_name(b, static_cast<int>(w.first) + lane) + " has exited");
  }
  if (several) note(b.f->name, "warps wait at different barriers");
}

// The result of barrier.red, for all threads.
void reduce(Block& b) {
  unsigned count = 0, threads = 0;
  for (Warp& w : b.warps)
    for (const Group& g : w.groups) {
      const Instruction& i = barrier_of(w, g);
      if (i.reduction == Reduction::NONE) return;
      count += static_cast<unsigned>(__builtin_popcount(predicate(w, i.a, i.not_a) & g.lanes));
      threads += static_cast<unsigned>(__builtin_popcount(g.lanes));
    }
  for (Warp& w : b.warps)
    for (const Group& g : w.groups) {
      const Instruction& i = barrier_of(w, g);
      const bool result = i.reduction == Reduction::AND ? count == threads : count > 0;
      if (i.reduction != Reduction::COUNT) set_predicate(w, i.d, result ? ~0u : 0, g.lanes);
      else each<uint32_t>(w, i.d, g.lanes, [&](int) { return count; });
    }
}

void run(Block& b, const std::vector<size_t>& order) {
  begin(b);
  for (;;) {
    bool waiting = false;
    for (size_t k : order) waiting = !run(b.warps[k]) || waiting;
    if (!waiting) return;
    check_barrier(b);
    reduce(b);
    for (Warp& w : b.warps)
      for (Group& g : w.groups) g.waits = Waits::NO;
    ++b.epoch;
  }
}

// What the driver refuses.
void check_launch(const Function& f, const unsigned* grid, const unsigned* size, unsigned dynamic) {
  constexpr uint64_t KIB = 1024;
  auto refuse = [&](const std::string& what) {
    throw std::runtime_error("invalid configuration of " + f.name + ": " + what);
  };
  const uint64_t threads = uint64_t(size[0]) * size[1] * size[2];
  if (uint64_t(grid[0]) * grid[1] * grid[2] == 0 || threads == 0) refuse("an empty grid or block");
  if (threads > 1024 || size[0] > 1024 || size[1] > 1024 || size[2] > 64)
    refuse("more than 1024 threads, or 64 in z, in a block");
  if (threads > static_cast<uint64_t>(f.most_threads))
    refuse("more threads in a block than the " + std::to_string(f.most_threads) + " that it is compiled for");
  if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) refuse("the grid exceeds 2^31 - 1, 65535, 65535");
  if (static_cast<uint64_t>(f.shared_declared) > 48 * KIB) refuse("more than 48 KiB of static shared memory");
  if (static_cast<uint64_t>(f.shared_declared) + dynamic > 227 * KIB) refuse("more than 227 KiB of shared memory");
}

// An allocation that an instruction met in an earlier launch may be gone.
void forget_allocations(Function& f) {
  for (Instruction& i : f.code) i.seen = nullptr;
  if (f.calls)
    for (const auto& [function, index] : instructions) function->code[static_cast<size_t>(index)].seen = nullptr;
}

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}
struct Stopwatch {
  double begin = cpu_seconds();
  ~Stopwatch() { total.seconds += cpu_seconds() - begin; }
};

}  // namespace

void launch(Function& f, const unsigned* grid, const unsigned* size, unsigned dynamic, const uint8_t* parameters) {
  const Stopwatch stopwatch;
  check_launch(f, grid, size, dynamic);
  ++launch_number;
  ++f.counts.launches;
  ++total.launches;
  forget_allocations(f);
  Block b;
  b.f = &f;
  b.parameters = parameters;
  std::copy(grid, grid + 3, b.grid);
  std::copy(size, size + 3, b.size);
  b.shared.resize(static_cast<size_t>(f.shared_static) + dynamic);
  b.cells.resize(b.shared.size() / static_cast<size_t>(f.unit_shared) + 2);
  if (f.has_atomics) b.atomics.resize(b.cells.size());
  std::vector<size_t> order((size[0] * size[1] * size[2] + 31) / 32);
  std::iota(order.begin(), order.end(), 0);
  if (options.reverse_warps) std::reverse(order.begin(), order.end());
  const uint32_t blocks = grid[0] * grid[1] * grid[2];
  f.counts.blocks += blocks;
  for (uint32_t k = 0; k < blocks; ++k) {
    const uint32_t n = options.sampled;
    if (n && k >= n && k < blocks - std::min(n, blocks)) continue;
    b.number = options.reverse_blocks ? blocks - 1 - k : k;
    b.index[0] = b.number % grid[0];
    b.index[1] = b.number / grid[0] % grid[1];
    b.index[2] = b.number / grid[0] / grid[1];
    run(b, order);
  }
}

}  // namespace ptx
