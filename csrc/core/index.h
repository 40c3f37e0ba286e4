// Chunks by key, in shards with a mutex each. No two shards are ever locked at once: a link between a chunk and its
// parent is made and cut one end at a time, and every end names the other by key and id, so that a stale link is seen.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

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
  [[nodiscard]] std::vector<Key> list() const;
  [[nodiscard]] const Key& any() const noexcept { return many_ ? *many_->begin() : few_.front(); }

 private:
  static constexpr std::size_t kFewMax = 16;
  std::vector<Key> few_;
  std::unique_ptr<std::unordered_multiset<Key, KeyHash>> many_;
};

struct Entry {
  // What a lookup reads comes first, beside the key.
  std::uint64_t id = 0;         // never used twice
  std::uint64_t parent_id = 0;  // 0 = first chunk of a chain
  std::uint64_t tick = 0;
  std::uint32_t fingerprint = 0;
  std::uint32_t holds = 0;  // leases whose deepest chunk this is, and slots that a former life still reads
  bool pinned = false;
  bool announced = false;  // complete for some layout: a Committed event was sent
  bool candidate = false;  // in the shard's candidates
  Parts parts;
  Children children;
  std::uint64_t commit_ms = 0;
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

struct alignas(64) IndexShard {
  using Candidates = std::set<std::pair<std::uint64_t, Entry*>>;  // by last access
  mutable std::mutex mutex;
  std::unordered_map<Key, Entry, KeyHash> entries;
  std::unordered_map<std::uint32_t, Candidates> candidates;  // by fingerprint

  Entry* find(const Key& key) noexcept {
    const auto it = entries.find(key);
    return it == entries.end() ? nullptr : &it->second;
  }
  [[nodiscard]] const Entry* find(const Key& key) const noexcept { return const_cast<IndexShard*>(this)->find(key); }
  Entry* find(const Key& key, std::uint64_t id) noexcept {
    Entry* e = find(key);
    return e != nullptr && e->id == id ? e : nullptr;
  }
  void access(Entry& e, std::uint64_t tick);
  void refresh(Entry& e);  // after anything that evictable() depends on
  void forget(Entry& e);   // out of the candidates; before erasing
  // The least recently used candidate with a slot of that stride; looks at a bounded number.
  Entry* oldest(std::uint32_t fingerprint, std::uint32_t stride_pages);
};

class Index {
 public:
  static constexpr std::uint32_t kShards = 16;
  static_assert((kShards & (kShards - 1)) == 0, "a shard is chosen by bits of the key");

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
