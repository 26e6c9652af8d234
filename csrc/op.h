// The types that ops take and return, and the registration that ends each kernel's file. udml_kernels/ops/<op>.py
// documents the arguments.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

namespace udml {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

}  // namespace udml

#if defined(__CUDACC__)
#define UDML_DISPATCH_KEY CUDA
#define UDML_OVERLOAD ".cuda"
#else
#define UDML_DISPATCH_KEY CPU
#define UDML_OVERLOAD ".cpu"
#endif

// Binds a function to the op of its name, whose schema udml_kernels/ops/ defines.
#define UDML_REGISTER(op) \
  STABLE_TORCH_LIBRARY_IMPL(udml_kernels, UDML_DISPATCH_KEY, m) { m.impl(#op UDML_OVERLOAD, TORCH_BOX(&udml::op)); }
