// Chunks by key, in shards with a mutex each. No two shards are ever locked at once: a link between a chunk and its
// parent is made and cut one end at a time, and every end names the other by key and id, so that a stale link is seen.
#pragma once

#include <array>
#include <atomic>
#include <compare>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "eviction/policy.h"
#include "records.h"
#include "types.h"

namespace kvcommons::internal {

// One shard of one chunk. Without a slot: its writer is still looking for room.
struct Part {
  std::uint64_t offset_bytes = 0;
  std::uint32_t slot = kNoSlot;
  std::uint32_t generation = 0;
  std::uint32_t stride_pages = 0;
  std::uint16_t rect = 0;  // index within the fingerprint
  bool sealed = false;
};

// Nearly always one: kept in the entry, for each further place in memory costs a lookup a miss of the cache.
class Parts {
 public:
  [[nodiscard]] Part* begin() noexcept { return many_.empty() ? &one_ : many_.data(); }
  [[nodiscard]] Part* end() noexcept { return begin() + size_; }
  [[nodiscard]] const Part* begin() const noexcept { return many_.empty() ? &one_ : many_.data(); }
  [[nodiscard]] const Part* end() const noexcept { return begin() + size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  void push_back(const Part& part);
  void erase(const Part* part);

 private:
  Part one_;
  std::uint32_t size_ = 0;
  std::vector<Part> many_;  // all of them once there were two
};

// Keys of the chunks that follow. A key counts once for each link made, so that making and cutting commute.
class Children {
 public:
  void add(const Key& key);
  bool remove(const Key& key);  // false: there was no such link
  [[nodiscard]] bool empty() const noexcept { return few_.empty() && (!many_ || many_->empty()); }
  [[nodiscard]] std::size_t size() const noexcept { return many_ ? many_->size() : few_.size(); }
  [[nodiscard]] std::vector<Key> list() const;
  [[nodiscard]] const Key& any() const noexcept { return many_ ? *many_->begin() : few_.front(); }

 private:
  static constexpr std::size_t kFewMax = 16;
  std::vector<Key> few_;
  std::unique_ptr<std::unordered_multiset<Key, KeyHash>> many_;
};

struct Entry {
  static constexpr std::uint8_t kNoCandidate = 0xff;
  // What a lookup reads comes first, beside the key.
  std::uint64_t id = 0;         // never used twice
  std::uint64_t parent_id = 0;  // 0 = first chunk of a chain
  std::uint32_t fingerprint = 0;
  std::uint32_t holds = 0;  // leases whose deepest chunk this is, and slots that a former life still reads
  bool pinned = false;
  bool announced = false;                 // complete for some layout: a Committed event was sent
  bool expires = false;                   // in the shard's `due`
  std::uint8_t candidate = kNoCandidate;  // in the shard's candidates, ranked by this policy
  Parts parts;
  eviction::Chunk use;  // what policies know of it
  Children children;
  std::uint64_t commit_ms = 0;
  std::uint64_t tenant = 0;
  Key parent;
  const Key* key = nullptr;  // the map's own

  [[nodiscard]] const Part* find(std::uint16_t rect) const noexcept {
    for (const Part& p : parts) {
      if (p.rect == rect) {
        return &p;
      }
    }
    return nullptr;
  }
  [[nodiscard]] Part* find(std::uint16_t rect) noexcept {
    return const_cast<Part*>(static_cast<const Entry*>(this)->find(rect));
  }
  [[nodiscard]] bool evictable() const noexcept;
};

// Whose candidates: all of a fingerprint, or those of one tenant in it.
struct Group {
  std::uint32_t fingerprint = 0;
  bool one_tenant = false;
  std::uint64_t tenant = 0;
  friend bool operator==(const Group&, const Group&) = default;
};
struct GroupHash {
  std::size_t operator()(const Group& g) const noexcept {
    return static_cast<std::size_t>((g.tenant + (g.one_tenant ? 1 : 0)) * 0x9e37'79b9'7f4a'7c15ULL ^ g.fingerprint);
  }
};

// A place in the order of eviction, to compare those of several shards.
struct Turn {
  std::uint8_t when = 0;  // marked ones first; then from the policy's start on; then those before it
  eviction::Rank rank;
  friend auto operator<=>(const Turn&, const Turn&) = default;
};

struct alignas(64) IndexShard {
  using Ranked = std::set<std::pair<eviction::Rank, Entry*>>;
  // By the policy that they were ranked under: after a change they are ranked anew some at a time.
  using Candidates = std::array<Ranked, eviction::kKinds>;
  struct Due {
    std::uint64_t at_s = 0;
    std::uint16_t ttl_s = 0;
  };
  mutable std::mutex mutex;
  std::unordered_map<Key, Entry, KeyHash> entries;
  std::unordered_map<Group, Candidates, GroupHash> candidates;
  std::set<std::pair<std::uint64_t, Entry*>> due;  // when each was not used for its time
  std::unordered_map<Entry*, Due> due_of;
  eviction::Policy* policy = nullptr;
  const std::atomic<std::uint64_t>* now_s = nullptr;  // of the timer: coarse
  bool by_tenant = false;                             // candidates are kept for each tenant, too

  Entry* find(const Key& key) noexcept {
    const auto it = entries.find(key);
    return it == entries.end() ? nullptr : &it->second;
  }
  [[nodiscard]] const Entry* find(const Key& key) const noexcept { return const_cast<IndexShard*>(this)->find(key); }
  Entry* find(const Key& key, std::uint64_t id) noexcept {
    Entry* e = find(key);
    return e != nullptr && e->id == id ? e : nullptr;
  }
  void came(Entry& e, std::uint32_t pages, std::uint32_t position, std::uint64_t tick);
  void went(Entry& e);  // before erasing, for whatever reason
  void access(Entry& e, std::uint64_t tick);
  void refresh(Entry& e);                            // after anything that evictable() depends on
  void forget(Entry& e);                             // out of the candidates; before anything that its rank depends on
  void mark(Entry& e);                               // to go before all others, until it is used again
  void expire_after(Entry& e, std::uint16_t ttl_s);  // 0: never
  std::size_t mark_due(std::size_t max);             // of those whose time has come; returns how many
  // The candidate to go first, with a slot of that stride; looks at a bounded number.
  Entry* victim(const Group& group, std::uint32_t stride_pages);
  [[nodiscard]] Turn turn(const Entry& e) const noexcept;

 private:
  template <typename Visit>
  void each_group(const Entry& e, Visit visit);
  void rank_anew(Candidates& ranked, eviction::Kind kind);
};

class Index {
 public:
  static constexpr std::uint32_t kShards = 16;
  static_assert((kShards & (kShards - 1)) == 0, "a shard is chosen by bits of the key");

  Index(eviction::Policy* policy, const std::atomic<std::uint64_t>* now_s, bool by_tenant) {
    for (IndexShard& shard : shards_) {
      shard.policy = policy;
      shard.now_s = now_s;
      shard.by_tenant = by_tenant;
    }
  }

  // Not the bytes that hash within a shard.
  static std::uint32_t shard_of(const Key& key) noexcept { return key.bytes[kKeyBytes - 1] & (kShards - 1); }
  IndexShard& of(const Key& key) noexcept { return shards_[shard_of(key)]; }
  const IndexShard& of(const Key& key) const noexcept { return shards_[shard_of(key)]; }
  IndexShard& at(std::uint32_t i) noexcept { return shards_[i]; }
  const IndexShard& at(std::uint32_t i) const noexcept { return shards_[i]; }

 private:
  std::array<IndexShard, kShards> shards_;
};

}  // namespace kvcommons::internal
