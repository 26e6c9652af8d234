// Host code that checks the inputs of the weights and describes them to kernels (weighting.h).
#pragma once

#include "inputs.h"
#include "weighting.h"

namespace udml {

// Returns the stride with which the dimensions from `first` on can be traversed as one, if there is one.
inline std::optional<int64_t> common_stride(const Tensor& t, int64_t first) {
  int64_t stride = 0, size = 1;
  for (int64_t d = t.dim() - 1; d >= first; --d) {
    if (t.size(d) == 1) continue;
    if (size == 1) stride = t.stride(d);
    if (t.stride(d) != size * stride) return std::nullopt;
    size *= t.size(d);
  }
  return stride;
}

// Describes a tensor as Entries. It copies the tensor if necessary and keeps the copy until the launch.
template <class T>
class EntryInput {
 public:
  EntryInput() = default;
  explicit EntryInput(const std::optional<Tensor>& t) : tensor_(t) {
    if (!t) return;
    auto stride = common_stride(*tensor_, 2);
    if (!stride) {
      tensor_ = torch::stable::contiguous(*t);
      stride = common_stride(*tensor_, 2);
    }
    entries_.data = static_cast<const T*>(tensor_->const_data_ptr());
    if (t->dim() > 1) entries_.row_stride = tensor_->stride(0);
    entries_.stride = tensor_->stride(t->dim() > 1 ? 1 : 0);
    entries_.location_stride = stride.value_or(0);
  }
  const Entries<T>& entries() const { return entries_; }

 private:
  std::optional<Tensor> tensor_;
  Entries<T> entries_;
};

template <class C>
class WeightInputs {
 public:
  WeightInputs(const Tensor& uncertainty, const std::optional<Tensor>& dependency, const std::optional<Tensor>& present,
               int64_t g, double temperature, std::optional<double> total, std::optional<double> floor,
               std::optional<double> reference)
      : uncertainty_(uncertainty),
        dependency_(dependency),
        mask_(present),
        per_sample_(dependency && dependency->dim() == 2) {
    const int64_t rows = uncertainty.size(0), modalities = uncertainty.size(1), locations = row_size_of(uncertainty, 2);
    expect(modalities >= 1 && modalities <= MAX_MODALITIES, "uncertainty: expected 1 to 16 modalities");
    expect(uncertainty.scalar_type() == scalar_type_of<C>, "uncertainty: expected the arithmetic dtype");
    if (dependency) check_dependency(*dependency, rows, modalities);
    if (present) check_mask(*present, rows, modalities, locations);
    unsigned log2_lanes = 0;
    while (1 << log2_lanes < modalities + reference.has_value()) ++log2_lanes;
    const Scaled<double> zero{0, LOWEST_EXPONENT},
        r = split<double>(reference.value_or(1)),
        floor_squared = square_plus<double>(split<double>(floor.value_or(0)), zero);
    weighting_ = {uncertainty_.entries(),
                  dependency_.entries(),
                  mask_.entries(),
                  rows,
                  locations,
                  static_cast<int>(modalities),
                  log2_lanes,
                  g == 1,
                  temperature != 1,
                  total.has_value(),
                  floor.has_value(),
                  reference.has_value(),
                  inverse_of(split<double>(temperature)),
                  static_cast<C>(total.value_or(0)),
                  rounded(floor_squared),
                  rounded(floor ? square_plus<double>(r, floor_squared) : r)};
  }

  const Weighting<C>& weighting() const { return weighting_; }
  bool per_location() const { return weighting_.locations != 1; }
  // Whether every sample has its own dependency.
  bool per_sample() const { return per_sample_; }

 private:
  static Scaled<C> rounded(const Scaled<double>& x) { return {static_cast<C>(x.mantissa), static_cast<C>(x.exponent)}; }
  static Scaled<C> inverse_of(const Scaled<double>& x) { return rounded({1 / x.mantissa, -x.exponent}); }
  static void check_dependency(const Tensor& t, int64_t rows, int64_t modalities) {
    expect(t.dim() >= 1 && t.dim() <= 2 && t.size(t.dim() - 1) == modalities && (t.dim() == 1 || t.size(0) == rows),
           "dependency: expected (M,) or (B, M)");
    expect(t.scalar_type() == scalar_type_of<C>, "dependency: expected the arithmetic dtype");
  }
  static void check_mask(const Tensor& t, int64_t rows, int64_t modalities, int64_t locations) {
    expect(t.dim() >= 2 && t.size(0) == rows && t.size(1) == modalities &&
               (t.dim() == 2 || row_size_of(t, 2) == locations),
           "mask: expected (B, M) or uncertainty's shape");
    expect(t.scalar_type() == ScalarType::Bool, "mask: expected a bool tensor");
  }

  EntryInput<C> uncertainty_, dependency_;
  EntryInput<uint8_t> mask_;
  bool per_sample_;
  Weighting<C> weighting_;
};

}  // namespace udml
