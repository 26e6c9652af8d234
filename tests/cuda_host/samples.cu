// Correct kernels, whose results the tests know.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "faults.h"

namespace udml_host {

namespace {

constexpr unsigned ALL = 0xffffffffu;

__global__ void sum_blocks(const float* in, float* out, size_t n) {
  UDML_SHARED(float, partial, 32);
  float sum = 0;
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += __ldg(in + i);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(ALL, sum, lanes);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(ALL, sum, delta);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

__global__ void mark_indices(int* out) {
  const size_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const size_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

template <class T>
__global__ void shuffle_once(double* out, int kind, int argument, int width) {
  const T own = static_cast<T>(threadIdx.x);
  T got = own;
  if (kind == 0) got = __shfl_sync(ALL, own, argument, width);
  if (kind == 1) got = __shfl_up_sync(ALL, own, argument, width);
  if (kind == 2) got = __shfl_down_sync(ALL, own, argument, width);
  if (kind == 3) got = __shfl_xor_sync(ALL, own, argument, width);
  out[threadIdx.x] = static_cast<double>(got);
}

__global__ void vote(unsigned* out, unsigned predicates, unsigned mask) {
  const unsigned lane = threadIdx.x;
  const int mine = predicates >> lane & 1u;
  if (mask >> lane & 1u) {
    const unsigned any = __any_sync(mask, mine), all = __all_sync(mask, mine), ballot = __ballot_sync(mask, mine);
    if (lane == static_cast<unsigned>(__ffs(static_cast<int>(mask)) - 1)) out[0] = any, out[1] = all, out[2] = ballot;
  }
  const int count = __syncthreads_count(mine), all = __syncthreads_and(mine), any = __syncthreads_or(mine);
  if (lane == 0) out[3] = count, out[4] = all, out[5] = any;
}

struct Counters {
  int sum;
  unsigned most;
  unsigned long long wide;
  float single;
  double twice;
  int exchanged;
};

__global__ void count(Counters* out) {
  atomicAdd(&out->sum, -1);
  atomicMax(&out->most, blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&out->wide, 1ull << 32);
  atomicAdd(&out->single, 0.5f);
  // Adding without atomicAdd.
  auto* bits = reinterpret_cast<unsigned long long*>(&out->twice);
  unsigned long long seen = atomicCAS(bits, 0ull, 0ull), expected;
  do {
    expected = seen;
    const double next = __longlong_as_double(static_cast<long long>(expected)) + 2;
    seen = atomicCAS(bits, expected, static_cast<unsigned long long>(__double_as_longlong(next)));
  } while (seen != expected);
  atomicExch(&out->exchanged, 7);
}

__global__ void look_into_shared(unsigned* out) {
  UDML_SHARED(unsigned, tile, 40);
  unsigned* const words = static_cast<unsigned*>(dynamic_shared());
  unsigned* const found = out + blockIdx.x * 50;
  for (int i = 0; i < 40; ++i) found[i] = tile[i], tile[i] = 1;
  for (int i = 0; i < 10; ++i) found[40 + i] = words[i], words[i] = 1;
}

__global__ void narrow(const float* in, unsigned* out, size_t n, bool half) {
  const size_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = half ? __half_as_ushort(__float2half_rn(in[i])) : __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
}

__global__ void widen(const unsigned* in, float* out, size_t n, bool half) {
  const size_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const auto bits = static_cast<unsigned short>(in[i]);
  out[i] = half ? __half2float(__ushort_as_half(bits)) : __bfloat162float(__ushort_as_bfloat16(bits));
}

__global__ void note_turn(int* out, int* turn) {
  const int mine = atomicAdd(turn, 1);
  out[mine] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

__global__ void shuffle_often(float* out, int times) {
  float sum = static_cast<float>(threadIdx.x);
  for (int i = 0; i < times; ++i) sum = 0.5f * (sum + __shfl_xor_sync(ALL, sum, 1 << i % 5));
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

unsigned blocks_for(size_t n) { return static_cast<unsigned>((n + 255) / 256); }

}  // namespace

std::vector<float> block_sums(const std::vector<float>& values, unsigned blocks, unsigned threads) {
  std::vector<float> out(blocks);
  launch("sum_blocks", blocks, threads, 0, [&] { sum_blocks(values.data(), out.data(), values.size()); });
  return out;
}

std::vector<int> indices(std::vector<unsigned> grid, std::vector<unsigned> block) {
  std::vector<int> out(size_t(grid[0]) * grid[1] * grid[2] * block[0] * block[1] * block[2]);
  launch("mark_indices", dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), 0,
         [&] { mark_indices(out.data()); });
  return out;
}

std::vector<double> shuffles(int kind, int argument, int width, bool as_double) {
  std::vector<double> out(32);
  launch("shuffle_once", 1, 32, 0, [&] {
    as_double ? shuffle_once<double>(out.data(), kind, argument, width)
              : shuffle_once<int>(out.data(), kind, argument, width);
  });
  return out;
}

std::vector<unsigned> votes(unsigned predicates, unsigned mask) {
  std::vector<unsigned> out(6);
  launch("vote", 1, 32, 0, [&] { vote(out.data(), predicates, mask); });
  return out;
}

std::vector<double> atomics(unsigned blocks, unsigned threads) {
  Counters c{};
  launch("count", blocks, threads, 0, [&] { count(&c); });
  return {double(c.sum), double(c.most), double(c.wide), double(c.single), c.twice, double(c.exchanged)};
}

std::vector<unsigned> found_in_shared(unsigned blocks) {
  std::vector<unsigned> out(blocks * 50);
  launch("look_into_shared", blocks, 1, 40, [&] { look_into_shared(out.data()); });
  return out;
}

std::vector<unsigned> narrowed(const std::vector<float>& values, bool half) {
  std::vector<unsigned> out(values.size());
  launch("narrow", blocks_for(out.size()), 256, 0, [&] { narrow(values.data(), out.data(), out.size(), half); });
  return out;
}

std::vector<float> widened(const std::vector<unsigned>& bits, bool half) {
  std::vector<float> out(bits.size());
  launch("widen", blocks_for(out.size()), 256, 0, [&] { widen(bits.data(), out.data(), out.size(), half); });
  return out;
}

std::vector<int> seen_first(unsigned blocks, unsigned threads) {
  std::vector<int> out(blocks * threads);
  int turn = 0;
  launch("note_turn", blocks, threads, 0, [&] { note_turn(out.data(), &turn); });
  return out;
}

float switch_often(unsigned blocks, unsigned threads, int times) {
  std::vector<float> out(blocks * threads);
  launch("shuffle_often", blocks, threads, 0, [&] { shuffle_often(out.data(), times); });
  return out[0];
}

}  // namespace udml_host
