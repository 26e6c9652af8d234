// Of a launch: its indices, the order in which it runs, its name in the tally.
#include <cstdarg>
#include <map>
#include <numeric>

#include "warp.h"

namespace udml_host {

namespace {

std::map<std::string, int64_t> tally;
unsigned order_offset;

unsigned hash(const char* name) {
  unsigned h = 2166136261u;
  for (; *name != 0; ++name) h = (h ^ static_cast<unsigned char>(*name)) * 16777619u;
  return h;
}

// Ascending, descending, or in strides that visit every thread once.
std::vector<uint16_t> make_order(unsigned threads, unsigned kind) {
  std::vector<uint16_t> order(threads);
  unsigned stride = threads * 5 / 8 + 1;
  while (std::gcd(stride, threads) != 1) ++stride;
  for (unsigned i = 0; i < threads; ++i)
    order[i] = static_cast<uint16_t>(kind == 0 ? i : kind == 1 ? threads - 1 - i : i * stride % threads);
  return order;
}

}  // namespace

std::string text(const char* format, ...) {
  char buffer[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

std::string index_text(uint3 i) { return text("(%u,%u,%u)", i.x, i.y, i.z); }

uint3 thread_index(unsigned id) {
  const dim3& size = launch_state.block;
  return {id % size.x, id / size.x % size.y, id / size.x / size.y};
}

uint3 block_index(uint32_t serial) {
  const dim3& size = launch_state.grid;
  const uint32_t blocks = size.x * size.y * size.z, i = serial - launch_state.first;
  // As it happens with threads, so with blocks: nothing says which comes first.
  const uint32_t id = (hash(launch_state.name) + order_offset) & 1u ? blocks - 1 - i : i;
  return {id % size.x, id / size.x % size.y, id / size.x / size.y};
}

const std::vector<uint16_t>& order_of(uint64_t i) {
  static std::vector<uint16_t> orders[3];
  if (orders[0].size() != launch_state.threads)
    for (unsigned kind = 0; kind < 3; ++kind) orders[kind] = make_order(launch_state.threads, kind);
  return orders[(hash(launch_state.name) / 2 + order_offset + i) % 3];
}

void set_order(unsigned offset) { order_offset = offset; }

void count_launch(const char* name) { ++tally[name]; }
std::vector<std::pair<std::string, int64_t>> launches() { return {tally.begin(), tally.end()}; }
void clear_launches() { tally.clear(); }

}  // namespace udml_host
