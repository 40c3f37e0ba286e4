// SHA-256 by the processor's own instructions where it has them: identity of chunks, fingerprints and namespaces.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "types.h"

namespace kvcommons {

class Sha256 {
 public:
  static constexpr std::size_t kBlockBytes = 64;
  using State = std::array<std::uint32_t, 8>;
  // Takes whole blocks into the state; data needs no alignment.
  using Compress = void (*)(std::uint32_t* state, const std::uint8_t* data, std::size_t blocks);

  Sha256() noexcept;
  explicit Sha256(Compress compress) noexcept;  // tests run every implementation that this machine has
  void update(const void* data, std::size_t bytes) noexcept;
  Key finish() noexcept;  // ends this hash: make a new one for the next

 private:
  State state_;
  std::array<std::uint8_t, kBlockBytes> held_;
  std::uint64_t total_bytes_ = 0;  // what is held is total_bytes_ % kBlockBytes
  Compress compress_;
};

Key sha256(const void* data, std::size_t bytes) noexcept;

enum class Sha256Isa : std::uint8_t { Portable, ShaNi, Armv8 };
[[nodiscard]] Sha256::Compress sha256_compress(Sha256Isa isa) noexcept;  // nullptr: this machine has it not

}  // namespace kvcommons
