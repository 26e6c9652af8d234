// What has run, and what was odd about it, as JSON.
#include <sstream>

#include "machine.h"

namespace ptx {

Total total;

namespace {

std::map<std::string, std::vector<std::string>> findings;  // by kernel

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) out += c == '\t' ? ' ' : c == '"' || c == '\\' ? '\'' : c;
  return out + "\"";
}

void write(std::ostream& s, const Function& f) {
  const Counts& c = f.counts;
  const std::pair<const char*, uint64_t> values[] = {
      {"launches", c.launches},
      {"blocks", c.blocks},
      {"instructions", c.instructions},
      {"lanes", c.lanes},
      {"requests", c.requests},
      {"sectors", c.sectors},
      {"ideal", c.ideal},
      {"shared_requests", c.shared_requests},
      {"shared_waves", c.shared_waves},
      {"products", c.products},
      {"branches", c.branches},
      {"diverged", c.diverged},
      {"static", f.code.size()},
      {"covered", static_cast<uint64_t>(std::count_if(f.hits.begin(), f.hits.end(), [](uint64_t h) { return h > 0; }))},
  };
  const char* separator = "{";
  for (const auto& [name, value] : values) {
    s << separator << "\"" << name << "\": " << value;
    separator = ", ";
  }
  s << "}";
}

}  // namespace

void note(const std::string& kernel, const std::string& what) {
  constexpr size_t MOST = 20;
  auto& notes = findings[kernel];
  if (std::find(notes.begin(), notes.end(), what) == notes.end() && notes.size() < MOST) notes.push_back(what);
}

std::string statistics(const std::map<std::string, Function*>& kernels, bool clear) {
  std::ostringstream s;
  s << "{\"launches\": " << total.launches << ", \"instructions\": " << total.instructions
    << ", \"lanes\": " << total.lanes << ", \"seconds\": " << total.seconds << ", \"kernels\": {";
  const char* separator = "";
  for (const auto& [name, f] : kernels) {
    if (!f->counts.launches) continue;
    s << separator << quoted(name) << ": ";
    write(s, *f);
    separator = ", ";
    if (!clear) continue;
    f->counts = {};
    std::fill(f->hits.begin(), f->hits.end(), 0);
  }
  s << "}, \"findings\": {";
  separator = "";
  for (const auto& [name, notes] : findings) {
    s << separator << quoted(name) << ": [";
    for (size_t k = 0; k < notes.size(); ++k) s << (k ? ", " : "") << quoted(notes[k]);
    s << "]";
    separator = ", ";
  }
  s << "}}";
  if (clear) {
    total = {};
    findings.clear();
  }
  return s.str();
}

}  // namespace ptx
