// Where each shard of a disk tier lies: all of it in memory, in 112 bytes a shard and some 16 of a hash table.
// Thread-safe: sharded by key. Whoever changes it tells the tier's events under the same lock, so that they are in
// order for each shard.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "tiers/disk_events.h"
#include "tiers/disk_format.h"

namespace kvcommons::disk {

// segment: counted over all devices.
struct Place {
  std::uint32_t segment = 0;
  std::uint32_t block = 0;
  friend bool operator==(const Place&, const Place&) = default;
};

// Segments of one device, or all of them.
struct SegmentRange {
  std::uint32_t first = 0;
  std::uint32_t count = UINT32_MAX;
  [[nodiscard]] bool has(std::uint32_t segment) const noexcept { return segment - first < count; }
};

struct Found {
  Place place;
  std::uint64_t memory_bytes = 0;
};

struct Resident {
  ShardMeta meta;
  Place place;
  bool hot = false;  // used since it was written
};

class IndexShard;

class DiskIndex {
 public:
  DiskIndex(std::uint32_t segments, EventRing* events);
  ~DiskIndex();
  DiskIndex(const DiskIndex&) = delete;  // one index a tier

  enum class Put : std::uint8_t { Stored, Exists, NoRoom, Missing };
  Put put(const Extent& extent, Place place);
  // Only where it is here, in whatever form: else Missing. Tells nothing.
  Put replace(const Extent& extent, Place place);
  // Recovery of one device: later calls win over earlier ones of the same device, none over another device's. Nothing
  // is told.
  void restore(const Extent& extent, Place place, SegmentRange device);

  [[nodiscard]] std::optional<Found> find(const ShardId& id) const;
  bool describe(const ShardId& id, Resident* out) const;
  void touch(const ShardId& id);
  // Where `only_at` is given, only if it still lies there.
  bool erase(const ShardId& id, const Place* only_at = nullptr);
  bool erase_within(const ShardId& id, SegmentRange within);
  bool move(const ShardId& id, Place from, Place to);
  // All of one segment, as a list; erase_segment removes them and returns how many there were.
  [[nodiscard]] std::vector<Resident> list_segment(std::uint32_t segment) const;
  std::uint64_t erase_segment(std::uint32_t segment);
  std::uint64_t clear(const Key* fingerprint, SegmentRange within = {});
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) const;

  // Shards, their bytes on the medium with headers, bytes of memory for all that is known of them.
  void add_up(std::uint64_t* shards, std::uint64_t* used_bytes, std::uint64_t* metadata_bytes) const;

 private:
  static constexpr std::size_t kShards = 16;
  [[nodiscard]] IndexShard& shard(const Key& key) const noexcept;

  std::array<std::unique_ptr<IndexShard>, kShards> shards_;
};

}  // namespace kvcommons::disk
