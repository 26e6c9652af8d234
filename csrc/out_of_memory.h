// The out-of-memory error. For a failed allocation the stable ABI only names the call that failed, not the reason or
// the size.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace udml {

// PyTorch translates it to a MemoryError, as it does every std::bad_alloc. udml_kernels/errors.py parses the message.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(const std::string& what) : what_(what) {}
  const char* what() const noexcept override { return what_.what(); }

 private:
  // std::runtime_error copies its message without allocating memory.
  std::runtime_error what_;
};

inline double bytes_per_element(torch::headeronly::ScalarType dtype) {
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

// Returns a text such as "4096.0 MiB for a tensor of shape (1024, 1048576)".
inline std::string describe_allocation(const std::vector<int64_t>& shape, torch::headeronly::ScalarType dtype) {
  double bytes = bytes_per_element(dtype);
  std::string sizes;
  for (const int64_t size : shape) {
    bytes *= static_cast<double>(size);
    sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  }
  const std::string mebibytes = std::to_string(bytes / (1 << 20));
  return mebibytes.substr(0, mebibytes.find('.') + 2) + " MiB for a tensor of shape (" + sizes + ")";
}

}  // namespace udml
