// Matrix instructions of a warp: products of 16 rows of one factor with 8 rows of another, over a step of 64 bytes of
// terms. Lane l has the numbers of rows l / 4 (and + 8) at terms l % 4 (and + 4, ...), and the sums of rows l / 4 and
// l / 4 + 8 with the other factor's rows 2 (l % 4) and + 1, as the PTX ISA lays them out.
#pragma once

#include "lanes.h"
#include "rows.h"

namespace udml {

// A step's numbers in the registers of a lane: of 16 rows, of 8 rows.
template <class E>
struct Step {
  using Register = uint32_t;
  static constexpr int TERMS = 64 / sizeof(E), SIXTEEN = 8, EIGHT = 4;
};
template <>
struct Step<double> {
  using Register = double;
  static constexpr int TERMS = 8, SIXTEEN = 4, EIGHT = 2;
};
template <class E>
using Sixteen = typename Step<E>::Register[Step<E>::SIXTEEN];
template <class E>
using Eight = typename Step<E>::Register[Step<E>::EIGHT];

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes to shared memory, or writes zeros there if not `exists`; `commit_copies` and `wait_for_copies` order
// it.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(exists ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the N latest groups of the thread's copies are not complete.
template <int N>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads four matrices (ldmatrix). A matrix has 8 rows of 16 bytes. Lane 8 i + r passes the address of row r of matrix
// i.
__device__ __forceinline__ void load_matrices(const void* row, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(shared_address(row))
               : "memory");
}

#define UDML_MMA(shape, type)                                      \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type      \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "        \
      "{%0, %1, %2, %3};"                                          \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
__device__ __forceinline__ void multiply_matrices(const uint32_t* a, const uint32_t* b, float (&sums)[4],
                                                  __nv_bfloat16) {
  UDML_MMA("m16n8k16", "bf16");
}
__device__ __forceinline__ void multiply_matrices(const uint32_t* a, const uint32_t* b, float (&sums)[4], __half) {
  UDML_MMA("m16n8k16", "f16");
}
// TF32: the instruction reads the upper 19 bits of a float.
__device__ __forceinline__ void multiply_matrices(const uint32_t* a, const uint32_t* b, float (&sums)[4], float) {
  UDML_MMA("m16n8k8", "tf32");
}
#undef UDML_MMA
// 8 rows, 8 rows and 4 terms of double.
__device__ __forceinline__ void multiply_matrices(double a, double b, double& sum0, double& sum1) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(sum0), "+d"(sum1)
      : "d"(a), "d"(b));
}

// The numbers of 16 (or 8) rows of a step, as the sum of PARTS numbers of type E. Two parts hold a float as two TF32
// numbers, to about 2^-23 of its size. An infinity or NaN has a NaN among its parts, and so has a number that the
// rounding to TF32 makes infinite.
template <class E, int PARTS, int N>
struct Parts {
  using Register = typename Step<E>::Register;
  Register high[N], low[PARTS == 2 ? N : 1];

  // Splits the numbers in `high`.
  __device__ __forceinline__ void split() {
    if constexpr (PARTS == 2) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const uint32_t x = high[i];
        asm("add.u32 %0, %2, 0x1000; and.b32 %0, %0, 0xffffe000; sub.rn.f32 %1, %2, %0;"
            : "=&r"(high[i]), "=&r"(low[i])
            : "r"(x));
      }
    }
  }
};

// Adds the products of a step to `sums`: those of rows l / 4 (elements 0 and 1) and l / 4 + 8 (2 and 3) of `a`.
//
// Tensor cores cut off the sum of a few products and the addend instead of rounding it, which shifts a long sum.
// Therefore they add the products of one step only, and a rounded addition adds these to the sum.
template <class E, int A_PARTS, int B_PARTS>
__device__ __forceinline__ void multiply_step(const Parts<E, A_PARTS, 8>& a, const Parts<E, B_PARTS, 4>& b,
                                              float (&sums)[4]) {
  float products[4] = {};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if constexpr (A_PARTS == 2) multiply_matrices(a.low + 4 * k, b.high + 2 * k, products, E{});
    if constexpr (B_PARTS == 2) multiply_matrices(a.high + 4 * k, b.low + 2 * k, products, E{});
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) multiply_matrices(a.high + 4 * k, b.high + 2 * k, products, E{});
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += products[i];
}
// Sums of double are rounded like those of fma.
__device__ __forceinline__ void multiply_step(const Parts<double, 1, 4>& a, const Parts<double, 1, 2>& b,
                                              double (&sums)[4]) {
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int h = 0; h < 2; ++h) multiply_matrices(a.high[2 * k + h], b.high[k], sums[2 * h], sums[2 * h + 1]);
}

}  // namespace udml
