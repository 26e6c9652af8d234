// Atomics: threads take turns only where they wait, so that plain reads and writes are atomic.
#include "races.h"

namespace {

template <class T, class F>
T update(T* at, F f) {
  udml_host::record(at, sizeof(T), udml_host::Access::ATOMIC);
  const T old = *at;
  *at = f(old);
  return old;
}

// Integers wrap.
template <class T>
T sum(T a, T b) {
  return a + b;
}
int sum(int a, int b) { return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); }

}  // namespace

#define UDML_ATOMICS(T)                                                                \
  T atomicAdd(T* at, T value) { return update(at, [=](T old) { return sum(old, value); }); } \
  T atomicExch(T* at, T value) { return update(at, [=](T) { return value; }); }
#define UDML_INTEGER_ATOMICS(T)                                                                       \
  T atomicMin(T* at, T value) { return update(at, [=](T old) { return value < old ? value : old; }); } \
  T atomicMax(T* at, T value) { return update(at, [=](T old) { return old < value ? value : old; }); } \
  T atomicAnd(T* at, T value) { return update(at, [=](T old) { return old & value; }); }               \
  T atomicOr(T* at, T value) { return update(at, [=](T old) { return old | value; }); }                \
  T atomicXor(T* at, T value) { return update(at, [=](T old) { return old ^ value; }); }               \
  T atomicCAS(T* at, T compare, T value) {                                                             \
    return update(at, [=](T old) { return old == compare ? value : old; });                            \
  }
UDML_ATOMICS(int)
UDML_ATOMICS(unsigned)
UDML_ATOMICS(unsigned long long)
UDML_ATOMICS(float)
UDML_ATOMICS(double)
UDML_INTEGER_ATOMICS(int)
UDML_INTEGER_ATOMICS(unsigned)
UDML_INTEGER_ATOMICS(unsigned long long)
