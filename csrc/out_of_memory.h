// Where the memory ends. Of a failed allocation the stable ABI tells which call it was, not that memory was lacking or
// how much of it.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace udml {

// Python gets a MemoryError, as for every std::bad_alloc. It reads what it says: udml_kernels/errors.py.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(const std::string& what) : what_(what) {}
  const char* what() const noexcept override { return what_.what(); }

 private:
  // A string that can be copied without memory.
  std::runtime_error what_;
};

inline double item_bytes(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Double:
    case ScalarType::Long: return 8;
    case ScalarType::BFloat16:
    case ScalarType::Half: return 2;
    case ScalarType::Byte:
    case ScalarType::Bool: return 1;
    default: return 4;
  }
}

// Such as "4096.0 MiB for a tensor of shape (1024, 1048576)".
inline std::string in_words(const std::vector<int64_t>& shape, torch::headeronly::ScalarType dtype) {
  double bytes = item_bytes(dtype);
  std::string sizes;
  for (const int64_t size : shape) {
    bytes *= static_cast<double>(size);
    sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  }
  const std::string mebibytes = std::to_string(bytes / (1 << 20));
  return mebibytes.substr(0, mebibytes.find('.') + 2) + " MiB for a tensor of shape (" + sizes + ")";
}

}  // namespace udml
