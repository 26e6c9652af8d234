// Execution: groups of lanes of a warp by their program counters, the lowest first; warps of a block from barrier to
// barrier.
#include <algorithm>
#include <time.h>
#include <numeric>
#include <sstream>

#include "ptx.h"

namespace ptx {

Options options;
uint64_t launch_number = 0;
struct Total {
  uint64_t launches = 0, instructions = 0, lanes = 0;
  double seconds = 0;
} total;
static std::map<std::string, std::vector<std::string>> findings;  // kernel -> what is odd, but no error

static void call(Warp& w, const Inst& i, uint32_t m) {
  Function& g = *i.callee;
  Warp c;
  c.f = &g;
  c.block = w.block;
  c.live = m;
  c.first = w.first;
  c.memory.resize(g.frame_size + 64);
  c.R = reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(c.memory.data()) + 63) / 64 * 64);
  memcpy(c.R, g.frame.data(), g.frame_size);
  for (int k = 0; k < 16; ++k) memcpy(c.R + g.special[k], w.R + w.f->special[k], 128);
  for (size_t p = 0; p < g.params.size(); ++p)
    memcpy(c.R + g.params[p].row, w.R + i.v[p], g.params[p].size == 8 ? 256 : 128);
  c.groups.push_back({0, m, 0});
  if (!run(c)) fail(w, i, 0, "a barrier in a function");
  if (i.d >= 0) {
    if (g.result.size == 8) {
      for (int l = 0; l < 32; ++l)
        if (m >> l & 1) row<uint64_t>(w, i.d)[l] = row<uint64_t>(c, g.result.row)[l];
    } else
      for (int l = 0; l < 32; ++l)
        if (m >> l & 1) row<uint32_t>(w, i.d)[l] = row<uint32_t>(c, g.result.row)[l];
  }
}

bool run(Warp& w) {
  Function& f = *w.f;
  const Inst* code = f.code.data();
  auto& groups = w.groups;
  uint64_t instructions = 0, lanes = 0;
  struct Count {
    Function& f;
    uint64_t &n, &l;
    ~Count() {
      f.instructions += n;
      f.lanes += l;
      total.instructions += n;
      total.lanes += l;
    }
  } counted{f, instructions, lanes};
  for (;;) {
    // Groups at one place are one group; the first that can run does.
    if (groups.empty()) return true;
    if (groups.size() > 1) {
      std::sort(groups.begin(), groups.end(),
                [](const Group& a, const Group& b) { return a.pc != b.pc ? a.pc < b.pc : a.blocked < b.blocked; });
      size_t n = 0;
      for (size_t k = 1; k < groups.size(); ++k) {
        Group &a = groups[n], &b = groups[k];
        if (a.pc == b.pc && a.blocked != 2 && b.blocked != 2) {
          a.mask |= b.mask;
          a.blocked = 0;
        } else if (a.pc == b.pc && a.blocked == 2 && b.blocked == 2) a.mask |= b.mask;
        else groups[++n] = b;
      }
      groups.resize(n + 1);
    }
    size_t g = 0;
    while (g < groups.size() && groups[g].blocked) ++g;
    if (g == groups.size()) {
      for (Group& x : groups)
        if (x.blocked == 1) {
          const Inst& i = code[x.pc];
          std::ostringstream s;
          s << std::hex << "lanes " << x.mask << " wait for others of "
            << row<uint32_t>(w, i.target)[__builtin_ctz(x.mask)] << ", which never come";
          fail(w, i, __builtin_ctz(x.mask), s.str());
        }
      return false;
    }
    int pc = groups[g].pc;
    uint32_t mask = groups[g].mask;
    groups.erase(groups.begin() + g);
    int limit = INT32_MAX;
    for (const Group& x : groups)
      if (x.blocked != 2) limit = std::min(limit, x.pc);
    // A group behind a blocked one goes on until it meets another.
    if (limit < pc) {
      limit = INT32_MAX;
      for (const Group& x : groups)
        if (x.blocked != 2 && x.pc > pc) limit = std::min(limit, x.pc);
    }
    std::vector<int> blocked_at;
    for (const Group& x : groups)
      if (x.blocked == 1 && x.pc < pc) blocked_at.push_back(x.pc);
    for (;;) {
      const Inst& i = code[pc];
      ++instructions;
      lanes += __builtin_popcount(mask);
      if (options.stats > 1) ++f.hits[pc];
      uint32_t m = mask;
      if (i.guard >= 0) {
        const uint32_t p = *row<uint32_t>(w, i.guard);
        m &= i.negated ? ~p : p;
      }
      bool leave = false;
      switch (i.ctl) {
        case PLAIN:
          if (m) i.fn(w, i, m);
          ++pc;
          break;
        case BRA: {
          ++f.branches;
          if (m == mask) pc = i.target;
          else if (m == 0) ++pc;
          else {
            ++f.diverged;
            const int here = std::min(pc + 1, i.target), there = std::max(pc + 1, i.target);
            const uint32_t first = pc + 1 < i.target ? mask & ~m : m;
            if (here == there) {
              pc = here;
              break;
            }
            groups.push_back({there, mask & ~first, 0});
            mask = first;
            pc = here;
            if (there < limit) limit = there;
          }
          break;
        }
        case SYNC: {
          if (m == 0) {
            ++pc;
            break;
          }
          if (m != mask) {  // guarded: the others go on
            groups.push_back({pc, m, 0});
            mask &= ~m;
            ++pc;
            leave = true;
            break;
          }
          const uint32_t members = row<uint32_t>(w, i.target)[__builtin_ctz(m)] & w.live;
          if (members & ~m) {
            groups.push_back({pc, m, 1});
            mask = 0;
            leave = true;
            break;
          }
          i.fn(w, i, m);
          ++pc;
          break;
        }
        case CALL:
          if (m) call(w, i, m);
          ++pc;
          break;
        case RET:
          w.live &= ~m;
          mask &= ~m;
          ++pc;
          if (mask == 0) leave = true;
          break;
        case BAR:
          if (m) groups.push_back({pc + 1, m, 2});
          mask &= ~m;
          ++pc;
          if (mask == 0) leave = true;
          break;
        case TRAP:
          if (m) fail(w, i, __builtin_ctz(m), "trap");
          ++pc;
          break;
      }
      if (leave || pc >= limit) break;
      if (!blocked_at.empty() && std::find(blocked_at.begin(), blocked_at.end(), pc) != blocked_at.end()) break;
      if (!groups.empty() && i.ctl == BRA && pc < limit) {
        // A jump back: others may be lower now, or between.
        limit = INT32_MAX;
        for (const Group& x : groups)
          if (x.blocked != 2 && x.pc >= pc) limit = std::min(limit, x.pc);
        bool lower = false;
        for (const Group& x : groups)
          if (x.blocked == 0 && x.pc < pc) lower = true;
        if (lower || pc >= limit) break;
      }
    }
    if (mask) groups.push_back({pc, mask, 0});
  }
}

static double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}
void note(const std::string& kernel, const std::string& what) {
  auto& v = findings[kernel];
  if (std::find(v.begin(), v.end(), what) == v.end() && v.size() < 20) v.push_back(what);
}

static void run_block(Block& b) {
  Function& f = *b.f;
  const unsigned threads = b.size[0] * b.size[1] * b.size[2];
  const size_t n = (threads + 31) / 32;
  if (b.warps.size() != n) b.warps.resize(n);
  for (size_t k = 0; k < n; ++k) {
    Warp& w = b.warps[k];
    w.f = &f;
    w.block = &b;
    w.first = static_cast<uint32_t>(32 * k);
    w.copies.clear();
    w.pending_group = 0;
    w.syncs = 0;
    if (w.memory.empty()) {
      w.memory.resize(f.frame_size + 64);
      w.R = reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(w.memory.data()) + 63) / 64 * 64);
      memcpy(w.R, f.frame.data(), f.frame_size);
      if (f.local_size) w.local.assign(static_cast<size_t>(f.local_size + 15) / 16 * 16 * 32, 0xff);
    }
    const unsigned count = std::min(32u, threads - w.first);
    w.live = count == 32 ? ~0u : (1u << count) - 1;
    for (unsigned l = 0; l < 32; ++l) {
      const unsigned t = w.first + l;
      const unsigned values[16] = {t % b.size[0],
                                   t / b.size[0] % b.size[1],
                                   t / b.size[0] / b.size[1],
                                   b.size[0],
                                   b.size[1],
                                   b.size[2],
                                   b.index[0],
                                   b.index[1],
                                   b.index[2],
                                   b.grid[0],
                                   b.grid[1],
                                   b.grid[2],
                                   l,
                                   static_cast<unsigned>(k),
                                   (1u << l) - 1,
                                   1u << l};
      for (int q = 0; q < 16; ++q) row<uint32_t>(w, f.special[q])[l] = values[q];
      row<uint64_t>(w, f.local_row)[l] =
          reinterpret_cast<uint64_t>(w.local.data()) + l * ((f.local_size + 15) / 16 * 16);
    }
    w.groups.assign(1, {0, w.live, 0});
  }
  b.epoch = 1;
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (options.order & 1) std::reverse(order.begin(), order.end());
  std::vector<bool> done(n, false);
  for (;;) {
    size_t finished = 0, waiting = 0;
    for (size_t k : order) {
      if (!done[k]) {
        done[k] = run(b.warps[k]);
      }
      if (done[k]) ++finished;
      else ++waiting;
    }
    if (!waiting) return;
    // A barrier for all that live: every group waits.
    std::vector<int> places;
    for (Warp& w : b.warps) {
      if (w.groups.size() > 1) {
        std::ostringstream s;
        s << "lanes of a warp wait at different barriers, PTX lines " << f.code[w.groups[0].pc - 1].line << " and "
          << f.code[w.groups[1].pc - 1].line;
        note(f.name, s.str());
      }
      for (Group& x : w.groups) {
        places.push_back(x.pc);
        x.blocked = 0;
      }
    }
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    if (places.size() > 1) note(f.name, "warps wait at different barriers");
    if (finished) note(f.name, "some warps have ended where others wait at a barrier");
    ++b.epoch;
  }
}

static uint32_t sampled = 0;  // of each end of a grid, so many blocks alone
static void launch(Function& f, const unsigned* grid, const unsigned* size, unsigned dynamic, const uint8_t* params) {
  const double begin = cpu_seconds();
  ++launch_number;
  ++f.launches;
  ++total.launches;
  for (const Inst& i : f.code) i.seen = nullptr;
  Block b;
  b.f = &f;
  b.params = params;
  for (int k = 0; k < 3; ++k) {
    b.grid[k] = grid[k];
    b.size[k] = size[k];
  }
  b.shared.assign(f.shared_static + dynamic, 0xff);
  b.shadow.assign(b.shared.size() / f.granule_shared + 2, {});
  const uint32_t blocks = grid[0] * grid[1] * grid[2];
  f.blocks += blocks;
  struct Time {
    double begin;
    ~Time() { total.seconds += cpu_seconds() - begin; }
  } time{begin};
  for (uint32_t k = 0; k < blocks; ++k) {
    if (sampled && k >= sampled && k + sampled < blocks) {
      k = blocks - sampled - 1;
      continue;
    }
    b.serial = options.order & 2 ? blocks - 1 - k : k;
    b.index[0] = b.serial % grid[0];
    b.index[1] = b.serial / grid[0] % grid[1];
    b.index[2] = b.serial / grid[0] / grid[1];
    if (f.shared_static + dynamic) memset(b.shared.data(), 0xff, b.shared.size());
    run_block(b);
  }
}

}  // namespace ptx

// ---- For Python (ctypes) and for the host code of the CUDA column.
using namespace ptx;
static std::map<std::string, Function*> kernels;
static std::map<const void*, std::string> symbols;
static std::string error_text, text;
#define API extern "C" __attribute__((visibility("default")))
struct Dim {
  unsigned x, y, z;
};

API const char* ptx_load(const char* source, const char* name) {
  try {
    Module* m = parse(source, name);
    for (auto& [n, f] : m->functions)
      if (f->entry) kernels[n] = f.get();
    return nullptr;
  } catch (const std::exception& e) {
    error_text = e.what();
    return error_text.c_str();
  }
}
API int ptx_parameters(const char* kernel, int* sizes, int most) {
  auto it = kernels.find(kernel);
  if (it == kernels.end()) return -1;
  int n = 0;
  for (const Param& p : it->second->params)
    if (n < most) sizes[n++] = p.size;
  return n;
}
API const char* ptx_launch(const char* kernel, Dim grid, Dim block, unsigned dynamic, void** arguments) {
  try {
    auto it = kernels.find(kernel);
    if (it == kernels.end()) throw std::runtime_error(std::string("no kernel ") + kernel);
    Function& f = *it->second;
    std::vector<uint64_t> memory(f.param_size / 8 + 2);
    uint8_t* params = reinterpret_cast<uint8_t*>(memory.data());
    for (size_t k = 0; k < f.params.size(); ++k) memcpy(params + f.params[k].offset, arguments[k], f.params[k].size);
    const unsigned g[3] = {grid.x, grid.y, grid.z}, s[3] = {block.x, block.y, block.z};
    launch(f, g, s, dynamic, params);
    return nullptr;
  } catch (const std::exception& e) {
    error_text = e.what();
    return error_text.c_str();
  }
}
API void ptx_sample(unsigned n) { sampled = n; }
API void ptx_symbol(const void* address, const char* name) { symbols[address] = name; }
// `struct Launch` of csrc/cuda/launch.h.
struct Launch {
  const char* name;
  const void* kernel;
  int64_t across, groups;
  unsigned grid_x, grid_y, threads;
  void** arguments;
};
// The launch hook of the CUDA backend.
API const char* ptx_launch_hook(const Launch* l) {
  auto it = symbols.find(l->kernel);
  if (it == symbols.end()) {
    error_text = std::string("no symbol for ") + l->name;
    return error_text.c_str();
  }
  return ptx_launch(it->second.c_str(), Dim{l->grid_x, l->grid_y, 1}, Dim{l->threads, 1, 1}, 0, l->arguments);
}
// Mutations: barrier k of a kernel left out, or put back. Gives the PTX line; 0 where there is none.
API int ptx_barrier(const char* kernel, int k, int out) {
  for (Inst& i : kernels.at(kernel)->code)
    if (i.flags == 77 || i.ctl == BAR) {
      if (k-- > 0) continue;
      if (out) {
        i.flags = 77;
        i.ctl = PLAIN;
        i.fn = [](Warp&, const Inst&, uint32_t) {};
      } else {
        i.flags = 0;
        i.ctl = BAR;
      }
      return i.line;
    }
  return 0;
}
API void ptx_restore() {
  for (auto& [n, f] : kernels)
    for (Inst& i : f->code)
      if (i.flags == 77) {
        i.flags = 0;
        i.ctl = BAR;
        i.fn = nullptr;
      }
}
// PTX lines of a kernel that no warp has reached.
API const char* ptx_uncovered(const char* kernel) {
  std::ostringstream s;
  const Function& f = *kernels.at(kernel);
  for (size_t k = 0; k + 1 < f.code.size(); ++k)
    if (!f.hits[k]) s << f.code[k].line << " " << f.code[k].file << " " << f.code[k].source_line << "\n";
  text = s.str();
  return text.c_str();
}
API const char* ptx_kernels() {
  std::ostringstream s;
  for (auto& [n, f] : kernels) s << n << " " << f->code.size() << "\n";
  text = s.str();
  return text.c_str();
}
API void ptx_replicated(int on) { options.replicated = on; }
API void ptx_lenient(int on) { options.lenient = on; }
API void ptx_options(int races, int approx, int stats, int order) {
  options.races = races;
  options.approx = approx;
  options.stats = stats;
  options.order = order;
}
API void ptx_track(uint64_t begin, uint64_t size) { allocations[begin] = {begin, size, 0, {}}; }
API void ptx_untrack(uint64_t begin) { allocations.erase(begin); }
static std::string quoted(const std::string& x) {
  std::string r;
  for (char c : x)
    if (c == '\t') r += ' ';
    else if (c == '"' || c == '\\') r += '\'';
    else r += c;
  return r;
}
API const char* ptx_statistics(int clear) {
  std::ostringstream s;
  s << "{\"launches\": " << total.launches << ", \"instructions\": " << total.instructions
    << ", \"lanes\": " << total.lanes << ", \"seconds\": " << total.seconds << ", \"kernels\": {";
  const char* comma = "";
  for (auto& [n, f] : kernels) {
    if (!f->launches) continue;
    s << comma << "\"" << n << "\": {\"launches\": " << f->launches << ", \"blocks\": " << f->blocks
      << ", \"instructions\": " << f->instructions << ", \"lanes\": " << f->lanes << ", \"requests\": " << f->requests
      << ", \"sectors\": " << f->sectors << ", \"ideal\": " << f->ideal
      << ", \"shared_requests\": " << f->shared_requests << ", \"shared_waves\": " << f->shared_waves
      << ", \"branches\": " << f->branches << ", \"diverged\": " << f->diverged << ", \"static\": " << f->code.size()
      << ", \"covered\": " << std::count_if(f->hits.begin(), f->hits.end(), [](uint64_t h) { return h > 0; }) << "}";
    comma = ", ";
    if (clear) {
      f->launches = f->blocks = f->instructions = f->lanes = f->requests = f->sectors = f->ideal = f->shared_requests =
          f->shared_waves = f->branches = f->diverged = 0;
      std::fill(f->hits.begin(), f->hits.end(), 0);
    }
  }
  s << "}, \"findings\": {";
  comma = "";
  for (auto& [n, v] : findings) {
    s << comma << "\"" << n << "\": [";
    for (size_t k = 0; k < v.size(); ++k) s << (k ? ", " : "") << "\"" << quoted(v[k]) << "\"";
    s << "]";
    comma = ", ";
  }
  s << "}}";
  if (clear) total = {};
  text = s.str();
  return text.c_str();
}
