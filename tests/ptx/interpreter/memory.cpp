// Addresses: which space an access is in, its bounds, its alignment.
#include <sstream>

#include "machine.h"

namespace ptx {

std::map<uint64_t, Allocation> allocations;

namespace {

Allocation* find(uint64_t address, uint64_t bytes) {
  auto it = allocations.upper_bound(address);
  if (it == allocations.begin()) return nullptr;
  --it;
  return address + bytes <= it->second.begin + it->second.size ? &it->second : nullptr;
}

const char* verb(Access access) {
  return access == Access::READ ? "reads " : access == Access::WRITE ? "writes " : "updates ";
}

std::string out_of_bounds(uint64_t address, int bytes, Access access) {
  std::ostringstream s;
  s << verb(access) << bytes << " bytes out of bounds at 0x" << std::hex << address << std::dec;
  const auto it = allocations.upper_bound(address);
  if (it != allocations.begin()) {
    const Allocation& a = std::prev(it)->second;
    s << ", " << static_cast<int64_t>(address - a.begin - a.size) << " bytes behind the end of one of " << a.size;
  }
  if (it != allocations.end()) s << ", " << it->second.begin - address << " bytes before one of " << it->second.size;
  return s.str();
}

// What a read out of bounds gets where it is no error.
alignas(64) const uint8_t poison[64] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                                        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};

uint64_t in_shared(Warp& w, const Instruction& i, int lane, uint64_t at, int bytes, Access access, const void* value) {
  Block& b = *w.block;
  const std::vector<uint8_t>& variables = b.f->in_variable;
  const uint64_t end = at + static_cast<uint64_t>(bytes);
  const bool inside = end <= b.shared.size() && end > at;
  if (!inside || (at < variables.size() && (!variables[at] || variables[at] != variables[end - 1])))
    fail(w, i, lane,
         verb(access) + std::to_string(bytes) + " bytes of shared memory out of bounds, at " + std::to_string(at) +
             " of " + std::to_string(b.shared.size()));
  if (options.races) {
    const bool same = value && memcmp(value, b.shared.data() + at, static_cast<size_t>(bytes)) == 0;
    watch_shared(w, i, lane, at, bytes, access, same);
  }
  return reinterpret_cast<uint64_t>(b.shared.data()) + at;
}

uint64_t in_global(Warp& w, const Instruction& i, int lane, uint64_t address, int bytes, Access access,
                   const void* value) {
  Allocation* a = i.seen;
  if (!a || address < a->begin || address + static_cast<uint64_t>(bytes) > a->begin + a->size) {
    a = find(address, static_cast<uint64_t>(bytes));
    if (!a && access == Access::READ && options.lenient) {
      note_at(w, i, "reads global memory out of bounds");
      return reinterpret_cast<uint64_t>(poison);
    }
    if (!a) fail(w, i, lane, out_of_bounds(address, bytes, access));
    i.seen = a;
  }
  if (options.races) {
    const bool same = value && memcmp(value, reinterpret_cast<void*>(address), static_cast<size_t>(bytes)) == 0;
    watch_global(w, i, lane, *a, address, bytes, access, same);
  }
  return address;
}

}  // namespace

uint64_t resolve_in(Space space, Warp& w, const Instruction& i, int lane, uint64_t address, int bytes, Access access,
                    const void* value) {
  if (address & static_cast<uint64_t>(bytes - 1))
    fail(w, i, lane, "misaligned access of " + std::to_string(bytes) + " bytes at " + std::to_string(address));
  if (space == Space::SHARED) return in_shared(w, i, lane, address, bytes, access, value);
  if (space == Space::PARAM) {
    const uint64_t at = address - reinterpret_cast<uint64_t>(w.block->parameters);
    if (at + static_cast<uint64_t>(bytes) > static_cast<uint64_t>(w.block->f->parameter_size))
      fail(w, i, lane, "parameter out of bounds");
    return address;
  }
  if (space == Space::LOCAL) {
    // A lane's own stack: the function's memory and that of its callers.
    const uint64_t at = address - w.local - w.local_stride * static_cast<uint64_t>(lane);
    if (at + static_cast<uint64_t>(bytes) > w.local_offset + static_cast<uint64_t>(w.f->local_size) ||
        at > w.local_stride)
      fail(w, i, lane, "local memory out of bounds");
    return address;
  }
  return in_global(w, i, lane, address, bytes, access, value);
}

uint64_t resolve(Warp& w, const Instruction& i, int lane, uint64_t address, int bytes, Access access, Space& space,
                 const void* value) {
  space = i.space;
  if (space == Space::GENERIC) {
    const Block& b = *w.block;
    const uint64_t window = reinterpret_cast<uint64_t>(b.shared.data());
    if (address - window < b.shared.size()) {
      space = Space::SHARED;
      address -= window;
    } else if (address - w.local < 32 * w.local_stride) space = Space::LOCAL;
    else if (address - reinterpret_cast<uint64_t>(b.parameters) < static_cast<uint64_t>(b.f->parameter_size))
      space = Space::PARAM;
    else space = Space::GLOBAL;
  }
  return resolve_in(space, w, i, lane, address, bytes, access, value);
}

}  // namespace ptx
