// Names and limits that every part of the core agrees on. No Python, no CUDA, no sockets here.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace kvcommons {

static_assert(std::endian::native == std::endian::little,
              "the wire and the arena's records are little-endian and are read in place");

// Limits. Each carries its unit in its name; the relations between them are asserted here.
inline constexpr std::size_t kKeyBytes = 32;
inline constexpr std::uint32_t kFrameBytesMax = 4u << 20;
inline constexpr std::uint32_t kKeysPerFrameMax = 65'536;
inline constexpr std::uint32_t kShardsPerChunkMax = 256;
inline constexpr std::uint32_t kTextKeysPerChunkMax = 64;
inline constexpr std::uint32_t kChunksPerReserveMax = 16'384;
inline constexpr std::uint64_t kSlotAlignBytes = 4096;  // O_DIRECT reads and writes straight from a slot
inline constexpr std::uint64_t kSlabBytesMin = 1ull << 20;
inline constexpr std::uint64_t kSlabBytesMax = 1ull << 30;

static_assert(kKeysPerFrameMax * kKeyBytes < kFrameBytesMax, "a full lookup must fit one frame");
static_assert(kSlabBytesMin % kSlotAlignBytes == 0, "a slab is a whole number of slots' alignment");

// SHA-256: the token key of a chunk, a namespace root or a fingerprint.
struct Key {
  std::array<std::uint8_t, kKeyBytes> bytes{};
  friend bool operator==(const Key&, const Key&) = default;
  [[nodiscard]] std::uint64_t prefix64() const noexcept {
    std::uint64_t v = 0;
    std::memcpy(&v, bytes.data(), sizeof v);
    return v;
  }
  [[nodiscard]] bool zero() const noexcept { return *this == Key{}; }
};
static_assert(sizeof(Key) == kKeyBytes);

// SHA-256 output is uniform already: its first eight bytes are the hash.
struct KeyHash {
  std::size_t operator()(const Key& k) const noexcept { return static_cast<std::size_t>(k.prefix64()); }
};

// A rectangle of layers x KV heads: what one rank holds of a chunk. Half-open ranges.
struct Rect {
  std::uint16_t layer_begin = 0, layer_end = 0, head_begin = 0, head_end = 0;
  friend bool operator==(const Rect&, const Rect&) = default;
};
static_assert(sizeof(Rect) == 8);

// What one shard of one chunk occupies.
struct ShardSpec {
  Rect rect;
  std::uint64_t slot_bytes = 0;  // payload of a slot; the arena rounds it up to kSlotAlignBytes
  friend bool operator==(const ShardSpec&, const ShardSpec&) = default;
};

// A slot as a client sees it: where in the arena, and which life of that place. A stale generation never matches.
struct SlotRef {
  std::uint64_t offset_bytes = 0;
  std::uint32_t generation = 0;
  friend bool operator==(const SlotRef&, const SlotRef&) = default;
};

enum class SlotState : std::uint8_t {
  Free,
  Filling,      // granted to a writer, invisible
  Sealed,       // committed, readable
  Draining,     // unpublished and invisible; readers that began before still hold it
  Quarantined,  // its writer or reader vanished; reused only after release, drained work or proven death
};

enum class ReserveStatus : std::uint8_t {
  Granted,
  Exists,         // this shard is sealed already: nothing to store
  Busy,           // another writer fills it now
  Full,           // nothing could be evicted (all leased, pinned or parents)
  ParentMissing,  // a chunk without its prefix can never be hit
};

// Outcome of a request. Also the status field of a reply frame: values are part of protocol 1.
enum class Status : std::uint16_t {
  Ok = 0,
  BadFrame = 1,        // malformed: the connection is closed
  BadVersion = 2,      // no protocol version in common
  BadFingerprint = 3,  // shards or chunk size disagree with what this fingerprint was first declared with
  Denied = 4,          // credentials
  Full = 5,            // sessions or leases at their limit
  Gone = 6,            // the lease was revoked, the slot moved on
  Busy = 7,            // try again later
  TooLarge = 8,        // over a limit of types.h
  Internal = 9,
  Disconnected = 100,  // client side only: the node is away; serve by recomputing
  TimedOut = 101,      // client side only
};

}  // namespace kvcommons
