// Inside of xxh3*.cpp: what the instruction-set files share. No inline code here (see cpu.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcommons::xxh3_detail {

inline constexpr std::size_t kStripeBytes = 64;
inline constexpr std::size_t kStripesPerBlock = 16;
inline constexpr std::size_t kScrambleAt = 128;  // where in the secret a block's scramble reads
inline constexpr std::uint32_t kPrime32A = 0x9E3779B1u;

// Consumes whole stripes. `first` is the index within its block (0..15) of the first one; after each 16th, acc is
// scrambled.
using ConsumeFn = void (*)(std::uint64_t* acc, const std::uint8_t* in, std::size_t stripes, std::size_t first,
                           const std::uint8_t* secret);

void consume_scalar(std::uint64_t* acc, const std::uint8_t* in, std::size_t stripes, std::size_t first,
                    const std::uint8_t* secret);
#if defined(__x86_64__)
void consume_avx2(std::uint64_t* acc, const std::uint8_t* in, std::size_t stripes, std::size_t first,
                  const std::uint8_t* secret);
void consume_avx512(std::uint64_t* acc, const std::uint8_t* in, std::size_t stripes, std::size_t first,
                    const std::uint8_t* secret);
#endif

}  // namespace kvcommons::xxh3_detail
