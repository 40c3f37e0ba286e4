// What is kept of a chunk: one cache line, and what few chunks need beside it. Where those lines come from, and how
// they are found by a key's hash.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "eviction/policy.h"
#include "types.h"

namespace kvcommons::internal {

// A place for an entry: its number within its shard's pool, and the shard. An entry's id is its place and which life of
// that place it is: an id is never used twice, and 0 is none.
inline constexpr std::uint32_t kShardBits = 4;
inline constexpr std::uint32_t kNowhere = 0xffff'ffff;
using EntryId = std::uint64_t;
constexpr EntryId entry_id(std::uint32_t where, std::uint32_t life) noexcept {
  return std::uint64_t{life} << 32 | where;
}
constexpr std::uint32_t where_of(EntryId id) noexcept { return static_cast<std::uint32_t>(id); }
constexpr std::uint32_t life_of(EntryId id) noexcept { return static_cast<std::uint32_t>(id >> 32); }

// One shard of one chunk. Without a slot: its writer is still looking for room.
struct Part {
  std::uint32_t slot = 0xffff'ffff;
  std::uint32_t stride_pages = 0;
  std::uint16_t rect = 0;  // index within the fingerprint
  bool sealed = false;
};

// A plain entry has one part with a slot, and its key and its tenant are in the slot's record. Others (in several
// parts, without a slot yet, or only there for what follows them) have all that in Aside.
struct alignas(64) Entry {
  static constexpr std::uint8_t kNoCandidate = 3;
  eviction::Chunk use;                 // what policies know of it
  EntryId parent_id = 0;               // 0: first chunk of a chain
  std::atomic<std::uint32_t> life{0};  // of this place: counts up when the entry comes and when it goes
  std::uint32_t where = kNowhere;
  std::uint32_t slot = 0xffff'ffff;  // of a plain one. In the pool: the next free place
  std::uint16_t rect = 0;
  std::uint16_t fingerprint = 0;
  std::uint32_t holds : 24 = 0;  // leases whose deepest chunk this is, and slots that a former life still reads
  std::uint32_t placed : 1 = 0;  // in the table
  std::uint32_t sealed : 1 = 0;  // of a plain one
  std::uint32_t aside : 1 = 0;   // not a plain one
  std::uint32_t pinned : 1 = 0;
  std::uint32_t announced : 1 = 0;             // complete for some layout: a Committed event was sent
  std::uint32_t expires : 1 = 0;               // in the shard's `due`
  std::uint32_t candidate : 2 = kNoCandidate;  // in the shard's candidates, ranked by this policy
  std::uint32_t first_child = kNowhere;
  // Of the parent's other children. These two are guarded by the parent's shard: who adds or takes away a child has
  // that one locked, not the children's.
  std::uint32_t next = kNowhere, previous = kNowhere;
};
static_assert(sizeof(Entry) == 64, "kept for each chunk: a lookup reads one cache line of it");
static_assert(eviction::kKinds <= Entry::kNoCandidate);
inline constexpr std::uint32_t kHoldsMax = (1u << 24) - 1;

struct Aside {
  Key key;
  std::uint64_t tenant = 0;
  std::vector<Part> parts;
};

// Entries that never move. Guarded by its shard's mutex; only at() may be called without.
class EntryPool {
 public:
  EntryPool() = default;
  ~EntryPool();
  EntryPool(const EntryPool&) = delete;  // owns the entries

  Entry* take(std::uint32_t shard);  // null: every place that can be named is in use
  void give(Entry& entry);
  [[nodiscard]] Entry& at(std::uint32_t number) const noexcept {
    const std::uint32_t block = block_of(number);
    return blocks_[block].load(std::memory_order_acquire)[number - first_of(block)];
  }

 private:
  // Blocks of 1,024, 2,048, 4,096 ... entries: the kernel gives their pages when they are first written to.
  static constexpr std::uint32_t kFirstBits = 10, kBlocks = 32 - kShardBits - kFirstBits;
  static std::uint32_t block_of(std::uint32_t number) noexcept {
    return static_cast<std::uint32_t>(std::bit_width((number >> kFirstBits) + 1)) - 1;
  }
  static std::uint32_t first_of(std::uint32_t block) noexcept { return ((1u << block) - 1) << kFirstBits; }

  std::array<std::atomic<Entry*>, kBlocks> blocks_{};
  std::uint32_t fresh_ = 0;  // numbers from here on were never used
  std::uint32_t free_ = kNowhere;
};

// Places by hash: open addressing with linear probing, eight bytes a bucket, at most four fifths of them in use.
class EntryTable {
 public:
  // The first place of this hash that `wanted(place)` holds for; kNowhere: none.
  template <typename Wanted>
  [[nodiscard]] std::uint32_t find(std::uint64_t hash, Wanted wanted) const {
    const auto tag = static_cast<std::uint32_t>(hash);
    if (buckets_.empty()) return kNowhere;
    for (std::size_t i = home_of(tag); buckets_[i].where != kNowhere; i = after(i)) {
      if (buckets_[i].tag == tag && wanted(buckets_[i].where)) return buckets_[i].where;
    }
    return kNowhere;
  }
  void insert(std::uint64_t hash, std::uint32_t where);  // which is not there
  void erase(std::uint64_t hash, std::uint32_t where);   // which is there
  template <typename Visit>
  void each(Visit visit) const {
    for (const Bucket& bucket : buckets_) {
      if (bucket.where != kNowhere) visit(bucket.where);
    }
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  struct Bucket {
    std::uint32_t tag = 0;
    std::uint32_t where = kNowhere;
  };
  [[nodiscard]] std::size_t home_of(std::uint32_t tag) const noexcept {
    return static_cast<std::size_t>(std::uint64_t{tag} * buckets_.size() >> 32);
  }
  [[nodiscard]] std::size_t after(std::size_t i) const noexcept { return i + 1 == buckets_.size() ? 0 : i + 1; }
  void put(const Bucket& bucket) noexcept;
  void grow();

  std::vector<Bucket> buckets_;
  std::size_t size_ = 0;
};

}  // namespace kvcommons::internal
