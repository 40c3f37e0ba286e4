// Keys as hexadecimal text, for tests that compare with published vectors.
#pragma once

#include <string>

#include "types.h"

namespace kvcommons::testing {

inline std::string hex(const Key& key) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const std::uint8_t byte : key.bytes) {
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

}  // namespace kvcommons::testing
