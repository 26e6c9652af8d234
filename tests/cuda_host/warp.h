// What barriers and warp collectives (warp.cpp) and the scheduler know of each other.
#pragma once

#include <exception>
#include <string>

#include "scheduler.h"

namespace udml_host {

// The running block.
struct Block {
  unsigned done = 0, at_barrier = 0;
  // For each warp, which lanes wait at a collective.
  unsigned waiting[MAX_THREADS / WARP] = {};
  std::string error;
  std::exception_ptr thrown;
};

extern Block block_state;

extern Thread threads[MAX_THREADS];
void make_ready(Thread& thread);
// Let others go on until somebody makes this one ready.
void leave(Thread& self, bool last = false);
// Ends the launch, with an error that begins "thread (x,y,z) "; does not return.
void fail(const Thread& culprit, const std::string& error);
// Which threads wait where.
std::string describe_threads();

void count_launch(const char* name);
// The order in which the threads of the launch's i-th block start.
const std::vector<uint16_t>& order_of(uint64_t i);

}  // namespace udml_host
