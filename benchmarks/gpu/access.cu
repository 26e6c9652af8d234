// What it costs when a thread's 16-byte vectors lie side by side, against vectors that the lanes of a warp take in
// turn, as in csrc/cuda/rows.h. nvcc -O3 -std=c++17 -arch=native access.cu -o access && ./access
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>
#define CHECK(x)                                          \
  do {                                                    \
    cudaError_t error_ = (x);                             \
    if (error_ != cudaSuccess) {                          \
      printf("%s: %s\n", #x, cudaGetErrorString(error_)); \
      return 1;                                           \
    }                                                     \
  } while (0)

constexpr int THREADS = 256, WARMUP = 5, SAMPLES = 20;
constexpr size_t BYTES = size_t{1} << 30;

// V vectors of 16 bytes a thread: side by side, or a warp's 32 lanes apart. READS inputs, WRITES outputs.
template <int V, bool LOAD_STRIPED, bool STORE_STRIPED, int READS, int WRITES>
__global__ void __launch_bounds__(THREADS) copy(const uint4* __restrict__ a, const uint4* __restrict__ b,
                                                uint4* __restrict__ c, uint4* __restrict__ d, int64_t n) {
  const int64_t warp = (blockIdx.x * int64_t{THREADS} + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int64_t base = warp * 32 * V;
  if (base + 32 * V > n) return;
  uint4 x[V], y[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int64_t at = base + (LOAD_STRIPED ? i * 32 + lane : lane * V + i);
    x[i] = a[at];
    if (READS > 1) y[i] = b[at];
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int64_t at = base + (STORE_STRIPED ? i * 32 + lane : lane * V + i);
    if (READS > 1) x[i].x ^= y[i].x, x[i].y ^= y[i].y, x[i].z ^= y[i].z, x[i].w ^= y[i].w;
    c[at] = x[i];
    if (WRITES > 1) d[at] = x[i];
  }
}

// Random bits: some GPUs compress what repeats.
__global__ void fill(uint4* p, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{THREADS} + threadIdx.x; i < n; i += gridDim.x * int64_t{THREADS}) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    h ^= h >> 15, h *= 0x2c1b3c6du, h ^= h >> 12;
    p[i] = make_uint4(h, h * 3, h * 5, h * 7);
  }
}

template <int V, bool LOAD_STRIPED, bool STORE_STRIPED, int READS, int WRITES>
int run(uint4** p, int shared) {
  const auto kernel = copy<V, LOAD_STRIPED, STORE_STRIPED, READS, WRITES>;
  const int64_t n = BYTES / 16, blocks = n / (THREADS * V);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  int resident = 0;
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, THREADS, shared));
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < WARMUP + SAMPLES; ++i) {
    CHECK(cudaEventRecord(start));
    kernel<<<blocks, THREADS, shared>>>(p[0], p[1], p[2], p[3], n);
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, end));
    if (i >= WARMUP) times.push_back(ms);
  }
  CHECK(cudaGetLastError());
  std::sort(times.begin(), times.end());
  const float median = times[times.size() / 2];
  printf("%d vectors, load %s, store %s, %d read %d written, blocks/SM %d: %.3f ms %.0f GB/s\n", V,
         LOAD_STRIPED ? "striped" : "beside", STORE_STRIPED ? "striped" : "beside", READS, WRITES, resident, median,
         1e-6 * BYTES * (READS + WRITES) / median);
  fflush(stdout);
  return 0;
}

int main() {
  uint4* p[4];
  for (auto& q : p) {
    CHECK(cudaMalloc(&q, BYTES));
    fill<<<4096, THREADS>>>(q, BYTES / 16, static_cast<uint32_t>(&q - p));
  }
  CHECK(cudaDeviceSynchronize());
  // Dynamic shared memory leaves room for 8, 4, 3 and 2 blocks of 256 threads on a multiprocessor of sm_90.
  for (int shared : {0, 48 << 10, 72 << 10, 100 << 10}) {
    int failed = run<4, true, true, 1, 1>(p, shared) || run<4, false, true, 1, 1>(p, shared) ||
                 run<4, true, false, 1, 1>(p, shared) || run<4, false, false, 1, 1>(p, shared) ||
                 run<2, true, true, 1, 1>(p, shared) || run<2, false, false, 1, 1>(p, shared) ||
                 run<4, true, true, 2, 1>(p, shared) || run<4, false, false, 2, 1>(p, shared) ||
                 run<4, true, true, 2, 2>(p, shared) || run<4, false, false, 2, 2>(p, shared);
    if (failed) return 1;
  }
  return 0;
}
