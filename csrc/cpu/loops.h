// Loops over work items, vectors and channels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <type_traits>

#include "simd.h"

namespace udml {

// Calls body(item) for the items [0, count) in parallel; `cost` is the number of elements per item. A thread processes
// whole items, so results do not depend on the number of threads.
template <class Body>
inline void parallel_items(int64_t count, int64_t cost, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(cost, 1));
  if (count <= grain) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// Returns a thread-local T that is reused by later work items. Such objects are too large for the stacks of threads.
template <class T>
T& scratch() {
  thread_local const std::unique_ptr<T> storage(new T);
  return *storage;
}

// Calls body(i, lanes) for every W elements of n, and once more for the rest with lanes < W.
template <class Body>
UDML_FN void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + W <= n; i += W) body(i, std::integral_constant<int64_t, W>{});
  if (i < n) body(i, n - i);
}

template <class C>
UDML_FN lanes_of<C> load_lanes(const C* p, std::integral_constant<int64_t, W>) {
  return load(p);
}

template <class C>
UDML_FN lanes_of<C> load_lanes(const C* p, int64_t lanes) {
  return load_first(p, lanes);
}

template <class C>
UDML_FN void store_lanes(C* p, lanes_of<C> v, std::integral_constant<int64_t, W>) {
  store(p, v);
}

template <class C>
UDML_FN void store_lanes(C* p, lanes_of<C> v, int64_t lanes) {
  store_first(p, v, lanes);
}

// Calls f with `flag` as a compile-time constant.
template <class Function>
UDML_FN void with_flag(bool flag, const Function& f) {
  flag ? f(std::true_type{}) : f(std::false_type{});
}

// Stores a vector, nontemporally if requested. Partial vectors at the end of a run always use normal stores.
template <bool NONTEMPORAL, class C, class Lanes>
UDML_FN void put_lanes(C* p, lanes_of<C> v, Lanes lanes) {
  if constexpr (NONTEMPORAL && !std::is_same_v<Lanes, int64_t>) {
    store_nontemporal(p, v);
  } else {
    store_lanes(p, v, lanes);
  }
}

// Returns v with the lanes past the end set to 0, for use in sums.
template <class V>
UDML_FN V keep_lanes(V v, std::integral_constant<int64_t, W>) {
  return v;
}

UDML_FN f32 keep_lanes(f32 v, int64_t lanes) { return select(first_lanes(lanes), v, f32{}); }

UDML_FN f64 keep_lanes(f64 v, int64_t lanes) {
  return select(__builtin_convertvector(first_lanes(lanes), i64), v, f64{});
}

template <class C>
inline C sum_of_run(const C* p, int64_t n) {
  lanes_of<C> total{};
  for_each_vector(n, [&](int64_t i, auto lanes) { total += load_lanes(p + i, lanes); });
  return sum_of_lanes(total);
}

// Calls body(first element, count, channel) for each channel's part of elements [begin, begin + n) of a row.
template <class Body>
UDML_FN void for_each_channel(int64_t begin, int64_t n, int64_t locations, const Body& body) {
  if (n == 0) return;
  int64_t channel = begin / locations, left = (channel + 1) * locations - begin;
  for (int64_t i = 0; i < n; ++channel, left = locations) {
    const int64_t count = std::min(n - i, left);
    body(i, count, channel);
    i += count;
  }
}

}  // namespace udml
