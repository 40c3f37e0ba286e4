// A recorded stream of requests through a cache of chunks under one policy, under `auto`, or with knowledge of the
// future. The policies are the store's own.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace kvcommons::eviction {

struct Trace {
  std::span<const std::uint32_t> lengths;  // chunks of each request
  std::span<const std::uint64_t> keys;     // of all requests, one after the other; equal keys have equal prefixes
};

struct Replayed {
  std::uint64_t hits = 0;  // chunks found, of all keys
  std::uint64_t evicted = 0;
  std::uint64_t switches = 0;  // of the policy, by `auto`
};

// policy: lru, s3fifo, cost, auto, or belady: what is used again last goes first, and does not come in at all where it
// would be the first to go. Nothing where the policy has no such name, or the lengths do not add up to the keys.
std::optional<Replayed> replay(const Trace& trace, std::string_view policy, std::uint64_t capacity_chunks);

}  // namespace kvcommons::eviction
