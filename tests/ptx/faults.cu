// Kernels with one fault each, chosen by an argument, and without it: tests/test_ptx_faults.py launches both.
#include <cassert>

constexpr unsigned ALL = 0xffffffffu;

extern "C" {

// ---- Races.

__global__ void exchange(float* out, int barrier) {
  __shared__ float tile[64];
  const unsigned t = threadIdx.x;
  float more = 0;
  tile[t] = static_cast<float>(t);
  if (barrier == 1) __syncthreads();
  if (barrier == 2) more = __shfl_sync(ALL, static_cast<float>(t), 0);
  if (barrier == 3) __syncwarp();
  if (barrier == 4) __syncwarp(t % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  out[t] = more + tile[barrier == 5 ? t ^ 32u : t ^ 1u];
}

__global__ void rewrite(float* out, int apart) {
  __shared__ float tile[2];
  if (threadIdx.x == 0) tile[0] = 1;
  __syncthreads();
  const float mine = tile[0];
  // Without a barrier some may not have read it yet.
  if (apart) __syncthreads();
  if (threadIdx.x == 5) tile[0] = 2;
  out[threadIdx.x] = mine;
}

// The place: 0 by thread, 1 by block, 2 by both. Threads write 1, or their number.
__global__ void all_write(float* out, int place, int number) {
  const unsigned i = place == 0 ? threadIdx.x : place == 1 ? blockIdx.x : blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = number ? static_cast<float>(threadIdx.x) : 1.0f;
}

__global__ void all_write_shared(float* out, int by_thread) {
  __shared__ float tile[64];
  tile[by_thread ? threadIdx.x : 0] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[by_thread ? threadIdx.x : 0];
}

__global__ void write_then_read(const float* in, float* out) {
  if (threadIdx.x == 0 && blockIdx.x == 1) out[0] = 1;
  out[1 + blockIdx.x * 32 + threadIdx.x] = in[0];
}

__global__ void add_and_read(int* counter, int* out, int apart) {
  atomicAdd(counter, 1);
  if (apart) __syncthreads();
  out[threadIdx.x] = *counter;
}

__global__ void add_and_write(int* counter, int write) {
  atomicAdd(counter + 1, 1);
  if (write && blockIdx.x == 1 && threadIdx.x == 0) counter[1] = 0;
}

__global__ void add_shared(int* out, int kind) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  if (kind != 0) __syncthreads();
  atomicAdd(&sum, 1);
  if (kind != 1) __syncthreads();
  out[threadIdx.x] = sum;
}

// Neighbours in one word.
__global__ void write_bytes(unsigned char* out, unsigned step) { out[threadIdx.x / step] = 1; }

__global__ void copy_block(const float* in, float* out, int step) {
  memcpy(out + step * threadIdx.x, in, 16 * sizeof(float));
}

// ---- Memory.

__global__ void write_at(float* out, size_t i) { out[i] = 1; }
__global__ void read_at(const float* in, float* out, size_t i) { out[0] = in[i]; }
__global__ void add_at(int* out, size_t i) { atomicAdd(out + i, 1); }

extern __shared__ float dynamic[];
__global__ void write_dynamic(size_t i) { dynamic[i] = 1; }

__global__ void write_static(size_t i) {
  __shared__ volatile float tile[33];
  tile[i] = 1;
}

// Two variables: what is behind the one must not be the other.
__global__ void write_neighbour(float* out, int i) {
  __shared__ float first[32], second[32];
  first[threadIdx.x] = 1;
  second[threadIdx.x] = 2;
  __syncthreads();
  first[threadIdx.x + i] = 3;
  __syncthreads();
  out[threadIdx.x] = first[31 - threadIdx.x] + second[31 - threadIdx.x];
}

// By a generic address.
__device__ __noinline__ void put(float* p) { *p = 1; }
__global__ void write_through(float* out, size_t i) {
  __shared__ float tile[33];
  put(threadIdx.x == 0 ? tile + i : out);
}

__global__ void write_vector(float* out) { *reinterpret_cast<float4*>(out) = make_float4(1, 2, 3, 4); }

__global__ void vector_of_floats(float* out, int i) {
  __shared__ __align__(16) float tile[32];
  *reinterpret_cast<float4*>(tile + i) = make_float4(1, 2, 3, 4);
  out[0] = tile[i];
}

__global__ void unwritten(float* out, int blocks) {
  __shared__ float tile[32];
  if (blockIdx.x < blocks) tile[threadIdx.x] = 3;
  __syncthreads();
  out[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];
}

__global__ void unwritten_dynamic(float* out, int write) {
  if (write) dynamic[threadIdx.x] = 3;
  out[threadIdx.x] = dynamic[threadIdx.x];
}

__global__ void too_much_shared() {
  __shared__ volatile double tile[7000];
  tile[0] = 1;
}

__global__ void index_local(int* out, int i) {
  int numbers[8];
  for (int k = 0; k < 8; ++k) numbers[k] = out[k];
  numbers[i] = 5;
  out[0] = numbers[out[0] & 7];
}

__device__ __noinline__ int deeper(int n, const volatile int* above) {
  volatile int here[16];
  here[n & 15] = n + above[0];
  return n == 0 ? here[0] : deeper(n - 1, here) + here[n & 15];
}
__global__ void recurse(int* out, int n) {
  volatile int first[16];
  first[0] = n;
  *out = deeper(n, first);
}

__global__ void divide(int* out, int by) { out[threadIdx.x] = 100 / by; }

// ---- Waiting.

__global__ void some_at_barrier(unsigned threads) {
  if (threadIdx.x < threads) __syncthreads();
}
__global__ void barrier_and_vote(int* out, int vote) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    if (!vote) __syncthreads();
    if (vote && threadIdx.x == 63) out[0] = __any_sync(ALL, out[1]);
  }
}
__global__ void more_barriers(int by_warp) {
  for (unsigned i = 0; i <= (by_warp ? threadIdx.x / 32 : 1); ++i) __syncthreads();
}
__global__ void different_barriers(int* out, int different) {
  if (threadIdx.x < 32 && different) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __syncthreads_or(static_cast<int>(threadIdx.x == 40));
  }
}
__global__ void barriers_of_lanes(float* out, int apart) {
  if (apart && threadIdx.x < 40) {
    __syncthreads();
    out[threadIdx.x] = 1;
  } else {
    __syncthreads();
    out[threadIdx.x] = 2;
  }
}
__global__ void lane_missing(float* out, unsigned lane) {
  if (threadIdx.x != lane) out[threadIdx.x] = __shfl_sync(ALL, static_cast<float>(threadIdx.x), 0);
}
__global__ void shuffle_masks(float* out, unsigned lower, unsigned upper, int from, int width) {
  out[threadIdx.x] = __shfl_sync(threadIdx.x < 16 ? lower : upper, static_cast<float>(threadIdx.x), from, width);
}
__global__ void different_collectives(int* out, int different) {
  if (threadIdx.x < 16 && different) {
    out[threadIdx.x] = __any_sync(ALL, out[threadIdx.x]);
  } else {
    out[threadIdx.x] = __shfl_down_sync(different ? ALL : __activemask(), out[threadIdx.x], 1);
  }
}
__global__ void shuffle_width(int* out, int width) { out[threadIdx.x] = __shfl_sync(ALL, out[threadIdx.x], 0, width); }
__global__ void traps(int* out, int thread) {
  if (static_cast<int>(threadIdx.x) == thread) __trap();
  out[threadIdx.x] = 1;
}
__global__ void asserts(int* out, int most) {
  assert(threadIdx.x < most);
  out[threadIdx.x] = 1;
}
// Lanes 1 and 2 meet first, though 0 waits for 1.
__global__ void nested_masks(int* out) {
  int sum = 0;
  if (threadIdx.x == 1 || threadIdx.x == 2) sum += __shfl_sync(6u, 10, 1);
  if (threadIdx.x == 0 || threadIdx.x == 1) sum += __shfl_sync(3u, 1, 0);
  out[threadIdx.x] = sum;
}
__global__ void nothing() {}
__global__ void __launch_bounds__(64) bounded() {}
}
