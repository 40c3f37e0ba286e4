// An object of a remote store: one shard with all that must be known of it, so that any node of the pool that may name
// it can judge it by itself.
//
//   header (1,024 bytes) | payload
//
// Little-endian: magic "KVCOBJ01" 8; XXH3-64 of the header with this field as 0, 8; version 2 (1); codec 2; text_keys
// 2; reserved 2; fingerprint, key, parent 32 each; rect 8 (layers and heads, four u16); tenant, payload_bytes, checksum
// (XXH3-64 of the payload), expires_unix_ms 8 each; chunk_tokens 4; reserved 4; text keys 8 each, at most 64; zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "tier.h"

namespace kvcommons::tiers {

inline constexpr std::uint64_t kObjectHeaderBytes = 1'024;

// Begins with what a store's objects of one fingerprint share, and ends with the shard: hashes and numbers alone.
std::string object_prefix(const std::string& prefix, const Key* fingerprint);  // nullptr: of all
std::string object_name(const std::string& prefix, const ShardId& id);

void encode_object_header(const ShardMeta& meta, std::uint64_t expires_unix_ms, std::byte* out);

enum class ObjectVerdict : std::uint8_t {
  Right,
  Foreign,  // of another format version, or its time is over: not here for us, and no damage
  Wrong,    // damaged, or not what its name says
};
// Judges a whole object that was asked for by `id`; meta is set where it is Right.
ObjectVerdict check_object(std::span<const std::byte> object, const ShardId& id, std::uint64_t now_unix_ms,
                           ShardMeta* meta);

}  // namespace kvcommons::tiers
