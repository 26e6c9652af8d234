// The running launch, as the scheduler and the race check share it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fiber.h"

namespace udml_host {

inline constexpr unsigned WARP = 32, MAX_THREADS = 1024;
inline constexpr size_t MAX_SHARED = 48 << 10;

enum class State : uint8_t { READY, BARRIER, WARP, DONE };

// What a thread waits at, and what comes back from it.
struct Request {
  Collective kind;
  Barrier barrier;
  unsigned mask;
  int argument, width;
  uint64_t value, result;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  unsigned id;
  State state;
  // Times the whole warp has met in __syncwarp since the last __syncthreads.
  uint16_t warp_syncs;
  Request request;
};

// Shared memory that the running block has at hand.
struct SharedRange {
  const char* name;
  uintptr_t begin;
  size_t size;
};

struct Launch {
  const char* name = "";
  dim3 grid, block;
  unsigned threads = 0;
  // Blocks are numbered over all launches, from 1 on: those of this one from `first` on.
  uint32_t first = 1, serial = 0;
  uint32_t epoch = 0;
  std::vector<SharedRange> shared;
  size_t dynamic_bytes = 0;
  // The thread that runs; null outside kernels.
  Thread* running = nullptr;
};

extern Launch launch_state;

// The harness works on a thread's stack: what it copies is not recorded as the thread's. A compiler that knows
// memcpy reads no global would drop the stores without the fences.
class Unwatched {
 public:
  Unwatched() : running_(launch_state.running) {
    launch_state.running = nullptr;
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  ~Unwatched() {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    launch_state.running = running_;
  }
  Unwatched(const Unwatched&) = delete;

 private:
  Thread* running_;
};

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string index_text(uint3 index);
// Indices of a block counted over all launches, and of a thread.
uint3 block_index(uint32_t serial);
uint3 thread_index(unsigned id);

// What ran, for tests: context switches so far, and launches by the kernel's name.
uint64_t switches();
std::vector<std::pair<std::string, int64_t>> launches();
void clear_launches();
// Turns the order in which threads and blocks run to another one.
void set_order(unsigned offset);

}  // namespace udml_host
