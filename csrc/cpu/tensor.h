// Access to tensors row by row. A Reader returns any run of a row as contiguous numbers of the arithmetic type, for any
// strides and dtype; a Writer stores such runs. If the storage already has this layout, both use plain pointers, so
// each kernel is written once and no tensor is copied.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../arguments.h"
#include "../out_of_memory.h"
#include "convert.h"
#include "loops.h"

namespace udml {

inline constexpr int64_t MAX_MODALITIES = 16;

// The number of elements that a kernel processes at a time. A few buffers of this size fit the L1 cache.
inline constexpr int64_t TILE = 1024;

// Divides a row into work items of `EACH` tiles. The division depends on the row size alone.
struct TiledRow {
  static constexpr int64_t EACH = 16;
  int64_t size, count;

  explicit TiledRow(int64_t size) : size(size), count((size + EACH * TILE - 1) / (EACH * TILE)) {}

  int64_t cost() const { return std::min(size, EACH * TILE); }

  // Calls body(begin, n) for every tile of an item.
  template <class Body>
  void for_each_tile(int64_t item, const Body& body) const {
    const int64_t end = std::min(size, (item + 1) * EACH * TILE);
    for (int64_t begin = item * EACH * TILE; begin < end; begin += TILE) body(begin, std::min(TILE, end - begin));
  }
};

// For blocks above 32 MB, glibc's malloc creates a new mapping each time. Its page faults while the kernel writes cost
// more than the arithmetic; huge pages fault 512 times less often. Smaller blocks mostly reuse heap pages, where huge
// pages do not help (measured: benchmarks/NOTES.md).
inline void prefer_huge_pages(const Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t HUGE = 2 << 20, MAPPED = 32 << 20;
  const uintptr_t size = static_cast<uintptr_t>(t.numel()) * t.element_size();
  // malloc adds a header and alignment, so it also maps blocks slightly below 32 MB.
  if (size + 4096 <= MAPPED) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t begin = (data + HUGE - 1) / HUGE * HUGE, end = (data + size) / HUGE * HUGE;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)t;
#endif
}

inline Tensor allocate(const std::vector<int64_t>& shape, ScalarType dtype) {
  try {
    Tensor t = torch::stable::empty({shape.data(), shape.size()}, dtype);
    prefer_huge_pages(t);
    return t;
  } catch (const std::runtime_error&) {
    throw OutOfMemory("out of memory: could not allocate " + describe_allocation(shape, dtype));
  }
}

inline Tensor allocate_like(const Tensor& t) { return allocate(shape_of(t), t.scalar_type()); }

// A backward kernel returns this for a gradient that is not requested.
inline Tensor empty_gradient(ScalarType dtype) { return allocate({0}, dtype); }

template <class C>
class Reader {
 public:
  Reader() = default;

  // Dimensions from `first` on belong to the row; 1 makes each sample a row.
  explicit Reader(const Tensor& t, int64_t first = 1)
      : data_(static_cast<const char*>(t.const_data_ptr())),
        dtype_(t.scalar_type() == ScalarType::Bool ? ScalarType::Byte : t.scalar_type()),
        item_(static_cast<int64_t>(t.element_size())) {
    const auto shape = shape_of(t);
    for (int64_t d = 0; d < std::min<int64_t>(first, t.dim()); ++d) append(outer_, shape[d], t.stride(d));
    for (int64_t d = first; d < t.dim(); ++d) append(inner_, shape[d], t.stride(d));
    contiguous_ = inner_.empty() || (inner_.size() == 1 && inner_[0].stride == 1);
    direct_ = contiguous_ && dtype_ == scalar_type_of<C>;
  }

  // Reads a dense tensor in the order of its storage, as rows of `size` elements.
  static Reader in_storage_order(const Tensor& t, int64_t size) {
    Reader reader;
    reader.data_ = static_cast<const char*>(t.const_data_ptr());
    reader.dtype_ = t.scalar_type();
    reader.item_ = static_cast<int64_t>(t.element_size());
    reader.outer_ = {{t.numel() / size, size}};
    reader.inner_ = {{size, 1}};
    reader.direct_ = reader.dtype_ == scalar_type_of<C>;
    return reader;
  }

  // Reads a contiguous tensor of any dtype as rows of `size` numbers of type C, for kernels that only copy bits.
  static Reader of_bits(const Tensor& t, int64_t size) {
    Reader reader;
    reader.data_ = static_cast<const char*>(t.const_data_ptr());
    reader.outer_ = {{t.size(0), size}};
    reader.inner_ = {{size, 1}};
    reader.direct_ = true;
    return reader;
  }

  explicit operator bool() const { return data_ != nullptr; }

  // Returns elements [begin, begin + n) of a row, n <= TILE. `buffer` has room for TILE numbers; the result may point
  // into it.
  const C* run(int64_t row, int64_t begin, int64_t n, C* buffer) const {
    const char* base = data_ + offset(outer_, row) * item_;
    if (direct_) return reinterpret_cast<const C*>(base) + begin;
    if (contiguous_) {
      convert_run(base + begin * item_, dtype_, buffer, n);
      return buffer;
    }
    gather(base, begin, n, buffer);
    return buffer;
  }

  // Returns the whole row if the storage holds it contiguously in the arithmetic type, else null.
  const C* direct(int64_t row) const {
    return direct_ ? reinterpret_cast<const C*>(data_ + offset(outer_, row) * item_) : nullptr;
  }

  C at(int64_t row, int64_t element) const {
    if (direct_) return *(reinterpret_cast<const C*>(data_) + offset(outer_, row) + element);
    return value_at(data_ + (offset(outer_, row) + offset(inner_, element)) * item_);
  }

 private:
  static int64_t offset(const Dims& dims, int64_t index) {
    if (dims.size() == 1) return index * dims[0].stride;
    if (dims.empty()) return 0;
    int64_t result = 0;
    for (size_t d = dims.size(); d-- > 0;) {
      result += index % dims[d].size * dims[d].stride;
      index /= dims[d].size;
    }
    return result;
  }

  C value_at(const char* source) const {
    C x;
    convert_run(source, dtype_, &x, 1);
    return x;
  }

  void gather(const char* base, int64_t begin, int64_t n, C* buffer) const {
    const Dim last = inner_.back();
    char run[TILE * 8];
    for (int64_t done = 0; done < n;) {
      const int64_t along = (begin + done) % last.size, count = std::min(n - done, last.size - along);
      const char* source = base + offset(inner_, begin + done) * item_;
      const int64_t step = last.stride * item_;
      if (step == 0) {
        std::fill_n(buffer + done, count, value_at(source));
        done += count;
        continue;
      }
      switch (item_) {
        case 1: copy_strided<uint8_t>(source, step, count, run); break;
        case 2: copy_strided<uint16_t>(source, step, count, run); break;
        case 4: copy_strided<uint32_t>(source, step, count, run); break;
        default: copy_strided<uint64_t>(source, step, count, run);
      }
      convert_run(run, dtype_, buffer + done, count);
      done += count;
    }
  }

  template <class Word>
  static void copy_strided(const char* source, int64_t step, int64_t count, char* out) {
    for (int64_t i = 0; i < count; ++i) memcpy(out + i * sizeof(Word), source + i * step, sizeof(Word));
  }

  const char* data_ = nullptr;
  ScalarType dtype_ = scalar_type_of<C>;
  int64_t item_ = sizeof(C);
  Dims outer_, inner_;
  bool contiguous_ = true, direct_ = true;
};

template <class C>
inline Reader<C> optional_reader(const std::optional<Tensor>& t) {
  return t ? Reader<C>(*t) : Reader<C>();
}

// Results above this many bytes do not stay in the caches, so nontemporal stores write them.
inline constexpr int64_t NONTEMPORAL_BYTES = 4 << 20;

inline bool is_large(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()) > NONTEMPORAL_BYTES; }

// Whether a kernel itself should use nontemporal stores. For other dtypes, the conversion in Writer::commit does.
template <class C>
inline bool stores_nontemporal(const Tensor& t) {
  return t.scalar_type() == scalar_type_of<C> && is_large(t);
}

// Writes rows of a newly allocated contiguous tensor.
template <class C>
class Writer {
 public:
  Writer() = default;

  Writer(const Tensor& t, int64_t row_size)
      : data_(static_cast<char*>(t.mutable_data_ptr())),
        dtype_(t.scalar_type()),
        item_(static_cast<int64_t>(t.element_size())),
        row_size_(row_size),
        nontemporal_(is_large(t)) {}

  // Writes a tensor of any dtype as rows of `size` numbers of type C: see Reader::of_bits.
  static Writer of_bits(const Tensor& t, int64_t size) {
    Writer writer(t, size);
    writer.dtype_ = scalar_type_of<C>, writer.item_ = sizeof(C);
    return writer;
  }

  // Returns where to write elements [begin, begin + n) of a row. `commit` then converts and stores them if necessary.
  C* run(int64_t row, int64_t begin, C* buffer) const {
    return dtype_ == scalar_type_of<C> ? reinterpret_cast<C*>(destination(row, begin)) : buffer;
  }

  void commit(int64_t row, int64_t begin, int64_t n, const C* values) const {
    if (dtype_ == scalar_type_of<C>) return;
    convert_run(values, dtype_, destination(row, begin), n, nontemporal_);
  }

  // Makes nontemporal stores visible to other threads. Kernels call it once per work item, because the fence waits.
  void finish() const {
    if (nontemporal_) fence();
  }

 private:
  char* destination(int64_t row, int64_t begin) const { return data_ + (row * row_size_ + begin) * item_; }

  char* data_ = nullptr;
  ScalarType dtype_ = scalar_type_of<C>;
  int64_t item_ = sizeof(C), row_size_ = 0;
  bool nontemporal_ = false;
};

}  // namespace udml
