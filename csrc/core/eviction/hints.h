// What a request says of its chunks' future. Packed into a word of RESERVE and TOUCH; zero says nothing.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvcommons::eviction {

inline constexpr int kPriorityMin = -4, kPriorityMax = 4;
inline constexpr std::uint32_t kTtlSecondsMax = 65'535;

struct Hints {
  bool one_shot = false;          // nobody will ask for these again: they go first
  bool session_end = false;       // this conversation is over: what only it used goes first
  std::int8_t priority = 0;       // each step doubles what a chunk is worth to `cost`
  std::uint16_t ttl_seconds = 0;  // since the last use; 0 = no limit
  friend bool operator==(const Hints&, const Hints&) = default;

  [[nodiscard]] constexpr std::uint32_t packed() const noexcept {
    return (one_shot ? 1u : 0u) | (session_end ? 2u : 0u) | std::uint32_t{static_cast<std::uint8_t>(priority)} << 8 |
           std::uint32_t{ttl_seconds} << 16;
  }
  // Unknown bits are ignored, and what is out of range is brought into it: a hint is never an error.
  [[nodiscard]] static constexpr Hints unpacked(std::uint32_t word) noexcept {
    const auto priority = static_cast<std::int8_t>(static_cast<std::uint8_t>(word >> 8));
    return {(word & 1) != 0, (word & 2) != 0,
            static_cast<std::int8_t>(std::clamp<int>(priority, kPriorityMin, kPriorityMax)),
            static_cast<std::uint16_t>(word >> 16)};
  }
};

}  // namespace kvcommons::eviction
