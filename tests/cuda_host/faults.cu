// See faults.h.
#include "faults.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <memory>
#include <stdexcept>
#include <tuple>

static_assert(alignof(float2) == 8 && alignof(float4) == 16 && sizeof(float3) == 12 && alignof(float3) == 4);
static_assert(alignof(double2) == 16 && alignof(int4) == 16 && alignof(ushort4) == 8 && alignof(uchar4) == 4);
static_assert(sizeof(__half) == 2 && alignof(__half2) == 4 && sizeof(__nv_bfloat162) == 4);

namespace udml_host {

namespace {

constexpr unsigned ALL = 0xffffffffu;

// ---- Races.

__global__ void exchange(float* out, int barrier) {
  UDML_SHARED(float, tile, 64);
  const unsigned t = threadIdx.x;
  tile[t] = static_cast<float>(t);
  if (barrier == 1) __syncthreads();
  if (barrier == 2) __shfl_sync(ALL, 0, 0);
  if (barrier == 3) __syncwarp();
  if (barrier == 4) __syncwarp(t % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  out[t] = tile[barrier == 5 ? t ^ 32u : t ^ 1u];
}

__global__ void rewrite(float* out) {
  UDML_SHARED(float, tile, 2);
  if (threadIdx.x == 0) tile[0] = 1;
  __syncthreads();
  const float mine = tile[0];
  // Some may not have read it yet.
  if (threadIdx.x == 5) tile[0] = 2;
  out[threadIdx.x] = mine;
}

__global__ void all_write(float* out, bool by_block) { out[by_block ? blockIdx.x : threadIdx.x] = 1; }

__global__ void write_then_read(const float* in, float* out) {
  if (threadIdx.x == 0 && blockIdx.x == 1) out[0] = 1;
  out[1 + blockIdx.x * 32 + threadIdx.x] = in[0];
}

__global__ void add_and_read(int* counter, int* out, bool apart) {
  atomicAdd(counter, 1);
  if (apart) __syncthreads();
  out[threadIdx.x] = *counter;
}

// Neighbours in one word.
__global__ void write_bytes(unsigned char* out, unsigned step) { out[threadIdx.x / step] = 1; }

__global__ void copy_block(const float* in, float* out) {
  memcpy(out + threadIdx.x, in, 16 * sizeof(float) * gridDim.x);
}

// ---- Memory.

__global__ void write_at(float* out, size_t i) { out[i] = 1; }
__global__ void read_at(const float* in, float* out, size_t i) { out[0] = in[i]; }
__global__ void write_dynamic(size_t i) { static_cast<float*>(dynamic_shared())[i] = 1; }

__global__ void write_static(size_t i) {
  UDML_SHARED(float, tile, 32);
  tile[i] = 1;
}

// Past the end where the compiler does not know the end.
__global__ void write_static_through(size_t i) {
  UDML_SHARED(float, tile, 33);
  float* p = tile;
  __asm__("" : "+r"(p));
  p[i] = 1;
}

__global__ void write_vector(float* out) { *reinterpret_cast<float4*>(out) = make_float4(1, 2, 3, 4); }

__global__ void vector_of_floats() {
  UDML_SHARED(float, tile, 32);
  *reinterpret_cast<float4*>(tile + 1) = make_float4(1, 2, 3, 4);
}

__global__ void unwritten(float* out, bool partly) {
  UDML_SHARED(float, tile, 32);
  if (partly && blockIdx.x == 0) tile[threadIdx.x] = 3;
  __syncthreads();
  out[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];
}

__global__ void unwritten_dynamic(float* out) { out[threadIdx.x] = static_cast<float*>(dynamic_shared())[threadIdx.x]; }

__global__ void too_much_shared() {
  UDML_SHARED(double, tile, 7000);
  tile[0] = 1;
}

int deeper(int n, const volatile int* above) {
  volatile int here[64] = {n + above[0]};
  return n == 0 ? here[0] : deeper(n - 1, here) + here[1];
}
__global__ void recurse(int* out) {
  const volatile int first = 0;
  *out = deeper(100000, &first);
}

// ---- Waiting.

__global__ void half_barrier() {
  if (threadIdx.x < 16) __syncthreads();
}
__global__ void barrier_and_vote() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    if (threadIdx.x == 63) __any_sync(ALL, 1);
  }
}
__global__ void more_barriers() {
  for (unsigned i = 0; i <= threadIdx.x / 32; ++i) __syncthreads();
}
__global__ void different_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads_or(1);
  }
}
__global__ void lane_missing() {
  if (threadIdx.x != 7) __shfl_sync(ALL, 1.0f, 0);
}
__global__ void mask_without_caller() { __shfl_sync(0x0000ffffu, 1.0f, 0); }
__global__ void source_outside() { __shfl_sync(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u, 1.0f, 3); }
__global__ void different_collectives() {
  if (threadIdx.x < 16) {
    __any_sync(ALL, 1);
  } else {
    __shfl_down_sync(ALL, 1, 1);
  }
}
__global__ void bad_width() { __shfl_sync(ALL, 1, 0, 24); }
__global__ void throws() {
  if (threadIdx.x == 3) throw std::runtime_error("thrown by a thread");
  __syncthreads();
}
// B and C meet first, though A waits for B.
__global__ void nested_masks(int* out) {
  int sum = 0;
  if (threadIdx.x == 1 || threadIdx.x == 2) sum += __shfl_sync(6u, 10, 1);
  if (threadIdx.x == 0 || threadIdx.x == 1) sum += __shfl_sync(3u, 1, 0);
  out[threadIdx.x] = sum;
}
__global__ void nothing() {}

// ---- How they are launched. Buffers are exactly as large as they have to be.

template <class T>
std::unique_ptr<T[]> buffer(size_t n) {
  return std::unique_ptr<T[]>(new T[n]());
}

template <class... P, class... A>
void start(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, A... arguments) {
  std::tuple<P...> parameters(arguments...);
  launch(name, grid, block, 0, [&] { std::apply(kernel, parameters); });
}
#define UDML_RUN(kernel, ...) start(#kernel, kernel, __VA_ARGS__)

template <int BARRIER>
void exchanged() {
  const auto out = buffer<float>(64);
  UDML_RUN(exchange, 1, 64, out.get(), BARRIER);
}

template <bool APART>
void add_read() {
  const auto counter = buffer<int>(1), out = buffer<int>(64);
  UDML_RUN(add_and_read, 1, 64, counter.get(), out.get(), APART);
}

const auto floats = [] { return buffer<float>(256); };

}  // namespace

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"race_without_barrier", exchanged<0>},
      {"no_race_with_barrier", exchanged<1>},
      {"race_across_shuffle", exchanged<2>},
      {"no_race_with_syncwarp", exchanged<3>},
      {"race_across_half_syncwarp", exchanged<4>},
      {"race_across_warps", exchanged<5>},
      {"race_of_late_write", [] { UDML_RUN(rewrite, 1, 64, floats().get()); }},
      {"race_between_blocks", [] { UDML_RUN(all_write, 3, 4, floats().get(), false); }},
      {"race_between_threads", [] { UDML_RUN(all_write, 3, 4, floats().get(), true); }},
      {"no_race_between_launches",
       [] {
         const auto out = floats();
         for (int i = 0; i < 3; ++i) UDML_RUN(all_write, 1, 4, out.get(), false);
       }},
      {"race_of_reads_between_blocks",
       [] {
         const auto out = floats();
         UDML_RUN(write_then_read, 3, 32, out.get(), out.get());
       }},
      {"no_race_of_reads", [] { UDML_RUN(write_then_read, 3, 32, floats().get(), floats().get()); }},
      {"race_with_atomic", add_read<false>},
      {"no_race_with_atomic", add_read<true>},
      {"race_of_bytes", [] { UDML_RUN(write_bytes, 1, 64, buffer<unsigned char>(64).get(), 2); }},
      {"no_race_of_bytes", [] { UDML_RUN(write_bytes, 1, 64, buffer<unsigned char>(64).get(), 1); }},
      {"race_of_copies", [] { UDML_RUN(copy_block, 1, 4, floats().get(), floats().get()); }},
      {"write_past_end", [] { UDML_RUN(write_at, 1, 1, floats().get(), 256); }},
      {"read_past_end", [] { UDML_RUN(read_at, 1, 1, floats().get(), floats().get(), 256); }},
      {"dynamic_past_end", [] { launch("write_dynamic", 1, 1, 80, [] { write_dynamic(20); }); }},
      {"dynamic_to_the_end", [] { launch("write_dynamic", 2, 1, 80, [] { write_dynamic(19); }); }},
      {"static_past_end", [] { UDML_RUN(write_static, 1, 1, 32); }},
      {"static_pointer_past_end", [] { UDML_RUN(write_static_through, 1, 1, 33); }},
      {"misaligned", [] { UDML_RUN(write_vector, 1, 1, floats().get() + 1); }},
      {"misaligned_shared", [] { UDML_RUN(vector_of_floats, 1, 1); }},
      {"aligned", [] { UDML_RUN(write_vector, 1, 1, floats().get() + 4); }},
      {"unwritten_shared", [] { UDML_RUN(unwritten, 1, 32, floats().get(), false); }},
      {"unwritten_by_second_block", [] { UDML_RUN(unwritten, 2, 32, floats().get(), true); }},
      {"unwritten_dynamic",
       [] {
         const auto out = floats();
         launch("unwritten_dynamic", 1, 32, 128, [&] { unwritten_dynamic(out.get()); });
       }},
      {"too_much_shared", [] { UDML_RUN(too_much_shared, 1, 1); }},
      {"stack_overflow", [] { UDML_RUN(recurse, 1, 1, buffer<int>(1).get()); }},
      {"half_barrier", [] { UDML_RUN(half_barrier, 2, 32); }},
      {"barrier_and_vote", [] { UDML_RUN(barrier_and_vote, 1, 64); }},
      {"more_barriers", [] { UDML_RUN(more_barriers, 1, 64); }},
      {"different_barriers", [] { UDML_RUN(different_barriers, 1, 64); }},
      {"lane_missing", [] { UDML_RUN(lane_missing, 1, 32); }},
      {"mask_without_caller", [] { UDML_RUN(mask_without_caller, 1, 32); }},
      {"source_outside", [] { UDML_RUN(source_outside, 1, 32); }},
      {"different_collectives", [] { UDML_RUN(different_collectives, 1, 32); }},
      {"bad_width", [] { UDML_RUN(bad_width, 1, 32); }},
      {"throws", [] { UDML_RUN(throws, 1, 32); }},
      {"nested_masks",
       [] {
         const auto out = buffer<int>(3);
         UDML_RUN(nested_masks, 1, 3, out.get());
         if (out[0] != 1 || out[1] != 11 || out[2] != 10) throw std::logic_error("wrong values");
       }},
      {"too_many_threads", [] { UDML_RUN(nothing, 1, 1025); }},
      {"too_many_rows", [] { UDML_RUN(nothing, dim3(1, 65536), 1); }},
      {"empty_grid", [] { UDML_RUN(nothing, 0, 1); }},
      {"too_much_dynamic", [] { launch("nothing", 1, 1, (48 << 10) + 1, nothing); }},
  };
  return all;
}

}  // namespace udml_host
