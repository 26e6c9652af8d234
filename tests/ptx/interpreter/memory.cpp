// Loads and stores, watched: bounds, alignment, unwritten shared memory, races.
#include <algorithm>
#include <sstream>

#include "ptx.h"

namespace ptx {

std::map<uint64_t, Alloc> allocations;
extern uint64_t launch_number;

static std::string place(const Warp& w, int thread) {
  const Block& b = *w.block;
  std::ostringstream s;
  s << "thread (" << thread % b.size[0] << "," << thread / b.size[0] % b.size[1] << ","
    << thread / b.size[0] / b.size[1] << ")";
  return s.str();
}
static std::string block_name(const Warp& w, uint32_t serial) {
  const Block& b = *w.block;
  std::ostringstream s;
  s << "block (" << serial % b.grid[0] << "," << serial / b.grid[0] % b.grid[1] << "," << serial / b.grid[0] / b.grid[1]
    << ")";
  return s.str();
}
static std::string where(const Function& f, const Inst& i) {
  std::ostringstream s;
  s << f.module << ":" << i.line;
  if (i.line > 0 && i.line <= static_cast<int>(f.lines->size())) {
    const std::string& t = (*f.lines)[i.line - 1];
    s << " `" << t.substr(t.find_first_not_of(" \t")) << "`";
  }
  auto it = f.files->find(i.file);
  if (it != f.files->end()) s << " (" << it->second << ":" << i.source_line << ")";
  return s.str();
}
void fail(const Warp& w, const Inst& i, int lane, const std::string& what) {
  std::ostringstream s;
  s << what << "; in " << w.f->name << ", " << block_name(w, w.block->serial) << " "
    << place(w, static_cast<int>(w.first) + lane) << ", at " << where(*w.f, i);
  throw std::runtime_error(s.str());
}

static Alloc* find(uint64_t a, uint64_t size) {
  auto it = allocations.upper_bound(a);
  if (it == allocations.begin()) return nullptr;
  --it;
  return a + size <= it->second.begin + it->second.size ? &it->second : nullptr;
}
static std::string out_of_bounds(uint64_t a, int size, bool write) {
  std::ostringstream s;
  s << (write ? "writes " : "reads ") << size << " bytes out of bounds at 0x" << std::hex << a << std::dec;
  auto it = allocations.upper_bound(a);
  if (it != allocations.begin()) {
    auto p = std::prev(it);
    s << ", " << int64_t(a - p->second.begin - p->second.size) << " bytes behind the end of one of " << p->second.size;
  }
  if (it != allocations.end()) s << ", " << it->second.begin - a << " bytes before one of " << it->second.size;
  return s.str();
}

static void note_at(Warp& w, const Inst& i, const char* what) {
  note(w.f->name, std::string(what) + " at " + where(*w.f, i));
}
alignas(16) static const uint8_t poison[64] = {255, 255, 255, 255, 255, 255, 255, 255,
                                               255, 255, 255, 255, 255, 255, 255, 255};
static const uint32_t MANY = ~0u;
static void race(Warp& w, const Inst& i, int lane, bool write, const Shadow& s, bool with_write, const char* memory) {
  std::ostringstream t;
  const uint32_t other = with_write ? s.wb : s.rb;
  const int thread = with_write ? s.wt : s.rt;
  t << "race in " << memory << " memory: " << (write ? "writes" : "reads") << " what ";
  if (other == MANY) t << "several blocks";
  else {
    t << block_name(w, other - 1) << " ";
    if (thread >= 0x8000) t << "several threads";
    else t << place(w, thread);
  }
  t << (with_write ? " wrote" : " read") << " at "
    << where(*w.f, w.f->code[static_cast<size_t>(with_write ? s.wi : s.ri)]) << " without a barrier between";
  fail(w, i, lane, t.str());
}
static inline void watch(Warp& w, const Inst& i, int lane, Shadow& s, bool write, bool is_shared, bool same) {
  const uint32_t b = w.block->serial + 1, e = w.block->epoch;
  const uint16_t t = static_cast<uint16_t>(w.first + lane);
  const int pc = static_cast<int>(&i - w.f->code.data());
  if (is_shared) {
    if (s.wb != b) {
      if (!write) fail(w, i, lane, "reads shared memory that nobody has written");
      s.wb = 0;
    }
    if (s.rb != b) s.rb = 0;
  }
  // The same value by the same instruction: threads with copies of one value.
  if (write && same && (is_shared || options.replicated || options.lenient) && s.wb == b && s.wi == pc && s.we == e) {
    if (s.wt != t) {
      s.wt = t;
      if (!is_shared && !options.replicated) note_at(w, i, "several threads of a block write the same value to global memory");
    }
  }
  if (options.lenient && write && !same && s.wb == b && s.wi == pc && s.we == e && s.wt != t) {
    note_at(w, i, "threads of a block write different values to one place");
    s.wt = t;
  }
  // Ordered: by a barrier, or within a warp by its own synchronisation. Of readers: 0x8000 | warp, several lanes;
  // 0xffff, several warps.
  const uint16_t warp = t / 32, syncs = w.syncs;
  if (s.wb && (s.wb != b || (s.we == e && s.wt != t && !(s.wt / 32 == warp && s.ws != syncs))))
    race(w, i, lane, write, s, true, is_shared ? "shared" : "global");
  const bool one_warp = s.rt != 0xffff && (s.rt & 0x8000 ? (s.rt & 0x7fff) == warp : s.rt / 32 == warp);
  if (write) {
    if (s.rb && (s.rb != b || (s.re == e && s.rt != t && !(one_warp && s.rs != syncs))))
      race(w, i, lane, write, s, false, is_shared ? "shared" : "global");
    s.wb = b;
    s.wt = t;
    s.we = e;
    s.wi = pc;
    s.ws = syncs;
  } else {
    if (s.rb == MANY) return;
    if (s.rb == 0 || (s.rb == b && s.re != e)) {
      s.rb = b;
      s.rt = t;
      s.re = e;
      s.ri = pc;
      s.rs = syncs;
    } else if (s.rb != b) s.rb = MANY;
    else if (s.rt != t) {
      s.rt = one_warp ? uint16_t(0x8000 | warp) : 0xffff;
      s.rs = syncs;
      s.ri = pc;
    } else s.rs = syncs;
  }
}
static void watch_global(Warp& w, const Inst& i, int lane, Alloc& a, uint64_t address, int bytes, bool write,
                         bool same) {
  const int g = w.f->granule_global;
  if (a.launch != launch_number) {
    a.launch = launch_number;
    a.shadow.assign(a.size / g + 1, {});
  }
  const uint64_t from = (address - a.begin) / g, to = (address - a.begin + bytes - 1) / g;
  for (uint64_t k = from; k <= to; ++k) watch(w, i, lane, a.shadow[k], write, false, same);
}
static void watch_shared(Warp& w, const Inst& i, int lane, uint64_t at, int bytes, bool write, bool same) {
  const int g = w.f->granule_shared;
  auto& sh = w.block->shadow;
  for (uint64_t k = at / g; k <= (at + bytes - 1) / g; ++k) watch(w, i, lane, sh[k], write, true, same);
}

// Host address of an access; `space` becomes that in which it is.
static uint64_t resolve(Warp& w, const Inst& i, int lane, uint64_t a, int bytes, bool write, Space& space,
                        const void* value = nullptr);
static uint64_t resolve_as(Warp& w, const Inst& i, int lane, uint64_t a, int bytes, bool write, Space space,
                           const void* value = nullptr);
static uint64_t resolve(Warp& w, const Inst& i, int lane, uint64_t a, int bytes, bool write, Space& space,
                        const void* value) {
  space = i.space;
  if (space == GENERIC) {
    const uint64_t window = reinterpret_cast<uint64_t>(w.block->shared.data()),
                   local = reinterpret_cast<uint64_t>(w.local.data()),
                   params = reinterpret_cast<uint64_t>(w.block->params);
    if (a - window < w.block->shared.size()) {
      space = SHARED;
      a -= window;
    } else if (a - local < w.local.size()) space = LOCAL;
    else if (a - params < static_cast<uint64_t>(w.block->f->param_size)) space = PARAM;
    else space = GLOBAL;
  }
  return resolve_as(w, i, lane, a, bytes, write, space, value);
}
static uint64_t resolve_as(Warp& w, const Inst& i, int lane, uint64_t a, int bytes, bool write, Space space,
                           const void* value) {
  Block& b = *w.block;
  const uint64_t window = reinterpret_cast<uint64_t>(b.shared.data());
  if (a % static_cast<uint64_t>(bytes))
    fail(w, i, lane, "misaligned access of " + std::to_string(bytes) + " bytes at " + std::to_string(a));
  if (space == SHARED) {
    if (a + bytes > b.shared.size())
      fail(w, i, lane,
           (write ? "writes " : "reads ") + std::to_string(bytes) + " bytes of shared memory at " + std::to_string(a) +
               " of " + std::to_string(b.shared.size()));
    if (options.races)
      watch_shared(w, i, lane, a, bytes, write, value && memcmp(value, b.shared.data() + a, bytes) == 0);
    return window + a;
  }
  if (space == PARAM) {
    if (a - reinterpret_cast<uint64_t>(b.params) + bytes > static_cast<uint64_t>(b.f->param_size))
      fail(w, i, lane, "parameter out of bounds");
    return a;
  }
  if (space == LOCAL) {
    if (a - reinterpret_cast<uint64_t>(w.local.data()) + bytes > w.local.size())
      fail(w, i, lane, "local memory out of bounds");
    return a;
  }
  Alloc* at = i.seen;
  if (!at || a < at->begin || a + bytes > at->begin + at->size) {
    at = find(a, bytes);
    if (!at && !write && options.lenient) {
      note_at(w, i, "reads global memory out of bounds");
      return reinterpret_cast<uint64_t>(poison);
    }
    if (!at) fail(w, i, lane, out_of_bounds(a, bytes, write));
    i.seen = at;
  }
  if (options.races)
    watch_global(w, i, lane, *at, a, bytes, write, value && memcmp(value, reinterpret_cast<void*>(a), bytes) == 0);
  return a;
}
static inline uint64_t address(Warp& w, const Inst& i, int l) {
  return (i.wide_s ? row<uint64_t>(w, i.a)[l] + static_cast<uint64_t>(i.imm)
                   : uint64_t(uint32_t(row<uint32_t>(w, i.a)[l] + static_cast<uint32_t>(i.imm))));
}

// Sectors of 32 bytes of a request, and passes over the banks.
static void tally(Warp& w, const Inst& i, uint32_t m, bool shared) {
  const int bytes = i.size * i.vec;
  Function& f = *w.f;
  if (shared) {
    // 32 banks of 4 bytes; 8-byte accesses go by half warps, 16-byte ones by quarters.
    const int per = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    for (int from = 0; from < 32; from += per) {
      std::vector<uint64_t> words;
      for (int l = from; l < from + per; ++l)
        if (m >> l & 1)
          for (int k = 0; k < std::max(bytes, 4); k += 4) words.push_back((address(w, i, l) + k) / 4);
      if (words.empty()) continue;
      std::sort(words.begin(), words.end());
      words.erase(std::unique(words.begin(), words.end()), words.end());
      int banks[32] = {}, most = 0;
      for (uint64_t x : words) most = std::max(most, ++banks[x & 31]);
      f.shared_waves += most;
      f.shared_requests += 1;
    }
    return;
  }
  uint64_t s[64];
  int n = 0;
  uint64_t bytes_wanted = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    const uint64_t a = address(w, i, l);
    bytes_wanted += bytes;
    s[n++] = a / 32;
    if ((a + bytes - 1) / 32 != a / 32) s[n++] = (a + bytes - 1) / 32;
  }
  std::sort(s, s + n);
  f.requests += 1;
  f.sectors += std::unique(s, s + n) - s;
  f.ideal += (bytes_wanted + 31) / 32;
}

static uint64_t fetch(uint64_t at, Ty ty, int size) {
  switch (size) {
    case 1: {
      uint8_t v;
      memcpy(&v, reinterpret_cast<void*>(at), 1);
      return ty == S8 ? uint64_t(int64_t(int8_t(v))) : v;
    }
    case 2: {
      uint16_t v;
      memcpy(&v, reinterpret_cast<void*>(at), 2);
      return ty == S16 ? uint64_t(int64_t(int16_t(v))) : v;
    }
    case 4: {
      uint32_t v;
      memcpy(&v, reinterpret_cast<void*>(at), 4);
      return ty == S32 ? uint64_t(int64_t(int32_t(v))) : v;
    }
    default: {
      uint64_t v;
      memcpy(&v, reinterpret_cast<void*>(at), 8);
      return v;
    }
  }
}
static inline void put(Warp& w, const Inst& i, int k, int l, uint64_t v) {
  if (i.v[k] < 0) return;
  if (i.wide_d) row<uint64_t>(w, i.v[k])[l] = v;
  else row<uint32_t>(w, i.v[k])[l] = uint32_t(i.mode == 16 ? v & 0xffff : v);
}
void load(Warp& w, const Inst& i, uint32_t m) {
  const int bytes = i.size * i.vec;
  Space space = i.space;
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    const uint64_t a = resolve(w, i, l, address(w, i, l), bytes, false, space);
    for (int k = 0; k < i.vec; ++k) put(w, i, k, l, fetch(a + k * i.size, i.ty, i.size));
  }
  if (options.stats && (space == GLOBAL || space == SHARED)) tally(w, i, m, space == SHARED);
}
void store(Warp& w, const Inst& i, uint32_t m) {
  const int bytes = i.size * i.vec;
  Space space = i.space;
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    uint8_t value[64];
    for (int k = 0; k < i.vec; ++k) {
      const uint64_t v = i.wide_d ? row<uint64_t>(w, i.v[k])[l] : row<uint32_t>(w, i.v[k])[l];
      memcpy(value + k * i.size, &v, 8);
    }
    const uint64_t a = resolve(w, i, l, address(w, i, l), bytes, true, space, value);
    memcpy(reinterpret_cast<void*>(a), value, bytes);
  }
  if (options.stats && (space == GLOBAL || space == SHARED)) tally(w, i, m, space == SHARED);
}
void load_param(Warp& w, const Inst& i, uint32_t m) {
  if (i.imm < 0 || i.imm + i.size * i.vec > w.block->f->param_size) fail(w, i, 0, "parameter out of bounds");
  for (int k = 0; k < i.vec; ++k) {
    const uint64_t v = fetch(reinterpret_cast<uint64_t>(w.block->params) + i.imm + k * i.size, i.ty, i.size);
    for (int l = 0; l < 32; ++l)
      if (m >> l & 1) put(w, i, k, l, v);
  }
}
void load_row(Warp& w, const Inst& i, uint32_t m) {
  for (int l = 0; l < 32; ++l)
    if (m >> l & 1) {
      if (i.wide_d) row<uint64_t>(w, i.v[0])[l] = row<uint64_t>(w, i.a)[l];
      else row<uint32_t>(w, i.v[0])[l] = row<uint32_t>(w, i.a)[l];
    }
}
void store_row(Warp& w, const Inst& i, uint32_t m) {
  for (int l = 0; l < 32; ++l)
    if (m >> l & 1) {
      if (i.wide_d) row<uint64_t>(w, i.a)[l] = row<uint64_t>(w, i.v[0])[l];
      else row<uint32_t>(w, i.a)[l] = row<uint32_t>(w, i.v[0])[l];
    }
}

// 8x8 matrices of 16-bit elements: lane 8k + r has the address of row r of matrix k.
void ldmatrix(Warp& w, const Inst& i, uint32_t m) {
  if (m != ~0u) fail(w, i, 0, "ldmatrix in a part of a warp");
  Space space;
  for (int k = 0; k < i.vec; ++k) {
    uint64_t at[8];
    for (int r = 0; r < 8; ++r) at[r] = resolve(w, i, 8 * k + r, address(w, i, 8 * k + r), 16, false, space);
    for (int l = 0; l < 32; ++l) {
      uint32_t v = 0;
      if (!i.flags) memcpy(&v, reinterpret_cast<void*>(at[l / 4] + (l % 4) * 4), 4);
      else
        for (int h = 0; h < 2; ++h) {
          uint16_t x;
          memcpy(&x, reinterpret_cast<void*>(at[(l % 4) * 2 + h] + (l / 4) * 2), 2);
          v |= uint32_t(x) << (16 * h);
        }
      row<uint32_t>(w, i.v[k])[l] = v;
    }
  }
}
void stmatrix(Warp& w, const Inst& i, uint32_t m) {
  if (m != ~0u) fail(w, i, 0, "stmatrix in a part of a warp");
  Space space;
  for (int k = 0; k < i.vec; ++k) {
    uint64_t at[8];
    for (int r = 0; r < 8; ++r) at[r] = resolve(w, i, 8 * k + r, address(w, i, 8 * k + r), 16, true, space);
    for (int l = 0; l < 32; ++l) {
      const uint32_t v = row<uint32_t>(w, i.v[k])[l];
      if (!i.flags) memcpy(reinterpret_cast<void*>(at[l / 4] + (l % 4) * 4), &v, 4);
      else
        for (int h = 0; h < 2; ++h) {
          const uint16_t x = uint16_t(v >> (16 * h));
          memcpy(reinterpret_cast<void*>(at[(l % 4) * 2 + h] + (l / 4) * 2), &x, 2);
        }
    }
  }
}
// Copies happen as late as they may: at the wait.
void cp_async(Warp& w, const Inst& i, uint32_t m) {
  for (int l = 0; l < 32; ++l) {
    if (!(m >> l & 1)) continue;
    const int n = i.c >= 0 ? int(row<uint32_t>(w, i.c)[l]) : i.mode;
    Copy c{
        &i,     l, w.pending_group, address(w, i, l), row<uint64_t>(w, i.b)[l] + static_cast<uint64_t>(int64_t(i.v[1])),
        i.mode, n};
    w.copies.push_back(c);
  }
}
void cp_commit(Warp& w, const Inst&, uint32_t) { ++w.pending_group; }
void cp_wait(Warp& w, const Inst& i, uint32_t) {
  // mode groups may remain
  std::vector<Copy> left;
  for (Copy& c : w.copies) {
    if (c.group >= w.pending_group - i.mode) {
      left.push_back(c);
      continue;
    }
    const Inst* inst = c.inst;
    uint64_t from = 0;
    if (c.bytes_read > 0) from = resolve_as(w, *inst, c.lane, c.from, c.bytes_read, false, GLOBAL);
    const uint64_t to = resolve_as(w, *inst, c.lane, c.to, c.bytes, true, SHARED);
    memset(reinterpret_cast<void*>(to), 0, c.bytes);
    if (c.bytes_read > 0) memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), c.bytes_read);
  }
  w.copies.swap(left);
}

}  // namespace ptx
