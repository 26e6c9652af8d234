// The factors of matrix products: their description, and the copies of their panels in shared memory.
#pragma once

#include "mma.h"

namespace udml {

// The arithmetic type of stored numbers.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ double number(double x) { return x; }
__device__ __forceinline__ float number(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float number(__half x) { return __half2float(x); }

// A vector of 16 bytes.
template <class T>
struct alignas(16) Vector {
  T x[16 / sizeof(T)];
};

template <class C>
__device__ __forceinline__ void store_four(C* p, const C (&x)[4]) {
  constexpr int N = 16 / sizeof(C);
#pragma unroll
  for (int i = 0; i < 4; i += N) {
    Vector<C> v;
#pragma unroll
    for (int j = 0; j < N; ++j) v.x[j] = x[i + j];
    *reinterpret_cast<Vector<C>*>(p + i) = v;
  }
}

// Groups of rows of elements with any strides.
struct Strided {
  const char* data = nullptr;
  int64_t group_stride = 0, row_stride = 0, stride = 0;
  ScalarType dtype = ScalarType::Float;

  __device__ __forceinline__ int64_t offset(int64_t group, int64_t row, int64_t e) const {
    return group * group_stride + row * row_stride + e * stride;
  }
  template <class C>
  __device__ __forceinline__ C at(int64_t group, int64_t row, int64_t e) const {
    return load_as<C>(data, dtype, offset(group, row, e));
  }
  // The same for elements of type T.
  template <class T>
  __device__ __forceinline__ const T* pointer(int64_t group, int64_t row, int64_t e) const {
    return reinterpret_cast<const T*>(data) + offset(group, row, e);
  }
};

// One factor of a matrix product, a matrix of rows by terms.
struct Operand {
  Strided source;
  int rows = 0;
  // Vectors of 16 bytes along the terms (or the rows, see Panel) are aligned and do not cross the end of the matrix.
  bool wide = false;
};

// A panel in shared memory holds ROWS rows of a factor, each with the terms of one step, as elements of type E. A line
// is contiguous: it holds one row or, with ALONG_ROWS, one term of all rows. It consists of vectors of 16 bytes, whose
// order depends on the line (a swizzle), so that neither the copies nor the matrix instructions have bank conflicts.
template <class E, int ROWS, bool ALONG_ROWS>
struct Panel {
  static constexpr int TERMS = Step<E>::TERMS, WIDTH = 16 / sizeof(E);
  static constexpr int LINES = ALONG_ROWS ? TERMS : ROWS, PER_LINE = (ALONG_ROWS ? ROWS : TERMS) / WIDTH;
  static constexpr int SIZE = static_cast<int>(sizeof(E));
  static constexpr int PITCH = 16 * PER_LINE, BYTES = LINES * PITCH;

  // The place of a vector in bytes.
  static __device__ __forceinline__ int offset(int line, int vector) {
    const int turned = !ALONG_ROWS ? line / 2 % 4 : PER_LINE == 4 ? line / 2 % 2 * 2 : line % 4 * 2;
    return line * PITCH + (vector ^ turned) * 16;
  }
  static __device__ __forceinline__ auto element(const char* panel, int row, int term) {
    const int line = ALONG_ROWS ? term : row, within = ALONG_ROWS ? row : term;
    const E x = *reinterpret_cast<const E*>(panel + offset(line, within / WIDTH) + within % WIDTH * SIZE);
    if constexpr (sizeof(E) == 8) return x;
    else return static_cast<uint32_t>(bits(x));
  }

  // Loads a lane's numbers of 16 rows.
  static __device__ __forceinline__ void load(const char* panel, int row, Sixteen<E>& x) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(E) == 8 || ALONG_ROWS) {
#pragma unroll
      for (int i = 0; i < Step<E>::SIXTEEN; ++i)
        x[i] = element(panel, row + lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4);
    } else {
      load_matrices(panel + row * PITCH + offset(lane % 16, lane / 16), x[0], x[1], x[2], x[3]);
      load_matrices(panel + row * PITCH + offset(lane % 16, lane / 16 + 2), x[4], x[5], x[6], x[7]);
    }
  }
  // Those of 8 rows.
  static __device__ __forceinline__ void load(const char* panel, int row, Eight<E>& x) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(E) == 8 || ALONG_ROWS) {
#pragma unroll
      for (int i = 0; i < Step<E>::EIGHT; ++i) x[i] = element(panel, row + lane / 4, lane % 4 + i * 4);
    } else {
      load_matrices(panel + row * PITCH + offset(lane % 8, lane / 8), x[0], x[1], x[2], x[3]);
    }
  }
};

// The row of a factor in line `line` of a panel whose lines are permuted: of 16 rows, lane l has rows 4 (l % 4), ...,
// + 3 in its sums with two matrices of 8.
__device__ __forceinline__ int permuted(int line) {
  return line / 16 * 16 + line % 8 / 2 * 4 + line / 8 % 2 * 2 + line % 2;
}

// Copies panels of a factor whose elements are stored as S to shared memory, a panel a step.
template <class S, class E, int ROWS, bool ALONG_ROWS, bool PERMUTED, int THREADS>
struct PanelLoader {
  using P = Panel<E, ROWS, ALONG_ROWS>;
  static constexpr int VECTORS = P::LINES * P::PER_LINE / THREADS;
  static_assert(P::LINES * P::PER_LINE % THREADS == 0 && THREADS % P::PER_LINE == 0);
  const Operand& operand;
  const char* at[VECTORS];
  int64_t next;
  int first, term, end, limit[VECTORS];

  static constexpr __device__ __forceinline__ int vector() { return static_cast<int>(threadIdx.x) % P::PER_LINE; }
  static constexpr __device__ __forceinline__ int line(int v) {
    return static_cast<int>(threadIdx.x) / P::PER_LINE + v * (THREADS / P::PER_LINE);
  }
  __device__ __forceinline__ int row(int v) const {
    return first + (ALONG_ROWS ? vector() * P::WIDTH : PERMUTED ? permuted(line(v)) : line(v));
  }

  // Loads the terms in [begin, end) of ROWS rows, starting at row `first`. Everything else counts as 0: terms outside
  // the range, and rows that the operand does not have.
  __device__ __forceinline__ PanelLoader(const Operand& operand, int64_t group, int first, int begin, int end)
      : operand(operand), first(first), term(ALONG_ROWS ? begin : begin + vector() * P::WIDTH), end(end) {
    next = P::TERMS * operand.source.stride * static_cast<int64_t>(sizeof(S));
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      at[v] =
          reinterpret_cast<const char*>(operand.source.pointer<S>(group, row(v), term + (ALONG_ROWS ? line(v) : 0)));
      // Vectors along rows have all their rows or none.
      limit[v] = row(v) >= 0 && row(v) < operand.rows ? end - (ALONG_ROWS ? line(v) : 0) : begin;
    }
  }

  __device__ __forceinline__ void load(char* panel) {
    if (operand.wide) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v)
        load_wide(panel + P::offset(line(v), vector()), reinterpret_cast<const S*>(at[v]), term < limit[v]);
    } else {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) load_each(panel + P::offset(line(v), vector()), v);
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) at[v] += next;
    term += P::TERMS;
  }

 private:
  __device__ __forceinline__ void load_each(char* to, int v) const {
    const int r = row(v), k = ALONG_ROWS ? term + line(v) : term;
    const int64_t step = ALONG_ROWS ? operand.source.row_stride : operand.source.stride;
    // The numbers that exist: of row r the terms from k on, or of term k the rows from r on.
    const int count = ALONG_ROWS ? k < end ? operand.rows - r : 0 : r >= 0 && r < operand.rows ? end - k : 0;
    Vector<E> x;
#pragma unroll
    for (int i = 0; i < P::WIDTH; ++i) {
      const S value = i < count ? reinterpret_cast<const S*>(at[v])[i * step] : S(0.0f);
      if constexpr (std::is_same_v<S, E>) x.x[i] = value;
      else x.x[i] = number(value);
    }
    *reinterpret_cast<Vector<E>*>(to) = x;
  }
  static __device__ __forceinline__ void load_wide(char* to, const S* from, bool exists) {
    if constexpr (std::is_same_v<S, E>) {
      copy_16(to, from, exists);
    } else {
      const uint2 words = exists ? *reinterpret_cast<const uint2*>(from) : make_uint2(0, 0);
      const float2 low = unpacked(words.x, S{}), high = unpacked(words.y, S{});
      *reinterpret_cast<float4*>(to) = make_float4(low.x, low.y, high.x, high.y);
    }
  }
};

// ---- Host code.

// Describes a tensor of shape (groups, rows, elements) or (rows, elements). With inner = 1 there is no dimension of
// rows: (groups, elements) or (elements).
inline Strided strided(const Tensor& t, int64_t inner = 2) {
  Strided s;
  s.data = static_cast<const char*>(t.const_data_ptr());
  s.stride = t.stride(t.dim() - 1);
  if (inner == 2) s.row_stride = t.stride(t.dim() - 2);
  if (t.dim() > inner) s.group_stride = t.stride(0);
  s.dtype = t.scalar_type();
  return s;
}
inline Strided strided(const OptionalTensor& t) { return t ? strided(*t) : Strided{}; }

inline Strided transposed(Strided s) {
  std::swap(s.row_stride, s.stride);
  return s;
}

// Describes a factor whose elements are stored as S, for panels of E.
template <class S, class E>
Operand operand(const Strided& from, int64_t rows, int64_t terms, bool along_rows = false) {
  constexpr int64_t WIDTH = 16 / sizeof(E);
  const Strided lines = along_rows ? transposed(from) : from;
  const bool wide = lines.stride == 1 && (along_rows ? rows : terms) % WIDTH == 0 && lines.row_stride % WIDTH == 0 &&
                    from.group_stride % WIDTH == 0 && reinterpret_cast<uintptr_t>(from.data) % (WIDTH * sizeof(S)) == 0;
  return {from, static_cast<int>(rows), wide};
}

inline int ceil_div(int64_t size, int64_t block) { return static_cast<int>((size + block - 1) / block); }

}  // namespace udml
