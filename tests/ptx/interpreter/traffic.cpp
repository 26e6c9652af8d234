// Counts of memory traffic: sectors of 32 bytes of global memory, passes over the banks of shared memory.
#include "machine.h"

namespace ptx {

namespace {

// 32 banks of 4 bytes; accesses of 8 bytes are made by half a warp at a time, those of 16 by a quarter.
void count_shared(Warp& w, const Instruction& i, uint32_t lanes, int bytes) {
  const int at_once = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int from = 0; from < 32; from += at_once) {
    std::vector<uint64_t> words;
    for (int l = from; l < from + at_once; ++l)
      if (lanes >> l & 1)
        for (int k = 0; k < std::max(bytes, 4); k += 4)
          words.push_back((address_of(w, i, l) + static_cast<uint64_t>(k)) / 4);
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int banks[32] = {}, most = 0;
    for (uint64_t word : words) most = std::max(most, ++banks[word & 31]);
    w.f->counts.shared_waves += static_cast<uint64_t>(most);
    w.f->counts.shared_requests += 1;
  }
}

}  // namespace

void count_traffic(Warp& w, const Instruction& i, uint32_t lanes, bool shared) {
  const int bytes = i.size * i.vector;
  if (shared) {
    count_shared(w, i, lanes, bytes);
    return;
  }
  uint64_t sectors[64], wanted = 0;
  int n = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(lanes >> l & 1)) continue;
    const uint64_t first = address_of(w, i, l), last = first + static_cast<uint64_t>(bytes) - 1;
    wanted += static_cast<uint64_t>(bytes);
    sectors[n++] = first / 32;
    if (last / 32 != first / 32) sectors[n++] = last / 32;
  }
  std::sort(sectors, sectors + n);
  Counts& counts = w.f->counts;
  counts.requests += 1;
  counts.sectors += static_cast<uint64_t>(std::unique(sectors, sectors + n) - sectors);
  counts.ideal += (wanted + 31) / 32;
}

}  // namespace ptx
