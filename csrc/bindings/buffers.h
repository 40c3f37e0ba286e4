// How Python's arrays, lists and keys enter the core. Errors name the argument, its value and the remedy.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/types.h"

namespace kvcommons::bindings {

// Any C-contiguous buffer, read-only, held until the end of its life. Made and dropped with the GIL held.
class Buffer {
 public:
  Buffer(const char* argument, nanobind::handle object);
  ~Buffer();
  Buffer(const Buffer&) = delete;  // a copy would release the view twice
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] const void* data() const noexcept { return view_.buf; }
  [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>(view_.len); }
  [[nodiscard]] std::size_t item_bytes() const noexcept { return static_cast<std::size_t>(view_.itemsize); }
  [[nodiscard]] std::string format() const { return view_.format != nullptr ? view_.format : "B"; }

 private:
  Py_buffer view_{};
};

// Token ids or block ids: a buffer of u32, i32 or i64, an object with __dlpack__ (a torch tensor on the CPU), or any
// sequence of ints. A buffer of u32 and of non-negative i32 is used where it lies.
class U32Array {
 public:
  U32Array(const char* argument, nanobind::handle object);
  U32Array(const U32Array&) = delete;  // values() points into this object
  U32Array& operator=(const U32Array&) = delete;

  [[nodiscard]] std::span<const std::uint32_t> values() const noexcept { return values_; }

 private:
  using Tensor = nanobind::ndarray<nanobind::ro, nanobind::device::cpu, nanobind::c_contig>;
  bool take_dlpack(const char* argument, nanobind::handle object);
  void take_items(const char* argument, const void* data, std::size_t count, std::size_t item_bytes, bool is_signed);
  void take_sequence(const char* argument, nanobind::handle object);

  std::optional<Buffer>
      buffer_;  // this one or the next keeps the memory that values_ points into, if converted_ does not
  std::optional<Tensor> tensor_;
  std::vector<std::uint32_t> converted_;
  std::span<const std::uint32_t> values_;
};

Key key_argument(const char* argument, const nanobind::bytes& value);
// Keys packed one after the other, 32 bytes each.
std::vector<Key> keys_argument(const char* argument, const nanobind::bytes& value);

}  // namespace kvcommons::bindings
