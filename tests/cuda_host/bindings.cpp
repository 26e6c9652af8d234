// The module: with the kernels of csrc/cuda, which register themselves as it loads, or with faults.cu.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "faults.h"
#include "scheduler.h"

#if !defined(UDML_HOST_FAULTS)
#include <pybind11/numpy.h>

#include "../../csrc/cuda/lanes.h"

namespace {

using Words = pybind11::array_t<uint32_t, pybind11::array::c_style>;
using Numbers = pybind11::array_t<float>;

// What the kernels make of pairs of words.
std::pair<Numbers, Numbers> normal_pairs(const Words& radius, const Words& angle) {
  Numbers first(radius.size()), second(radius.size());
  for (pybind11::ssize_t i = 0; i < radius.size(); ++i)
    udml::normal_pair(radius.data()[i], angle.data()[i], first.mutable_data()[i], second.mutable_data()[i]);
  return {first, second};
}

}  // namespace
#endif

PYBIND11_MODULE(UDML_MODULE, m) {
  m.def("switches", &udml_host::switches, "Context switches so far.");
  m.def("launches", [] {
    pybind11::dict counts;
    for (const auto& [name, count] : udml_host::launches()) counts[pybind11::str(name)] = count;
    return counts;
  }, "How often each kernel was launched since the last clear_launches().");
  m.def("clear_launches", &udml_host::clear_launches);
  m.def("set_order", &udml_host::set_order, "Threads and blocks run in another order for each of 0 to 5.");
#if !defined(UDML_HOST_FAULTS)
  m.def("normal_pairs", &normal_pairs);
#else
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  pybind11::list names;
  for (const udml_host::Case& one : udml_host::cases()) {
    m.def(one.name, one.run, Unlocked());
    names.append(one.name);
  }
  m.attr("cases") = names;
  m.def("block_sums", &udml_host::block_sums, Unlocked());
  m.def("indices", &udml_host::indices, Unlocked());
  m.def("shuffles", &udml_host::shuffles, Unlocked());
  m.def("votes", &udml_host::votes, Unlocked());
  m.def("atomics", &udml_host::atomics, Unlocked());
  m.def("found_in_shared", &udml_host::found_in_shared, Unlocked());
  m.def("narrowed", &udml_host::narrowed, Unlocked(), "Bits of each number in half precision (else bfloat16).");
  m.def("widened", &udml_host::widened, Unlocked(), "The same the other way.");
  m.def("seen_first", &udml_host::seen_first, Unlocked(), "Thread numbers in the order in which they ran.");
  m.def("switch_often", &udml_host::switch_often, Unlocked());
#endif
}
