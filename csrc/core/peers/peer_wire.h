// Between the nodes of one pool: frames over TCP (or TLS over TCP), little-endian. A frame is a header and a payload of
// at most kFrameBytesMax; behind a Shard or a Push frame follow the shard's own bytes, as many as it says.
//
// Both sides prove that they know the pool's secret before anything else is said (peer_greeting.h). Requests are
// answered in order. Nothing here is trusted further than its bounds: a malformed frame ends its connection, and what
// a frame says of a shard is checked again where it is used.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tier.h"
#include "types.h"

namespace kvcommons::peers::wire {

inline constexpr std::uint32_t kMagic = 0x3150564b;  // "KVP1"
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::uint32_t kFrameBytesMax = 1u << 20;
inline constexpr std::uint32_t kItemsMax = 4'096;  // shards of one Fetch
inline constexpr std::uint32_t kKeysMax = 4'096;   // chunks of one Locate
inline constexpr std::uint32_t kAnyEpoch = 0x1'0000;
inline constexpr std::uint32_t kAnyGeneration = 0;  // no grant has generation 0

enum class Type : std::uint16_t {
  Hello = 1,
  Challenge = 2,
  Proof = 3,
  Welcome = 4,
  Locate = 5,
  Located = 6,
  Fetch = 7,
  Shard = 8,
  Push = 9,
  Pushed = 10,
  Remove = 11,
  Removed = 12,
};

enum class Answer : std::uint16_t {
  Ok = 0,
  Missing = 1,
  Gone = 2,    // another epoch, or the place has another life
  Busy = 3,    // no room, or too much at one time
  Denied = 4,  // the proof is wrong, or this node does not take that
  Bad = 5,     // malformed; the connection ends
};

struct Header {
  std::uint32_t payload_bytes;
  std::uint16_t type;
  std::uint16_t answer;  // 0 in requests
  std::uint64_t request;
};
static_assert(sizeof(Header) == 16);

using Nonce = Key;  // 32 random bytes

struct Hello {
  std::uint32_t magic;
  std::uint16_t version_min, version_max;
  Nonce nonce;
};
static_assert(sizeof(Hello) == 40);

struct Challenge {
  std::uint32_t magic;
  std::uint16_t version, reserved;
  Nonce nonce;
  Key proof;
};
static_assert(sizeof(Challenge) == 72);

struct Welcome {
  std::uint32_t epoch;  // kAnyEpoch: not in the index now
  std::uint32_t reserved;
};

// Followed by `shards` ShardSpec and `keys` Key.
struct Locate {
  Key fingerprint;
  std::uint32_t epoch;  // under which the index told of it
  std::uint32_t chunk_tokens;
  std::uint32_t shards, keys;
};
static_assert(sizeof(Locate) == 48);

// Followed by chunks x shards Place: the leading chunks that are here whole.
struct Located {
  std::uint32_t epoch;
  std::uint32_t chunks;
  std::uint32_t coming;  // further leading chunks that are on their way into memory: ask again
  std::uint32_t reserved;
};
struct Place {
  std::uint64_t payload_bytes;
  std::uint32_t generation;
  std::uint32_t reserved;
};
static_assert(sizeof(Located) == 16 && sizeof(Place) == 16);

// Followed by `items` Item. Each is answered by a Shard frame, in order.
struct Fetch {
  Key fingerprint;
  std::uint32_t epoch;
  std::uint32_t items;
};
struct Item {
  Key key;
  Rect rect;
  std::uint32_t generation;
  std::uint32_t reserved;
};
static_assert(sizeof(Fetch) == 40 && sizeof(Item) == 48);

// What is said of one shard; followed by text_keys x u64, and behind the frame by its bytes. In a Push the layout of
// its chunk (`shards` ShardSpec) stands between.
struct Meta {
  Key fingerprint, key, parent;
  Rect rect;
  std::uint64_t tenant, payload_bytes, checksum;
  std::uint32_t chunk_tokens;
  std::uint16_t codec, text_keys, shards, reserved[3];
};
static_assert(sizeof(Meta) == 96 + 8 + 24 + 16);

// Followed by `items` Item (generations are of no matter). Answered by Removed, whose payload is one u64: how many.
struct Remove {
  Key fingerprint;
  std::uint32_t items, reserved;
};

static_assert(sizeof(Locate) + kShardsPerChunkMax * sizeof(ShardSpec) + kKeysMax * sizeof(Key) <= kFrameBytesMax);
static_assert(sizeof(Fetch) + kItemsMax * sizeof(Item) <= kFrameBytesMax);

// Bytes of a frame's payload beyond which a Located would not fit: fewer keys are asked for where there are many
// shards.
[[nodiscard]] constexpr std::uint32_t keys_max(std::size_t shards) noexcept {
  const auto fits =
      static_cast<std::uint32_t>((kFrameBytesMax - sizeof(Located)) / (sizeof(Place) * (shards == 0 ? 1 : shards)));
  return fits < kKeysMax ? fits : kKeysMax;
}

struct LocateRequest {
  Locate head{};
  std::vector<ShardSpec> shards;
  std::vector<Key> keys;
};
struct FetchRequest {
  Fetch head{};
  std::vector<Item> items;
};
struct ShardHead {
  ShardMeta meta;
  std::vector<ShardSpec> layout;  // of a Push
};
struct RemoveRequest {
  Remove head{};
  std::vector<Item> items;
};
struct LocatedReply {
  Located head{};
  std::vector<Place> places;
};

using Bytes = std::span<const std::byte>;

// False: not a frame that may follow. `max`: what this side of the connection accepts.
[[nodiscard]] bool decode_header(Bytes bytes, Header* out);
[[nodiscard]] bool decode(Bytes payload, Hello* out);
[[nodiscard]] bool decode(Bytes payload, Challenge* out);
[[nodiscard]] bool decode(Bytes payload, Welcome* out);
[[nodiscard]] bool decode(Bytes payload, LocateRequest* out);
[[nodiscard]] bool decode(Bytes payload, std::size_t shards, std::size_t keys_max, LocatedReply* out);
[[nodiscard]] bool decode(Bytes payload, FetchRequest* out);
[[nodiscard]] bool decode(Bytes payload, RemoveRequest* out);
[[nodiscard]] bool decode_shard(Bytes payload, bool push, ShardHead* out);

// Whole frames, appended to `out`.
using Out = std::vector<std::byte>;
void put_frame(Out* out, Type type, Answer answer, std::uint64_t request, Bytes payload);
template <typename T>
void put_frame(Out* out, Type type, Answer answer, std::uint64_t request, const T& fixed) {
  put_frame(out, type, answer, request, std::as_bytes(std::span(&fixed, 1)));
}
void put_locate(Out* out, std::uint64_t request, const Locate& head, std::span<const ShardSpec> shards,
                std::span<const Key> keys);
void put_located(Out* out, std::uint64_t request, const Located& head, std::span<const Place> places);
void put_fetch(Out* out, std::uint64_t request, const Fetch& head, std::span<const Item> items);
void put_remove(Out* out, std::uint64_t request, const Remove& head, std::span<const Item> items);
// The frame alone; the shard's bytes go behind it.
void put_shard(Out* out, Type type, std::uint64_t request, const ShardMeta& meta, std::span<const ShardSpec> layout);

}  // namespace kvcommons::peers::wire
