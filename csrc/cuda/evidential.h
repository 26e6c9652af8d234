// What the kernels of evidential_fusion and evidential_loss share.
#pragma once

#include "lanes.h"
#include "tiles.h"

namespace udml {

// These kernels read single elements with any strides, so they are only instantiated per dtype.
template <class T>
struct Arithmetic {
  using C = float;
};
template <>
struct Arithmetic<double> {
  using C = double;
};
template <class T>
using compute_of = typename Arithmetic<T>::C;
template <class T>
inline constexpr ScalarType dtype_of = std::is_same_v<T, double>          ? ScalarType::Double
                                       : std::is_same_v<T, __nv_bfloat16> ? ScalarType::BFloat16
                                       : std::is_same_v<T, __half>        ? ScalarType::Half
                                                                          : ScalarType::Float;

// Calls f with a value of the storage type for `dtype`.
template <class Function>
void with_dtype(ScalarType dtype, Function&& f) {
  if (dtype == ScalarType::Double) return f(double{});
  if (dtype == ScalarType::BFloat16) return f(__nv_bfloat16{});
  if (dtype == ScalarType::Half) return f(__half{});
  expect(dtype == ScalarType::Float, "evidence: expected floats");
  f(float{});
}

}  // namespace udml
