// One lock's part of the index: entries in pages that never move, an open hash table of their numbers, and for each
// segment the list of its entries.
#pragma once

#include <mutex>
#include <unordered_map>

#include "tiers/disk_index.h"

namespace kvcommons::disk {

inline constexpr std::uint32_t kNone = 0xffff'ffff;

class IndexShard {
 public:
  IndexShard(std::uint32_t segments, EventRing* events) : heads_(segments, kNone), events_(events) {}
  ~IndexShard();
  IndexShard(const IndexShard&) = delete;  // owns entries' text keys

  // restoring: the device that is read back, or null.
  DiskIndex::Put put(const Extent& extent, Place place, const SegmentRange* restoring);
  DiskIndex::Put replace(const Extent& extent, Place place);
  std::optional<Found> find(const ShardId& id) const;
  bool describe(const ShardId& id, Resident* out) const;
  void touch(const ShardId& id);
  bool erase(const ShardId& id, const Place* only_at);
  bool erase_within(const ShardId& id, SegmentRange within);
  bool move(const ShardId& id, Place from, Place to);
  void list_segment(std::uint32_t segment, std::vector<Resident>* out) const;
  std::uint64_t erase_segment(std::uint32_t segment);
  std::uint64_t clear(const Key* fingerprint, SegmentRange within);
  // From entry `*next` on; true: there may be more, *next says where.
  bool list(std::uint32_t* next, std::size_t max, std::vector<ShardMeta>* out) const;
  void add_up(std::uint64_t* shards, std::uint64_t* used, std::uint64_t* metadata) const;

 private:
  struct Entry {
    Key key, parent;
    std::uint64_t checksum;
    std::uint64_t text;  // the key itself where there is one, else the address of an array that this entry owns
    std::uint32_t kind, payload_bytes, segment, block;
    std::uint32_t next, previous;  // of its segment; next also of the free ones
    std::uint8_t text_keys, hot, used;
  };
  static_assert(sizeof(Entry) == 112, "10^6 shards have 200 bytes each, the table and the pages' slack included");

  // What many shards have in common.
  struct Kind {
    Key fingerprint;
    Rect rect;
    std::uint64_t tenant = 0;
    std::uint32_t chunk_tokens = 0;
    std::uint16_t codec = 0, codec_group = 0;
    std::uint64_t raw_bytes = 0;
    friend bool operator==(const Kind&, const Kind&) = default;
  };
  // A place of the hash table: the hash beside the number, so that a search touches no entry but the right one.
  struct Slot {
    std::uint32_t number = kNone;
    std::uint32_t hash = 0;
  };
  struct KindHash {
    std::size_t operator()(const Kind& k) const noexcept;
  };
  struct CountedKind {
    Kind kind;
    std::uint32_t entries = 0;
  };
  static constexpr std::uint32_t kPageEntries = 512;
  static constexpr std::size_t kKindsMax = 1u << 18;

  [[nodiscard]] Entry& at(std::uint32_t number) const { return pages_[number / kPageEntries][number % kPageEntries]; }
  [[nodiscard]] std::size_t slot_of(const ShardId& id) const noexcept;  // its place, or the empty one where it would be
  [[nodiscard]] Entry* entry_of(const ShardId& id) const noexcept;
  [[nodiscard]] Extent extent_at(const Entry& entry) const noexcept;
  std::uint32_t intern(const Extent& extent);
  std::uint32_t allocate();
  void grow_table();
  void link(std::uint32_t number, std::uint32_t segment);
  void unlink(std::uint32_t number);
  void remove_at(std::size_t slot);                                     // tells nothing
  bool insert_at(std::size_t slot, const Extent& extent, Place place);  // false: too many kinds

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Entry[]>> pages_;
  std::vector<Slot> table_;
  std::vector<std::uint32_t> heads_;
  std::vector<CountedKind> kinds_;
  std::vector<std::uint32_t> free_kinds_;
  std::unordered_map<Kind, std::uint32_t, KindHash> kind_numbers_;
  std::uint32_t free_entry_ = kNone;
  std::uint32_t count_ = 0;
  std::uint64_t used_blocks_ = 0, text_bytes_ = 0;
  EventRing* events_;
};

}  // namespace kvcommons::disk
