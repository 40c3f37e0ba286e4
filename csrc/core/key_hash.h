#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "types.h"

namespace kvcommons::internal {

// Of all of a key, for tables that must not mind keys that are no hashes.
[[nodiscard]] inline std::uint64_t key_hash(const Key& key) noexcept {
  std::array<std::uint64_t, 4> w{};
  std::memcpy(w.data(), key.bytes.data(), sizeof w);
  std::uint64_t x =
      w[0] ^ w[1] * 0xbf58'476d'1ce4'e5b9ULL ^ w[2] * 0x94d0'49bb'1331'11ebULL ^ w[3] * 0x9e37'79b9'7f4a'7c15ULL;
  x = (x ^ (x >> 32)) * 0xd6e8'feb8'6659'fd93ULL;
  return x ^ (x >> 32);
}

}  // namespace kvcommons::internal
