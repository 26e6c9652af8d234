// Tensors as rows of elements in kernels. Dense rows of one dtype move as vectors of 16 bytes (Access<float>,
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

// Division by multiplication (Granlund and Montgomery): n / divisor = n * magic >> shift for n < 2^31.
inline void set_magic(int64_t divisor, uint32_t& magic, uint8_t& shift) {
  int bits = 0;
  while (bits < 31 && int64_t{1} << bits < divisor) ++bits;
  const uint64_t d = static_cast<uint64_t>(divisor);
  shift = static_cast<uint8_t>(31 + bits);
  magic = divisor > int64_t{1} << 31 ? 0 : static_cast<uint32_t>(((uint64_t{1} << shift) + d - 1) / d);
}

// Divides integers by a number that the host knows. The quotient in double is off by at most one, which a correction
// fixes.
struct Divisor {
  int64_t value = 1;
  double inverse = 1;
  uint32_t magic = 0;
  uint8_t shift = 0;
  Divisor() : Divisor(1) {}
  explicit Divisor(int64_t value)
      : value(std::max<int64_t>(value, 1)), inverse(1.0 / static_cast<double>(this->value)) {
    set_magic(this->value, magic, shift);
  }
  // For n < 2^31.
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const { return __umulhi(n + n, magic) >> (shift - 31); }
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

// Load and store a vector of V dense elements in global memory.
template <int V>
__device__ __forceinline__ void load_vector(const float* p, float* x) {
#pragma unroll
  for (int i = 0; i < V; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(p + i);
    x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
  }
}
// Stores 16 bytes in global memory. In PTX, as the compiler splits some stores of a float4 or uint4.
__device__ __forceinline__ void store_16_bytes(void* p, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
template <int V>
__device__ __forceinline__ void store_vector(float* p, const float* x) {
#pragma unroll
  for (int i = 0; i < V; i += 4)
    store_16_bytes(p + i, __float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                   __float_as_uint(x[i + 3]));
}
template <int V>
__device__ __forceinline__ void load_vector(const uint8_t* p, float* x) {
  static_assert(V == 4);
  const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
#pragma unroll
  for (int i = 0; i < V; ++i) x[i] = static_cast<float>(word >> 8 * i & 0xffu);
}
template <int V, class T>
__device__ __forceinline__ void load_vector(const T* p, float* x) {
  static_assert(V == 8);
  const uint4 words = *reinterpret_cast<const uint4*>(p);
  const float2 a = unpacked(words.x, T{}), b = unpacked(words.y, T{}), c = unpacked(words.z, T{}),
               d = unpacked(words.w, T{});
  x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y, x[4] = c.x, x[5] = c.y, x[6] = d.x, x[7] = d.y;
}
template <int V, class T>
__device__ __forceinline__ void store_vector(T* p, const float* x) {
  static_assert(V == 8);
  store_16_bytes(p, packed(x[0], x[1], T{}), packed(x[2], x[3], T{}), packed(x[4], x[5], T{}), packed(x[6], x[7], T{}));
}

// A thread's `count` elements of `row`. They are side by side from `start` on, or, in a `whole` warp, in vectors that
// the 32 lanes take in turn: the first begins at `start`, the next ones `stride` elements further each (see per_warp).
// If `complete`, the thread has WIDTH elements or none. `exists` is false past the last row (or tile, with ONE_ROW).
struct Place {
  int64_t row, start;
  unsigned tile, stride;
  int count;
  bool exists, whole, complete;
};

// `read` and `write` move a thread's elements, at most WIDTH; elements past `count` read as 0. Callers skip threads
// without elements. Dense rows consist of whole vectors.
// This is the access to dense rows of T by vectors of V elements.
template <class T, int V>
struct VectorAccess {
  using C = float;
  // Dense rows have less than 2^31 elements.
  using Index = uint32_t;
  static constexpr int WIDTH = 16, VECTOR = V;
  static constexpr bool DENSE = true;

  static __device__ __forceinline__ bool exists(const Place& at, int i) { return at.complete || i / V * V < at.count; }
  static __device__ __forceinline__ void read(const Rows& rows, const Place& at, C (&x)[WIDTH]) {
    const T* p = reinterpret_cast<const T*>(rows.data) + (at.row * rows.row_stride + at.start);
#pragma unroll
    for (int j = 0; j < WIDTH / V; ++j) {
      if (exists(at, j * V)) {
        load_vector<V>(p + j * at.stride, x + j * V);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) x[j * V + i] = 0;
      }
    }
  }
  static __device__ __forceinline__ void write(const Results& out, const Place& at, const C (&x)[WIDTH]) {
    T* p = reinterpret_cast<T*>(out.data) + (at.row * out.row_size + at.start);
#pragma unroll
    for (int j = 0; j < WIDTH / V; ++j)
      if (exists(at, j * V)) store_vector<V>(p + j * at.stride, x + j * V);
  }
};

// The access to rows of T. Vectors of uint8_t are short because the results, which are float, then have 16 bytes.
template <class T>
struct Access : VectorAccess<T, sizeof(T) == 1 ? 4 : 16 / sizeof(T)> {};

template <class Compute>
struct Access<Any<Compute>> {
  using C = Compute;
  using Index = int64_t;
  static constexpr int WIDTH = 4, VECTOR = 4;
  static constexpr bool DENSE = false;

  static __device__ __forceinline__ bool exists(const Place& at, int i) { return i < at.count; }
  static __device__ __forceinline__ void read(const Rows& rows, const Place& at, C (&x)[WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) x[i] = i < at.count ? udml::at<C>(rows, at.row, at.start + i) : C(0);
  }
  static __device__ __forceinline__ void write(const Results& out, const Place& at, const C (&x)[WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (i < at.count) store_as(out.data, out.dtype, at.row * out.row_size + at.start + i, x[i]);
  }
};

// The access to a tensor of Out at the elements that a thread has in rows of T.
template <class T, class Out>
using AccessBeside = std::conditional_t<Access<T>::DENSE, VectorAccess<Out, Access<T>::VECTOR>, Access<T>>;

}  // namespace udml
