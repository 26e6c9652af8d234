// Tensors as rows of elements in kernels. Dense rows of one dtype move 16 bytes at a time (Access<float>,
// Access<bfloat16>, Access<half>, Access<uint8_t>). All other tensors (other strides, odd sizes, unaligned rows, mixed
// dtypes, float64) move element by element through Access<Any<C>>. Each kernel is written once for all cases.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../lane.h"
#include "launch.h"

namespace udml {

using torch::headeronly::ScalarType;

inline constexpr int MAX_MODALITIES = 16;

// Returns the pointer, but hides from the compiler that it is loop-invariant. Otherwise the compiler would duplicate
// the loop for each outcome of a test on it.
template <class T>
__device__ __forceinline__ T* opaque(T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

// Rows of a tensor: element e of a row lies at (e / inner) * outer_stride + (e % inner) * inner_stride.
struct Rows {
  const char* data = nullptr;
  int64_t row_stride = 0, inner = 0, outer_stride = 0, inner_stride = 1;
  // e / inner = e * magic >> shift
  uint32_t magic = 0;
  uint8_t shift = 0;
  ScalarType dtype = ScalarType::Float;
};

// Rows of a newly allocated contiguous result.
struct Results {
  char* data = nullptr;
  int64_t row_size = 0;
  ScalarType dtype = ScalarType::Float;
};

// Elements of any dtype and layout, with arithmetic in C.
template <class C>
struct Any {};

__device__ __forceinline__ int64_t offset_in_row(const Rows& rows, int64_t e) {
  // The row has one dimension.
  if (e < rows.inner) return e * rows.inner_stride;
  const int64_t outer = static_cast<int64_t>(static_cast<uint64_t>(e) * rows.magic >> rows.shift);
  return outer * rows.outer_stride + (e - outer * rows.inner) * rows.inner_stride;
}

// Divides integers by a number that the host knows. The quotient in double is off by at most one, which a correction
// fixes.
struct Divisor {
  int64_t value = 1;
  double inverse = 1;
  Divisor() = default;
  explicit Divisor(int64_t value)
      : value(std::max<int64_t>(value, 1)), inverse(1.0 / static_cast<double>(this->value)) {}
  __device__ __forceinline__ int64_t quotient(int64_t n) const {
    const int64_t near = static_cast<int64_t>(static_cast<double>(n) * inverse), rest = n - near * value;
    return near - (rest < 0) + (rest >= value);
  }
};

template <class C>
__device__ __forceinline__ C load_as(const char* data, ScalarType dtype, int64_t offset) {
  switch (dtype) {
    case ScalarType::Double: return static_cast<C>(reinterpret_cast<const double*>(data)[offset]);
    case ScalarType::BFloat16:
      return static_cast<C>(__bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[offset]));
    case ScalarType::Half: return static_cast<C>(__half2float(reinterpret_cast<const __half*>(data)[offset]));
    case ScalarType::Byte:
    case ScalarType::Bool: return static_cast<C>(reinterpret_cast<const uint8_t*>(data)[offset]);
    default: return static_cast<C>(reinterpret_cast<const float*>(data)[offset]);
  }
}

template <class C>
__device__ __forceinline__ void store_as(char* data, ScalarType dtype, int64_t offset, C value) {
  switch (dtype) {
    case ScalarType::Double: reinterpret_cast<double*>(data)[offset] = static_cast<double>(value); return;
    case ScalarType::BFloat16:
      reinterpret_cast<__nv_bfloat16*>(data)[offset] = __float2bfloat16_rn(static_cast<float>(value));
      return;
    case ScalarType::Half: reinterpret_cast<__half*>(data)[offset] = __float2half_rn(static_cast<float>(value)); return;
    default: reinterpret_cast<float*>(data)[offset] = static_cast<float>(value);
  }
}

// Returns one element of any row.
template <class C>
__device__ __forceinline__ C at(const Rows& rows, int64_t row, int64_t e) {
  return load_as<C>(rows.data, rows.dtype, row * rows.row_stride + offset_in_row(rows, e));
}

// A (rows, columns) matrix of the arithmetic type with any strides.
template <class C>
struct Matrix {
  const C* data = nullptr;
  int64_t row_stride = 0, stride = 0;
  __device__ __forceinline__ C at(int64_t row, int64_t column = 0) const {
    return data[row * row_stride + column * stride];
  }
};

// Conversions between a 4-byte word of two stored numbers and two floats.
__device__ __forceinline__ float2 unpacked(uint32_t word, __nv_bfloat16) {
  return make_float2(from_bits(static_cast<int32_t>(word << 16)), from_bits(static_cast<int32_t>(word & 0xffff0000u)));
}
__device__ __forceinline__ float2 unpacked(uint32_t word, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}
__device__ __forceinline__ uint32_t packed(float x, float y, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t packed(float x, float y, __half) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Load and store eight dense elements.
__device__ __forceinline__ void load_dense(const float* p, float* x) {
  const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void store_dense(float* p, const float* x) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
template <class T>
__device__ __forceinline__ void load_dense(const T* p, float* x) {
  const uint4 words = *reinterpret_cast<const uint4*>(p);
  const float2 a = unpacked(words.x, T{}), b = unpacked(words.y, T{}), c = unpacked(words.z, T{}),
               d = unpacked(words.w, T{});
  x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y, x[4] = c.x, x[5] = c.y, x[6] = d.x, x[7] = d.y;
}
template <class T>
__device__ __forceinline__ void store_dense(T* p, const float* x) {
  *reinterpret_cast<uint4*>(p) =
      make_uint4(packed(x[0], x[1], T{}), packed(x[2], x[3], T{}), packed(x[4], x[5], T{}), packed(x[6], x[7], T{}));
}

// Loads 16 dense elements, the number per thread.
template <class T>
__device__ __forceinline__ void load_16(const T* p, float (&x)[16]) {
  load_dense(p, x);
  load_dense(p + 8, x + 8);
}
__device__ __forceinline__ void load_16(const uint8_t* p, float (&x)[16]) {
  const uint4 words = *reinterpret_cast<const uint4*>(p);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = static_cast<float>(words.x >> 8 * i & 0xffu);
    x[i + 4] = static_cast<float>(words.y >> 8 * i & 0xffu);
    x[i + 8] = static_cast<float>(words.z >> 8 * i & 0xffu);
    x[i + 12] = static_cast<float>(words.w >> 8 * i & 0xffu);
  }
}

// `read` and `write` move elements [start, start + count) of a row; a thread moves at most WIDTH. Dense rows always
// move WIDTH elements, and callers skip empty ranges. Elements past `count` read as 0.
template <class T>
struct Access {
  using C = float;
  static constexpr int WIDTH = 16;
  static constexpr bool DENSE = true;

  static __device__ __forceinline__ void read(const Rows& rows, int64_t row, int64_t start, int, C (&x)[WIDTH]) {
    const T* p = reinterpret_cast<const T*>(rows.data) + (row * rows.row_stride + start);
    load_16(p, x);
  }
  static __device__ __forceinline__ void write(const Results& out, int64_t row, int64_t start, int,
                                               const C (&x)[WIDTH]) {
    T* p = reinterpret_cast<T*>(out.data) + (row * out.row_size + start);
    store_dense(p, x);
    store_dense(p + 8, x + 8);
  }
};

template <class Compute>
struct Access<Any<Compute>> {
  using C = Compute;
  static constexpr int WIDTH = 4;
  static constexpr bool DENSE = false;

  static __device__ __forceinline__ void read(const Rows& rows, int64_t row, int64_t start, int count, C (&x)[WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) x[i] = i < count ? at<C>(rows, row, start + i) : C(0);
  }
  static __device__ __forceinline__ void write(const Results& out, int64_t row, int64_t start, int count,
                                               const C (&x)[WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (i < count) store_as(out.data, out.dtype, row * out.row_size + start + i, x[i]);
  }
};

// The storage type of results in the arithmetic type that accompany rows of T.
template <class T>
using WideStorage = std::conditional_t<Access<T>::DENSE, float, Any<typename Access<T>::C>>;

}  // namespace udml
