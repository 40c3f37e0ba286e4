// Names of elements and of axes' orders, as Python gives them.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <string>

#include "core/kv_codec.h"

namespace kvcommons::bindings {

inline constexpr const char* kElementNames[] = {"float32", "float16", "bfloat16"};
inline constexpr const char* kOrderNames[] = {"PHN", "PNH", "HPN", "HNP", "NPH", "NHP"};

// The place of `value` among the names. Raises ValueError, which names them.
template <std::size_t kCount>
std::size_t named(const char* argument, const std::string& value, const char* const (&names)[kCount]) {
  std::string known;
  for (std::size_t i = 0; i < kCount; ++i) {
    if (value == names[i]) return i;
    known += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  const std::string what = std::string(argument) + " is \"" + value + "\": choose of " + known;
  throw nanobind::value_error(what.c_str());
}

inline kernels::Element element_named(const std::string& name) {
  return static_cast<kernels::Element>(1 + named("element", name, kElementNames));
}
inline kvcodec::BlockOrder order_named(const std::string& name) {
  return static_cast<kvcodec::BlockOrder>(named("order", name, kOrderNames));
}

}  // namespace kvcommons::bindings
