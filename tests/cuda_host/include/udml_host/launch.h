// Running kernels, and the shared memory of a block.
#pragma once

#include <cstddef>

namespace udml_host {

// Run `thread` once for every thread of the grid, block after block. Throws std::runtime_error where the kernel
// breaks a rule that can be seen from here; the kernel is named by `name`.
void run(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*thread)(void*), void* context);

template <class F>
void launch(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, F thread_body) {
  run(name, grid, block, dynamic_shared_bytes, [](void* body) { (*static_cast<F*>(body))(); }, &thread_body);
}

// The dynamic shared memory of the running block.
void* dynamic_shared();

// A static shared array: which block, counted over all launches, has it at hand.
struct SharedUse {
  uint32_t block;
};

// Called wherever a thread comes past the declaration; a block's first thread finds every byte 0xFF.
void enter_shared(SharedUse& use, void* data, size_t bytes, const char* name);

}  // namespace udml_host

// Aligned to 16 bytes, as in csrc/cuda/launch.h.
#define UDML_SHARED(type, name, size)                                          \
  alignas(16) static unsigned char name##_memory[sizeof(type[size])];          \
  static ::udml_host::SharedUse name##_use;                                    \
  type(&name)[size] = *reinterpret_cast<type(*)[size]>(name##_memory);         \
  ::udml_host::enter_shared(name##_use, name, sizeof(name), #name)
