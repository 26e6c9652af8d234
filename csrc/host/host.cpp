// udml_kernels._host: information about this machine. No op runs through this module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "philox.h"

namespace py = pybind11;

namespace {

// Returns the highest kernel level whose instruction sets the processor and the operating system support.
std::string cpu_capability() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? "avx512" : avx2 ? "avx2" : "baseline";
#else
  return "baseline";
#endif
}

using Counter = std::array<std::uint32_t, 4>;

Counter philox(Counter counter, std::array<std::uint32_t, 2> key) {
  udml::philox4x32_10(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  return counter;
}

// Returns the bandwidth of a copy of `bytes` bytes in GB/s, counting read and written bytes: the best of `repeats`
// runs.
double copy_bandwidth(std::size_t bytes, int threads, int repeats) {
  if (bytes == 0 || threads < 1 || repeats < 1)
    throw std::invalid_argument("copy_bandwidth: bytes, threads and repeats must be positive");
  // new[] without () leaves the pages untouched, so that each thread touches its own part first.
  std::unique_ptr<char[]> from(new char[bytes]), to(new char[bytes]);
  const auto on_each_part = [&](auto&& work) {
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      const std::size_t begin = bytes / threads * t, end = t + 1 == threads ? bytes : bytes / threads * (t + 1);
      pool.emplace_back([=] { work(begin, end - begin); });
    }
    for (auto& thread : pool) thread.join();
  };
  char *const source = from.get(), *const target = to.get();
  on_each_part([=](std::size_t at, std::size_t n) { std::memset(source + at, 1, n), std::memset(target + at, 2, n); });
  double best = 1e300;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    on_each_part([=](std::size_t at, std::size_t n) { std::memcpy(target + at, source + at, n); });
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return 2e-9 * static_cast<double>(bytes) / best;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Processor capability, the Philox block function, measured copy bandwidth.";
  m.def("cpu_capability", &cpu_capability, "avx512, avx2 or baseline.");
  m.def("philox", &philox, py::arg("counter"), py::arg("key"),
        "Philox4x32-10: four 32-bit counter words and two key words to four random words.");
  m.def("copy_bandwidth", &copy_bandwidth, py::arg("bytes"), py::arg("threads"), py::arg("repeats") = 5,
        py::call_guard<py::gil_scoped_release>(), "GB/s of a parallel copy, read + written bytes, best of `repeats`.");
}
