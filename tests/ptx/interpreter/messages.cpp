// Where something happened, for messages.
#include <sstream>

#include "machine.h"

namespace ptx {

std::string thread_name(const Block& b, int thread) {
  const int x = static_cast<int>(b.size[0]), y = static_cast<int>(b.size[1]);
  std::ostringstream s;
  s << "thread (" << thread % x << "," << thread / x % y << "," << thread / x / y << ")";
  return s.str();
}

std::string block_name(const Block& b, uint32_t number) {
  std::ostringstream s;
  s << "block (" << number % b.grid[0] << "," << number / b.grid[0] % b.grid[1] << "," << number / b.grid[0] / b.grid[1]
    << ")";
  return s.str();
}

// The line of PTX, its text, the line of the source.
std::string place(const Function& f, const Instruction& i) {
  std::ostringstream s;
  s << f.module << ":" << i.line;
  if (i.line > 0 && i.line <= static_cast<int>(f.lines->size())) {
    const std::string& line = (*f.lines)[static_cast<size_t>(i.line - 1)];
    s << " `" << line.substr(std::min(line.find_first_not_of(" \t"), line.size())) << "`";
  }
  const auto it = f.files->find(i.file);
  if (it != f.files->end()) s << " (" << it->second << ":" << i.source_line << ")";
  return s.str();
}

void fail(const Warp& w, const Instruction& i, int lane, const std::string& what) {
  const Block& b = *w.block;
  std::ostringstream s;
  s << what << "; in " << w.f->name << ", " << block_name(b, b.number) << " "
    << thread_name(b, static_cast<int>(w.first) + lane) << ", at " << place(*w.f, i);
  throw std::runtime_error(s.str());
}

}  // namespace ptx
