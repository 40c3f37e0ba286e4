// Chunks by key, in shards with a mutex each. No two shards are ever locked at once: a link between a chunk and its
// parent is made and cut one end at a time, and every end names the other by its id, so that a stale link is seen.
//
// Life of an entry: make() takes a place for it; link() hangs it on its parent, which then stays; place() makes it to
// be found. remove() takes it out of all but its parent's children; unlink() takes it from there; drop() gives the
// place back. What is linked and not placed, or removed and still linked, is found by nobody.
#pragma once

#include <array>
#include <atomic>
#include <compare>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "eviction/policy.h"
#include "index_entry.h"
#include "key_hash.h"
#include "records.h"
#include "types.h"

namespace kvcommons::internal {

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
  EntryPool pool;
  EntryTable table;
  std::unordered_map<const Entry*, Aside> aside;
  std::unordered_map<Group, Candidates, GroupHash> candidates;
  std::set<std::pair<std::uint64_t, Entry*>> due;  // when each was not used for its time
  std::unordered_map<Entry*, Due> due_of;
  eviction::Policy* policy = nullptr;
  const std::atomic<std::uint64_t>* now_s = nullptr;  // of the timer: coarse
  bool by_tenant = false;                             // candidates are kept for each tenant, too

  const Records* records = nullptr;
  std::uint32_t number = 0;

  // Entries.
  Entry* find(const Key& key) noexcept { return find(key, key_hash(key)); }
  Entry* find(const Key& key, std::uint64_t hash) noexcept;
  [[nodiscard]] const Entry* find(const Key& key) const noexcept { return const_cast<IndexShard*>(this)->find(key); }
  Entry* find(EntryId id) noexcept {
    if (id == 0) return nullptr;
    Entry& e = pool.at(where_of(id) >> kShardBits);
    return e.placed && e.life.load(std::memory_order_relaxed) == life_of(id) ? &e : nullptr;
  }
  // By the hash alone, for who has no more: adoption.
  Entry* find_hash(std::uint64_t hash) noexcept;
  static EntryId id_of(const Entry& e) noexcept { return entry_id(e.where, e.life.load(std::memory_order_relaxed)); }
  Entry* make() { return pool.take(number); }  // null: full
  void place(Entry& e, const Key& key, std::uint64_t tenant);
  void remove(Entry& e);  // after went(); its ids are stale from now on
  void drop(Entry& e) { pool.give(e); }
  template <typename Visit>
  void each(Visit visit) const {
    table.each([&](std::uint32_t where) { visit(pool.at(where >> kShardBits)); });
  }

  // What a plain entry has in its record. index_parts.cpp.
  [[nodiscard]] Key key_of(const Entry& e) const;
  [[nodiscard]] std::uint64_t tenant_of(const Entry& e) const;
  [[nodiscard]] std::optional<Part> part_of(const Entry& e, std::uint16_t rect) const {
    if (!e.aside) return e.rect == rect ? std::optional(plain_part(e)) : std::nullopt;
    return aside_part(e, rect);
  }
  template <typename Visit>
  void each_part(const Entry& e, Visit visit) const {
    if (!e.aside) return visit(plain_part(e));
    for (const Part& part : aside.at(&e).parts) visit(part);
  }
  template <typename Holds>
  [[nodiscard]] bool any_part(const Entry& e, Holds holds) const {
    bool any = false;
    each_part(e, [&](const Part& part) { any = any || holds(part); });
    return any;
  }
  void add_part(Entry& e, const Part& part);
  void set_slot(Entry& e, std::uint16_t rect, std::uint32_t slot);  // whose record names the entry's key and tenant
  void set_sealed(Entry& e, std::uint16_t rect);
  void drop_part(Entry& e, std::uint16_t rect);
  [[nodiscard]] bool no_parts(const Entry& e) const { return e.aside && aside.at(&e).parts.empty(); }
  [[nodiscard]] bool evictable(const Entry& e) const;

  // Eviction. index.cpp.
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
  static Part plain_part(const Entry& e) noexcept { return {e.slot, e.use.pages, e.rect, e.sealed != 0}; }
  [[nodiscard]] std::optional<Part> aside_part(const Entry& e, std::uint16_t rect) const;
  [[nodiscard]] bool is_key(const Entry& e, const Key& key) const noexcept;
  Aside& unfold(Entry& e);
  void fold(Entry& e);
  template <typename Visit>
  void each_group(const Entry& e, Visit visit);
  void rank_anew(Candidates& ranked, eviction::Kind kind);
};

class Index {
 public:
  static constexpr std::uint32_t kShards = 1u << kShardBits;

  Index(const Records* records, eviction::Policy* policy, const std::atomic<std::uint64_t>* now_s, bool by_tenant);

  static std::uint32_t shard_of(std::uint64_t hash) noexcept {
    return static_cast<std::uint32_t>(hash >> (64 - kShardBits));
  }
  IndexShard& of(const Key& key) noexcept { return shards_[shard_of(key_hash(key))]; }
  const IndexShard& of(const Key& key) const noexcept { return shards_[shard_of(key_hash(key))]; }
  IndexShard& of(EntryId id) noexcept { return shards_[where_of(id) & (kShards - 1)]; }
  IndexShard& at(std::uint32_t i) noexcept { return shards_[i]; }
  const IndexShard& at(std::uint32_t i) const noexcept { return shards_[i]; }

  // Of a parent whose shard is locked. A child may be one that nobody finds (any more).
  void link(Entry& parent, Entry& child) noexcept;
  void unlink(Entry& parent, std::uint32_t child) noexcept;
  [[nodiscard]] std::vector<EntryId> children(const Entry& parent) const;
  [[nodiscard]] EntryId any_child(const Entry& parent) const noexcept;  // 0: none
  [[nodiscard]] bool several_children(const Entry& parent) const noexcept;

 private:
  [[nodiscard]] Entry& entry(std::uint32_t where) const noexcept {
    return shards_[where & (kShards - 1)].pool.at(where >> kShardBits);
  }
  std::array<IndexShard, kShards> shards_;
};

}  // namespace kvcommons::internal
