#include "keys.h"

#include "sha256.h"

namespace kvcommons {

void chain_keys(const Key& before, std::span<const std::uint32_t> tokens, std::uint32_t chunk_tokens,
                std::span<const ChunkIdentity> identities, std::span<Key> out) noexcept {
  const Key* parent = &before;
  auto identity = identities.begin();
  for (std::size_t i = 0; i < out.size(); ++i) {
    Sha256 hash;
    hash.update(parent->bytes.data(), kKeyBytes);
    hash.update(tokens.data() + i * chunk_tokens, chunk_tokens * sizeof(std::uint32_t));
    if (identity != identities.end() && identity->chunk == i) {
      hash.update(identity->bytes.data(), identity->bytes.size());
      ++identity;
    }
    out[i] = hash.finish();
    parent = &out[i];
  }
}

void segment_keys(const Key& root, std::span<const std::uint32_t> tokens, std::uint32_t chunk_tokens,
                  std::span<Key> out) noexcept {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Sha256 hash;
    hash.update(kSegmentDomain, sizeof kSegmentDomain - 1);
    hash.update(root.bytes.data(), kKeyBytes);
    hash.update(tokens.data() + i * chunk_tokens, chunk_tokens * sizeof(std::uint32_t));
    out[i] = hash.finish();
  }
}

}  // namespace kvcommons
