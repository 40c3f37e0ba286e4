// Token keys: the identity of a chunk is the chain of everything before it. One call hashes a whole prompt.
#pragma once

#include <cstdint>
#include <span>

#include "types.h"

namespace kvcommons {

// What the token ids of one chunk stand for beyond themselves (images, adapters). Opaque here; part of the key.
struct ChunkIdentity {
  std::uint64_t chunk = 0;
  std::span<const std::uint8_t> bytes;
};

// Key of chunk i = SHA-256(key of chunk i-1 || its ids as little-endian u32 || its identity). `before` is the key of
// the chunk before the first one, or the namespace root. Ids that fill no whole chunk get no key.
// identities ascend strictly by chunk; those past the last whole chunk have no key to be part of.
// out.size() must be tokens.size() / chunk_tokens, chunk_tokens > 0.
void chain_keys(const Key& before, std::span<const std::uint32_t> tokens, std::uint32_t chunk_tokens,
                std::span<const ChunkIdentity> identities, std::span<Key> out) noexcept;

// The same text wherever it stands: SHA-256(kSegmentDomain || root || ids). The domain keeps these keys from ever
// satisfying a lookup of an exact prefix.
inline constexpr char kSegmentDomain[] = "kvcommons.segment.v1";
void segment_keys(const Key& root, std::span<const std::uint32_t> tokens, std::uint32_t chunk_tokens,
                  std::span<Key> out) noexcept;

}  // namespace kvcommons
