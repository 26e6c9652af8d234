// The functions for Python (ctypes) and for the host code of the CUDA backend. One call at a time runs; tensors that
// other threads allocate meanwhile wait.
#include <mutex>
#include <sstream>

#include "cuda/launch_hook.h"
#include "machine.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

using namespace ptx;

std::mutex one_at_a_time;
using Lock = std::lock_guard<std::mutex>;
std::map<std::string, Function*> kernels;
std::map<const void*, std::string> symbols;
thread_local std::string text;  // what a function gave last to this thread

// Null, or the message of what was thrown.
template <class F>
const char* message_of(F f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& e) {
    text = e.what();
    return text.c_str();
  }
}

Function* find(const char* kernel) {
  const auto it = kernels.find(kernel);
  return it == kernels.end() ? nullptr : it->second;
}

struct Dimensions {
  unsigned x, y, z;
};

void put_back(Instruction& i) {
  if (!i.left_out) return;
  i.left_out = false;
  i.control = Control::BARRIER;
  i.execute = nullptr;
}

}  // namespace

// Parses a module. Null, or an error.
API const char* ptx_load(const char* source, const char* name) {
  const Lock lock(one_at_a_time);
  return message_of([&] {
    for (auto& [symbol, f] : parse(source, name)->functions)
      if (f->entry) kernels[symbol] = f.get();
  });
}

// The bytes of each parameter; -1: no such kernel.
API int ptx_parameters(const char* kernel, int* sizes, int most) {
  const Lock lock(one_at_a_time);
  const Function* f = find(kernel);
  if (!f) return -1;
  int n = 0;
  for (const Parameter& p : f->parameters)
    if (n < most) sizes[n++] = p.size;
  return n;
}

API const char* ptx_launch(const char* kernel, Dimensions grid, Dimensions block, unsigned dynamic, void** arguments) {
  const Lock lock(one_at_a_time);
  return message_of([&] {
    Function* f = find(kernel);
    if (!f) throw std::runtime_error(std::string("no kernel ") + kernel);
    std::vector<uint64_t> memory(static_cast<size_t>(f->parameter_size) / 8 + 2);
    uint8_t* parameters = reinterpret_cast<uint8_t*>(memory.data());
    for (size_t k = 0; k < f->parameters.size(); ++k) {
      const Parameter& p = f->parameters[k];
      memcpy(parameters + p.offset, arguments[k], static_cast<size_t>(p.size));
    }
    const unsigned g[3] = {grid.x, grid.y, grid.z}, s[3] = {block.x, block.y, block.z};
    launch(*f, g, s, dynamic, parameters);
  });
}

// The kernel of a host function.
API void ptx_symbol(const void* address, const char* name) {
  const Lock lock(one_at_a_time);
  symbols[address] = name;
}

// The launch hook of the CUDA backend.
API const char* ptx_launch_hook(const udml::Launch* l) {
  std::string name;
  {
    const Lock lock(one_at_a_time);
    const auto it = symbols.find(l->kernel);
    if (it == symbols.end())
      return message_of([&] { throw std::runtime_error(std::string("no symbol of ") + l->name); });
    name = it->second;
  }
  return ptx_launch(name.c_str(), {l->grid_x, l->grid_y, l->grid_z}, {l->threads, 1, 1}, 0, l->arguments);
}

// Leaves out barrier k of a kernel, or puts it back. Gives its line in the PTX; 0: there is none.
API int ptx_barrier(const char* kernel, int k, int out) {
  const Lock lock(one_at_a_time);
  Function* f = find(kernel);
  if (!f) return 0;
  for (Instruction& i : f->code) {
    if (!i.left_out && i.control != Control::BARRIER) continue;
    if (k-- > 0) continue;
    if (!out) put_back(i);
    else {
      i.left_out = true;
      i.control = Control::NEXT;
      i.execute = [](Warp&, const Instruction&, uint32_t) {};
    }
    return i.line;
  }
  return 0;
}
API void ptx_restore() {
  const Lock lock(one_at_a_time);
  for (auto& [_, f] : kernels)
    for (Instruction& i : f->code) put_back(i);
}

// "PTX line, file, source line" of each instruction of a kernel that no warp has reached.
API const char* ptx_uncovered(const char* kernel) {
  const Lock lock(one_at_a_time);
  std::ostringstream s;
  if (const Function* f = find(kernel))
    for (size_t k = 0; k + 1 < f->code.size(); ++k)
      if (!f->hits[k]) s << f->code[k].line << " " << f->code[k].file << " " << f->code[k].source_line << "\n";
  text = s.str();
  return text.c_str();
}
// "name, instructions" of each kernel.
API const char* ptx_kernels() {
  const Lock lock(one_at_a_time);
  std::ostringstream s;
  for (const auto& [name, f] : kernels) s << name << " " << f->code.size() << "\n";
  text = s.str();
  return text.c_str();
}

// machine.py describes the options.
API void ptx_options(int races, int approximate, int statistics, int order) {
  const Lock lock(one_at_a_time);
  options.races = races != 0;
  options.approximate = static_cast<Approximate>(approximate);
  options.statistics = statistics;
  options.reverse_warps = order & 1;
  options.reverse_blocks = order & 2;
}
API void ptx_lenient(int on) {
  const Lock lock(one_at_a_time);
  options.lenient = on != 0;
}
API void ptx_replicated(int on) {
  const Lock lock(one_at_a_time);
  options.replicated = on != 0;
}
API void ptx_sample(unsigned n) {
  const Lock lock(one_at_a_time);
  options.sampled = n;
}

// The options as they are, in machine.py's order.
API void ptx_settings(int* values) {
  const Lock lock(one_at_a_time);
  const int now[] = {options.races,          static_cast<int>(options.approximate),
                     options.statistics,     options.reverse_warps,
                     options.reverse_blocks, options.lenient,
                     options.replicated,     static_cast<int>(options.sampled)};
  std::copy(std::begin(now), std::end(now), values);
}

// Memory that kernels may access.
API void ptx_track(uint64_t begin, uint64_t size) {
  const Lock lock(one_at_a_time);
  allocations[begin] = {begin, size, 0, {}, {}};
}
API void ptx_untrack(uint64_t begin) {
  const Lock lock(one_at_a_time);
  allocations.erase(begin);
}

API const char* ptx_statistics(int clear) {
  const Lock lock(one_at_a_time);
  text = statistics(kernels, clear != 0);
  return text.c_str();
}
