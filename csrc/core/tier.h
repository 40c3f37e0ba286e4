// A place for chunks behind memory: disk, a peer, a remote store, or a wrapper around one that injects faults.
//
// A tier moves whole shards between its medium and buffers that the caller owns (slots of the arena). It never blocks
// its caller: a batch is queued or refused at once, and its callback is called exactly once, on a thread of the tier,
// also when the tier fails, closes or is destroyed. Buffers belong to the tier until then.
//
// What a tier hands out is what was put in, or it hands out nothing: each payload is verified (XXH3-64, and identity:
// fingerprint, key, rect, length) before its item is called Ok. A tier may forget anything at any time; it never
// exceeds its capacity.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "types.h"

namespace kvcommons {

enum class TierStatus : std::uint8_t {
  Ok,
  Missing,  // not here (any more)
  Corrupt,  // found, but its bytes or its identity are wrong: removed and counted, never handed out
  Full,     // no room could be made, or the wear limit says no
  Busy,     // the queue is at its bound: nothing of this item was begun
  Failed,   // the medium refused (errno in the log and in health()), or the time-out passed
  Closed,
};

enum class TierHealth : std::uint8_t {
  Serving,
  Degraded,  // reads but does not write (no space, wear), or is slower than its limit
  Gone,      // answers Missing and Closed only: the device vanished, or failed too often
};

struct ShardId {
  Key fingerprint;
  Key key;
  Rect rect;
  friend bool operator==(const ShardId&, const ShardId&) = default;
};

struct ShardIdHash {
  std::size_t operator()(const ShardId& id) const noexcept {
    const auto rect = std::bit_cast<std::uint64_t>(id.rect);
    return static_cast<std::size_t>(id.key.prefix64() ^ (id.fingerprint.prefix64() * 3) ^
                                    (rect * 0x9e37'79b9'7f4a'7c15ULL));
  }
};

// What must be known of a shard to put it back into memory in another life of the node.
struct ShardMeta {
  ShardId id;
  Key parent;  // zero: first chunk of its chain
  std::uint64_t tenant = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t checksum = 0;  // XXH3-64 of the payload; never 0 in a tier
  std::uint32_t chunk_tokens = 0;
  std::uint16_t codec = 0;  // 0: the engine's own bytes
  std::vector<std::uint64_t> text_keys;
  // Where a codec made the payload (docs/codecs.md): its parameter, and what it becomes in memory. Payload_bytes and
  // checksum are then the encoded ones. What a CodecTier hands out has codec 0 again.
  std::uint16_t codec_group = 0;
  std::uint64_t raw_bytes = 0;
};
[[nodiscard]] inline std::uint64_t memory_bytes(const ShardMeta& meta) noexcept {
  return meta.codec == 0 ? meta.payload_bytes : meta.raw_bytes;
}

// data: kSlotAlignBytes-aligned, readable for payload_bytes rounded up to kSlotAlignBytes. What lies behind the payload
// is nobody's and may be written to the medium.
struct PutItem {
  ShardMeta meta;
  const std::byte* data = nullptr;
  // Takes the place of what is here under this identity, which stays until it is written; Missing where nothing is
  // here (any more). A tier that cannot do so answers as for what is there already.
  bool replace = false;
};

// data: kSlotAlignBytes-aligned, writable for room_bytes, a multiple of kSlotAlignBytes.
struct GetItem {
  ShardId id;
  std::byte* data = nullptr;
  std::uint64_t room_bytes = 0;
};

struct GetResult {
  TierStatus status = TierStatus::Missing;
  ShardMeta meta;  // where Ok
};

// What left a tier or was found to be gone, so that an index can be told. Total order for one tier.
struct TierEvent {
  enum class Kind : std::uint8_t { Stored, Dropped } kind{};
  ShardMeta meta;
};

struct TierStats {
  std::uint64_t capacity_bytes = 0, used_bytes = 0, shards = 0;
  std::uint64_t puts = 0, put_bytes = 0, gets = 0, get_bytes = 0, misses = 0;
  std::uint64_t evicted = 0, reinserted = 0, corrupt = 0, failed = 0, refused_busy = 0, refused_full = 0;
  std::uint64_t queued_puts = 0, queued_gets = 0;
  std::uint64_t recovered = 0, recovery_us = 0;
  std::uint64_t metadata_bytes = 0;  // of memory, for all that is known of its shards
};

// What a lookup wants and no tier is known to have: the next chunks of one chain.
struct Sought {
  Key fingerprint;
  std::uint32_t chunk_tokens = 0;
  std::span<const ShardSpec> shards;  // of each chunk
  std::span<const Key> keys;
  double tokens_per_second = 0;  // at which this model's engines here compute, as measured; 0: not known
  std::string_view from{};       // the name of the only node to be asked, whatever it costs; empty: whoever has it
};

class Tier {
 public:
  using PutDone = std::function<void(std::span<const TierStatus>)>;  // one for each item, in the batch's order
  using GetDone = std::function<void(std::span<const GetResult>)>;

  virtual ~Tier() = default;  // completes every batch first (with Closed where it was not begun)
  Tier() = default;
  Tier(const Tier&) = delete;  // owns files, sockets and threads
  Tier& operator=(const Tier&) = delete;

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;  // "disk", "peer", ...: a metric's label

  // True: taken, done will be called. False: nothing was taken (queue at its bound, closed), done is never called.
  // An item that is there already is Ok at once and written again nowhere.
  virtual bool put(std::vector<PutItem> batch, PutDone done) = 0;
  virtual bool get(std::vector<GetItem> batch, GetDone done) = 0;

  // From memory, in microseconds, no medium touched: what each shard takes in memory (memory_bytes), 0 where it is not
  // here. A hint.
  virtual void find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) = 0;
  // Where what is here has to be asked for elsewhere: begins to, if it may be here, and waits for nobody. True: find()
  // may know more soon.
  virtual bool seek(const Sought&) { return false; }
  // True: enough others keep it too, so that what is brought from here may leave memory first.
  virtual bool spare(const ShardId&) { return false; }
  // False: what memory stores is not to be written there by itself.
  [[nodiscard]] virtual bool takes_writes() const noexcept { return true; }
  // True: what is here is other nodes' too, which tell the index of it themselves.
  [[nodiscard]] virtual bool others() const noexcept { return false; }
  // Others read what is written there: it is written beside the tier of this node's own, not instead of it.
  [[nodiscard]] virtual bool shared() const noexcept { return false; }
  // What is known of one shard without reading its payload; false if it is not here.
  virtual bool describe(const ShardId& id, ShardMeta* out) = 0;

  virtual void touch(std::span<const ShardId> ids) = 0;            // used from a faster tier: worth keeping
  virtual std::uint64_t remove(std::span<const ShardId> ids) = 0;  // returns how many were here
  virtual std::uint64_t clear(const Key* fingerprint) = 0;         // nullptr: all; returns shards removed
  // Pages through what is here; cursor 0 starts, returned cursor 0 ends. May miss what comes and goes meanwhile.
  virtual std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) = 0;
  virtual std::vector<TierEvent> drain_events(std::size_t max, bool* gap) = 0;

  [[nodiscard]] virtual TierHealth health(std::string* why) const = 0;  // why: for a person, empty while Serving
  [[nodiscard]] virtual TierStats stats() const = 0;
};

}  // namespace kvcommons
