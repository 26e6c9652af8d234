// Runs kernels: blocks one after the other, the threads of a block as fibers that give way where they wait.
//
// A thread that waits goes straight on to the next that can run; only at a block's end, or where nothing can go
// on, does the stack of the caller get its turn. Errors are thrown from there, never across a fiber's frames.
#include "scheduler.h"

#include <mutex>
#include <stdexcept>

#include "races.h"
#include "warp.h"

namespace udml_host {

uint3 current_thread UDML_HOST_VARIABLE(threadIdx);
uint3 current_block UDML_HOST_VARIABLE(blockIdx);
dim3 current_block_size UDML_HOST_VARIABLE(blockDim);
dim3 current_grid_size UDML_HOST_VARIABLE(gridDim);

Launch launch_state;
Block block_state;
Thread threads[MAX_THREADS];

namespace {

std::mutex one_at_a_time;
unsigned mapped_threads;
Fiber caller;
void (*thread_function)(void*);
void* thread_context;
void* dynamic_memory;
uint64_t switch_count;

// Threads that can go on, first come, first served: each is in it once at most.
uint16_t queue[MAX_THREADS];
unsigned queue_begin, queue_end;

std::string where() {
  return text("kernel '%s', block %s: ", launch_state.name, index_text(current_block).c_str());
}

Thread& next() {
  Thread& thread = threads[queue[queue_begin++ % MAX_THREADS]];
  launch_state.running = &thread;
  current_thread = thread.index;
  ++switch_count;
  return thread;
}

void run_thread() {
  try {
    thread_function(thread_context);
  } catch (...) {
    block_state.thrown = std::current_exception();
  }
}

void thread_main() {
  Fiber::begin();
  run_thread();
  launch_state.running->state = State::DONE;
  ++block_state.done;
  leave(*launch_state.running, true);
}

void start_block(const std::vector<uint16_t>& order) {
  ++launch_state.serial;
  launch_state.epoch = 0;
  current_block = block_index(launch_state.serial);
  block_state = Block();
  queue_begin = queue_end = 0;
  if (launch_state.dynamic_bytes > 0) memset(dynamic_memory, 0xFF, launch_state.dynamic_bytes);
  for (const uint16_t id : order) {
    Thread& thread = threads[id];
    thread.id = id;
    thread.index = thread_index(id);
    thread.state = State::READY;
    thread.warp_syncs = 0;
    thread.fiber.prepare(thread_main);
    make_ready(thread);
  }
}

void run_block(const std::vector<uint16_t>& order) {
  start_block(order);
  Fiber::change(caller, next().fiber);
  launch_state.running = nullptr;
  if (block_state.done == launch_state.threads && !block_state.thrown) return;
  for (unsigned id = 0; id < launch_state.threads; ++id)
    if (threads[id].state != State::DONE) threads[id].fiber.abandon();
  if (block_state.thrown) std::rethrow_exception(block_state.thrown);
  if (block_state.error.empty()) block_state.error = "no thread can go on: " + describe_threads();
  throw std::runtime_error(where() + block_state.error);
}

void require(bool holds, const char* rule) {
  if (!holds) throw std::runtime_error(text("kernel '%s': invalid configuration: %s", launch_state.name, rule));
}

void check_configuration(dim3 grid, dim3 block, size_t shared) {
  require(grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && block.x >= 1 && block.y >= 1 && block.z >= 1, "an empty grid");
  require(static_cast<double>(grid.x) * grid.y * grid.z < 0x1p31, "more blocks than are counted here");
  require(grid.x < (1u << 31) && grid.y <= 65535 && grid.z <= 65535, "the grid exceeds 2^31 - 1 x 65535 x 65535");
  const bool fits = block.x <= MAX_THREADS && block.y <= MAX_THREADS && block.z <= 64;
  require(fits && block.x * block.y * block.z <= MAX_THREADS, "more than 1024 threads a block");
  require(shared <= MAX_SHARED, "more than 48 KiB of shared memory");
}

// Leaves the state as it was before the launch, also after an error.
struct Cleanup {
  ~Cleanup() {
    launch_state.running = nullptr;
    free(dynamic_memory);
    dynamic_memory = nullptr;
    block_state = Block();
  }
};

void prepare_launch(const char* name, dim3 grid, dim3 block, size_t dynamic_bytes) {
  launch_state.name = name;
  check_configuration(grid, block, dynamic_bytes);
  launch_state.grid = current_grid_size = grid;
  launch_state.block = current_block_size = block;
  launch_state.threads = block.x * block.y * block.z;
  launch_state.first = launch_state.serial + 1;
  launch_state.dynamic_bytes = dynamic_bytes;
  launch_state.shared.clear();
  for (; mapped_threads < launch_state.threads; ++mapped_threads) threads[mapped_threads].fiber.map(mapped_threads);
  if (dynamic_bytes > 0) {
    // Of exactly this size, so that AddressSanitizer sees an overrun.
    dynamic_memory = malloc(dynamic_bytes);
    launch_state.shared.push_back({"dynamic", reinterpret_cast<uintptr_t>(dynamic_memory), dynamic_bytes});
  }
}

}  // namespace

void make_ready(Thread& thread) {
  thread.state = State::READY;
  queue[queue_end++ % MAX_THREADS] = static_cast<uint16_t>(thread.id);
}

void leave(Thread& self, bool last) {
  const bool stuck = queue_begin == queue_end || block_state.thrown || !block_state.error.empty();
  Fiber::change(self.fiber, stuck ? caller : next().fiber, last);
}

void fail(const Thread& culprit, const std::string& error) {
  block_state.error = text("thread %s ", index_text(culprit.index).c_str()) + error;
  leave(*launch_state.running);
  abort();
}

void* dynamic_shared() { return dynamic_memory; }

void enter_shared(SharedUse& use, void* data, size_t bytes, const char* name) {
  Thread* self = launch_state.running;
  if (use.block == launch_state.serial || self == nullptr) return;
  use.block = launch_state.serial;
  {
    const Unwatched none_of_its_doing;
    memset(data, 0xFF, bytes);
  }
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  size_t total = bytes;
  for (const SharedRange& range : launch_state.shared) {
    if (range.begin == begin) return;
    total += range.size;
  }
  launch_state.shared.push_back({name, begin, bytes});
  if (total > MAX_SHARED) fail(*self, text("has %zu bytes of shared memory, more than 48 KiB", total));
}

void run(const char* name, dim3 grid, dim3 block, size_t dynamic_bytes, void (*thread)(void*), void* context) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const Cleanup cleanup;
  prepare_launch(name, grid, block, dynamic_bytes);
  thread_function = thread;
  thread_context = context;
  count_launch(name);
  begin_watching();
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  try {
    for (uint64_t i = 0; i < blocks; ++i) run_block(order_of(i));
  } catch (const std::exception& error) {
    const std::string found = end_watching();
    if (found.empty()) throw;
    throw std::runtime_error(std::string(error.what()) + "; before that, " + found);
  }
  const std::string found = end_watching();
  if (!found.empty()) throw std::runtime_error(found);
}

uint64_t switches() { return switch_count; }

}  // namespace udml_host
