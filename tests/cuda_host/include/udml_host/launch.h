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

// Ahead of an array: so that it is aligned as its type demands and no better, which is what CUDA promises.
template <class T>
inline constexpr size_t AHEAD = alignof(T) < 16 ? alignof(T) : 16;

}  // namespace udml_host

// In bytes, not in a struct that would end in padding: AddressSanitizer sees the first byte past the end.
#define UDML_SHARED(type, name, size)                                                                        \
  alignas(16) static unsigned char name##_memory[::udml_host::AHEAD<type> + sizeof(type[size])];             \
  static ::udml_host::SharedUse name##_use;                                                                  \
  type(&name)[size] = *reinterpret_cast<type(*)[size]>(name##_memory + ::udml_host::AHEAD<type>);            \
  ::udml_host::enter_shared(name##_use, name, sizeof(name), #name)
