// What -fsanitize=thread calls, in the place of ThreadSanitizer's runtime, which is not linked: accesses of
// kernels go to the race check. Host code calls these as well; then nothing is recorded.
#if defined(UDML_HOST_RACES)

#include "races.h"

using udml_host::Access;
using udml_host::record;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* at, size_t size) { record(at, size, Access::READ); }
void __tsan_write_range(void* at, size_t size) { record(at, size, Access::WRITE); }

#define UDML_ACCESS(size)                                                              \
  void __tsan_read##size(void* at) { record(at, size, Access::READ); }                 \
  void __tsan_write##size(void* at) { record(at, size, Access::WRITE); }               \
  void __tsan_unaligned_read##size(void* at) { record(at, size, Access::READ); }       \
  void __tsan_unaligned_write##size(void* at) { record(at, size, Access::WRITE); }     \
  void __tsan_volatile_read##size(void* at) { record(at, size, Access::READ); }        \
  void __tsan_volatile_write##size(void* at) { record(at, size, Access::WRITE); }      \
  void __tsan_unaligned_volatile_read##size(void* at) { record(at, size, Access::READ); } \
  void __tsan_unaligned_volatile_write##size(void* at) { record(at, size, Access::WRITE); }
UDML_ACCESS(1)
UDML_ACCESS(2)
UDML_ACCESS(4)
UDML_ACCESS(8)
UDML_ACCESS(16)

// Atomics of the language: host code has some. Orders are taken as the strongest.
#define UDML_FETCH(bits, T, name)                                                    \
  T __tsan_atomic##bits##_fetch_##name(volatile T* at, T value, int) {               \
    record(const_cast<T*>(at), sizeof(T), Access::ATOMIC);                           \
    return __atomic_fetch_##name(at, value, __ATOMIC_SEQ_CST);                       \
  }
#define UDML_EXCHANGE(bits, T, name)                                                            \
  int __tsan_atomic##bits##_compare_exchange_##name(volatile T* at, T* old, T value, int, int) { \
    record(const_cast<T*>(at), sizeof(T), Access::ATOMIC);                                      \
    return __atomic_compare_exchange_n(at, old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }
#define UDML_ATOMIC(bits, T)                                                              \
  T __tsan_atomic##bits##_load(const volatile T* at, int) {                               \
    record(const_cast<T*>(at), sizeof(T), Access::ATOMIC);                                \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                         \
  }                                                                                       \
  void __tsan_atomic##bits##_store(volatile T* at, T value, int) {                        \
    record(const_cast<T*>(at), sizeof(T), Access::ATOMIC);                                \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                        \
  }                                                                                       \
  T __tsan_atomic##bits##_exchange(volatile T* at, T value, int) {                        \
    record(const_cast<T*>(at), sizeof(T), Access::ATOMIC);                                \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                              \
  }                                                                                       \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* at, T old, T value, int, int) { \
    record(const_cast<T*>(at), sizeof(T), Access::ATOMIC);                                \
    __atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    return old;                                                                           \
  }                                                                                       \
  UDML_FETCH(bits, T, add)                                                                \
  UDML_FETCH(bits, T, sub)                                                                \
  UDML_FETCH(bits, T, and)                                                                \
  UDML_FETCH(bits, T, or)                                                                 \
  UDML_FETCH(bits, T, xor)                                                                \
  UDML_FETCH(bits, T, nand)                                                               \
  UDML_EXCHANGE(bits, T, strong)                                                          \
  UDML_EXCHANGE(bits, T, weak)
UDML_ATOMIC(8, unsigned char)
UDML_ATOMIC(16, unsigned short)
UDML_ATOMIC(32, unsigned)
UDML_ATOMIC(64, unsigned long)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

// Copies are calls, which the instrumentation leaves alone: linked with --wrap.
void* __real_memcpy(void* to, const void* from, size_t size);
void* __real_memmove(void* to, const void* from, size_t size);
void* __real_memset(void* to, int value, size_t size);

void* __wrap_memcpy(void* to, const void* from, size_t size) {
  record(from, size, Access::READ);
  record(to, size, Access::WRITE);
  return __real_memcpy(to, from, size);
}
void* __wrap_memmove(void* to, const void* from, size_t size) {
  record(from, size, Access::READ);
  record(to, size, Access::WRITE);
  return __real_memmove(to, from, size);
}
void* __wrap_memset(void* to, int value, size_t size) {
  record(to, size, Access::WRITE);
  return __real_memset(to, value, size);
}

}  // extern "C"

#endif
