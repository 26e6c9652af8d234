// Every allocation of torch for the CPU is known to the interpreter, to the byte.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <cstdlib>
extern "C" void ptx_track(uint64_t, uint64_t);
extern "C" void ptx_untrack(uint64_t);
struct Watched final : c10::Allocator {
  static void release(void* p) {
    if (p) {
      ptx_untrack(reinterpret_cast<uint64_t>(p));
      free(p);
    }
  }
  c10::DataPtr allocate(size_t n) override {
    if (n == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    void* p = nullptr;
    // The message is that of torch's own allocator.
    TORCH_CHECK(posix_memalign(&p, 256, n + 256) == 0, "can't allocate memory: you tried to allocate ", n, " bytes");
    ptx_track(reinterpret_cast<uint64_t>(p), n);
    return {p, p, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t n) const override { default_copy_data(to, from, n); }
};
extern "C" __attribute__((visibility("default"))) void ptx_watch_torch() {
  static Watched w;
  c10::SetCPUAllocator(&w, 255);
}
