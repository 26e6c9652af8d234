// What a thread asks of its block and warp.
#pragma once

// For the thread that reads them these are constants; the scheduler sets them as it switches.
#define UDML_HOST_VARIABLE(name) __asm__("udml_host_" #name) __attribute__((visibility("hidden")))
extern const uint3 threadIdx UDML_HOST_VARIABLE(threadIdx);
extern const uint3 blockIdx UDML_HOST_VARIABLE(blockIdx);
extern const dim3 blockDim UDML_HOST_VARIABLE(blockDim);
extern const dim3 gridDim UDML_HOST_VARIABLE(gridDim);
inline constexpr int warpSize = 32;

namespace udml_host {

enum class Barrier { PLAIN, COUNT, AND, OR };
int barrier(Barrier kind, int predicate);

enum class Collective { SYNC, IDX, UP, DOWN, XOR, ANY, ALL, BALLOT };
uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width);

template <class T>
__forceinline__ T shuffle(Collective kind, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = collective(kind, mask, bits, argument, width);
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace udml_host

__forceinline__ void __syncthreads() { udml_host::barrier(udml_host::Barrier::PLAIN, 0); }
__forceinline__ int __syncthreads_count(int p) { return udml_host::barrier(udml_host::Barrier::COUNT, p); }
__forceinline__ int __syncthreads_and(int p) { return udml_host::barrier(udml_host::Barrier::AND, p); }
__forceinline__ int __syncthreads_or(int p) { return udml_host::barrier(udml_host::Barrier::OR, p); }
__forceinline__ void __threadfence() {}
__forceinline__ void __threadfence_block() {}

__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) {
  udml_host::collective(udml_host::Collective::SYNC, mask, 0, 0, warpSize);
}
__forceinline__ int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(udml_host::collective(udml_host::Collective::ANY, mask, predicate != 0, 0, warpSize));
}
__forceinline__ int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(udml_host::collective(udml_host::Collective::ALL, mask, predicate != 0, 0, warpSize));
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(udml_host::collective(udml_host::Collective::BALLOT, mask, predicate != 0, 0, warpSize));
}

#define UDML_SHUFFLES(T)                                                                              \
  __forceinline__ T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize) {             \
    return udml_host::shuffle(udml_host::Collective::IDX, mask, value, lane, width);                  \
  }                                                                                                   \
  __forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {    \
    return udml_host::shuffle(udml_host::Collective::UP, mask, value, static_cast<int>(delta), width); \
  }                                                                                                   \
  __forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {  \
    return udml_host::shuffle(udml_host::Collective::DOWN, mask, value, static_cast<int>(delta), width); \
  }                                                                                                   \
  __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {        \
    return udml_host::shuffle(udml_host::Collective::XOR, mask, value, lanes, width);                 \
  }
UDML_SHUFFLES(int)
UDML_SHUFFLES(unsigned)
UDML_SHUFFLES(long)
UDML_SHUFFLES(unsigned long)
UDML_SHUFFLES(long long)
UDML_SHUFFLES(unsigned long long)
UDML_SHUFFLES(float)
UDML_SHUFFLES(double)
#undef UDML_SHUFFLES

// In atomics.cpp: the race check must not take them for plain accesses.
#define UDML_ATOMICS(T)                             \
  T atomicAdd(T* at, T value);                      \
  T atomicExch(T* at, T value);
#define UDML_INTEGER_ATOMICS(T)                     \
  T atomicMin(T* at, T value);                      \
  T atomicMax(T* at, T value);                      \
  T atomicAnd(T* at, T value);                      \
  T atomicOr(T* at, T value);                       \
  T atomicXor(T* at, T value);                      \
  T atomicCAS(T* at, T compare, T value);
UDML_ATOMICS(int)
UDML_ATOMICS(unsigned)
UDML_ATOMICS(unsigned long long)
UDML_ATOMICS(float)
UDML_ATOMICS(double)
UDML_INTEGER_ATOMICS(int)
UDML_INTEGER_ATOMICS(unsigned)
UDML_INTEGER_ATOMICS(unsigned long long)
#undef UDML_ATOMICS
#undef UDML_INTEGER_ATOMICS
