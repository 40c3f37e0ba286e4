// XXH3, 64 bits, default secret: checksums of slots and hashes of text. Not for identity: that is SHA-256's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvcommons {

// Any length, 0 included (data may then be null). The same value as the reference's XXH3_64bits_withSeed.
std::uint64_t xxh3_64(const void* data, std::size_t bytes, std::uint64_t seed = 0) noexcept;

// The same over pieces. Holds back the last bytes, so pieces of any size may come in any split.
class Xxh3Stream {
 public:
  explicit Xxh3Stream(std::uint64_t seed = 0) noexcept;
  void update(const void* data, std::size_t bytes) noexcept;
  [[nodiscard]] std::uint64_t digest() const noexcept;

 private:
  void consume(const std::uint8_t* data, std::size_t stripes) noexcept;

  static constexpr std::size_t kStripeBytes = 64;
  static constexpr std::size_t kHeldBytesMax = 256;  // over 240, so that short inputs are still whole at the digest
  std::array<std::uint64_t, 8> acc_;
  std::array<std::uint8_t, 192> secret_;
  std::array<std::uint8_t, kHeldBytesMax> held_{};
  std::array<std::uint8_t, kStripeBytes> last_{};  // the stripe consumed before held_: the final one may reach into it
  std::size_t held_bytes_ = 0;
  std::uint64_t total_bytes_ = 0;
  std::uint64_t stripes_ = 0;
  std::uint64_t seed_;
};

// The instruction sets behind the long path, for tests: every one that this machine has gives the same value.
enum class Xxh3Isa : std::uint8_t { Scalar, Avx2, Avx512 };
[[nodiscard]] bool xxh3_has(Xxh3Isa isa) noexcept;
std::uint64_t xxh3_64_isa(Xxh3Isa isa, const void* data, std::size_t bytes, std::uint64_t seed) noexcept;

}  // namespace kvcommons
