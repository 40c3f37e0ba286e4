// Inside of the store. Order of locks, outermost first; of each kind at most one is held:
//   a session's own mutex > one index shard's > a leaf's own (events, fingerprints, slabs, leases, the session table).
// So that no two threads can wait for each other in a circle: leaves call nobody.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "events.h"
#include "eviction/tenants.h"
#include "eviction/watch.h"
#include "fingerprints.h"
#include "index.h"
#include "leases.h"
#include "records.h"
#include "seq_points.h"
#include "slabs.h"
#include "store.h"

namespace kvcommons {
namespace internal {

struct Filling {
  SlotGrant grant;
  Key key;
  EntryId entry_id = 0;
};

struct Session {
  SessionId id = 0;
  std::uint32_t row = 0;  // in the records
  std::uint32_t fingerprint = 0;
  std::vector<std::uint16_t> layout;
  std::optional<std::uint16_t> own_rect;
  ShardSpec own;
  std::uint32_t readers_per_shard = 1;
  std::uint32_t chunk_pages = 0;  // of all shards
  bool of_node = false;           // internal: no event tells of it
  std::mutex mutex;               // held through each call in its name; guards what follows
  bool closed = false;
  std::unordered_map<std::uint64_t, Filling> filling;  // by offset: the right to seal or to give up a slot
  std::vector<std::uint32_t> quarantined;
};
using SessionPtr = std::shared_ptr<Session>;

// What left the index with an entry: the caller frees the slots, cuts the link and gives the entry's place back when
// the shard is unlocked.
struct Removed {
  EntryId parent_id = 0;
  Entry* entry = nullptr;
  std::vector<std::uint32_t> freed;
  bool had_content = false;
};

struct Counters {
  std::atomic<std::uint64_t> lookups{0}, lookup_chunks{0}, hit_chunks{0}, reserved{0}, committed{0}, aborted{0},
      evicted{0}, cleared{0}, reserve_full{0}, reserve_busy{0}, reserve_exists{0}, checksum_failures{0},
      text_keys_dropped{0}, slabs_taken_back{0}, hinted{0}, expired{0};
  std::atomic<std::uint64_t> chunks{0}, pinned_chunks{0}, filling{0}, sealed{0}, draining{0}, quarantined{0};
  std::atomic<std::uint64_t>* of(SlotState state) noexcept;
};

inline void add(std::atomic<std::uint64_t>& counter, std::uint64_t n = 1) noexcept {
  counter.fetch_add(n, std::memory_order_relaxed);
}

}  // namespace internal

class Store::Impl {
 public:
  Impl(const StoreConfig& config, int arena_fd, int records_fd);
  ~Impl();
  Impl(const Impl&) = delete;  // owns the arena's mapping
  Impl& operator=(const Impl&) = delete;

  // store_sessions.cpp
  Status open_session(const SessionSpec& spec, bool of_node, SessionId* out);
  void close_session(SessionId id);
  void resolve_session(SessionId id);
  std::vector<SessionId> unresolved_sessions() const;
  void note_process(SessionId id, std::uint32_t pid);
  void feedback(SessionId id, std::string json);
  // store_read.cpp
  LookupResult lookup(SessionId id, std::span<const Key> keys, bool lease);
  Status begin(SessionId id, LeaseId lease, std::vector<SlotRef>* out);
  Status release(SessionId id, LeaseId lease);
  void touch(SessionId id, std::span<const Key> keys, const eviction::Hints& hints);
  void expire_leases();
  // store_write.cpp
  Status reserve(SessionId id, std::uint64_t tenant, const Key& parent, std::span<const Key> keys,
                 std::vector<Reservation>* out, const eviction::Hints& hints);
  Status commit(SessionId id, std::span<const CommitItem> items, std::uint32_t* accepted);
  Status abort(SessionId id, std::span<const SlotRef> slots);
  // store_admin.cpp
  std::uint32_t pin(std::span<const Key> keys, bool pinned);
  std::uint64_t clear(const Key* fingerprint);
  // store_select.cpp
  std::uint64_t clear(const Selection& selection, std::vector<Key>* removed);
  std::vector<std::uint8_t> present(const Key& fingerprint, std::span<const Key> keys) const;
  std::uint32_t let_go(const Key& fingerprint, std::span<const Key> keys);
  // store_borrow.cpp
  void set_sealed_hook(std::function<void(std::span<const SealedShard>)> hook) { on_sealed_ = std::move(hook); }
  bool session_spec(SessionId id, SessionSpec* out) const;
  std::vector<std::uint8_t> sealed_shards(SessionId id, std::span<const Key> keys) const;
  std::vector<SealedShard> sealed(std::uint64_t* cursor, std::size_t max) const;
  bool borrow(const Key& fingerprint, const Key& key, const Rect& rect, Borrowed* out);
  void give_back(const Borrowed& borrowed);
  void resolve_former_internal();
  // store_view.cpp
  std::uint32_t lookup_any(const Key& fingerprint, std::span<const Key> keys) const;
  std::vector<InventoryItem> inventory(std::uint64_t* cursor, std::size_t max) const;
  std::vector<FingerprintInfo> fingerprints() const;
  StoreStats stats() const;

  void settle_shadows() {
    if (watch_) {
      watch_->drain();
    }
  }
  [[nodiscard]] bool adopted() const noexcept { return records_.adopted(); }
  internal::EventRing& events() noexcept { return events_; }

 private:
  using Entry = internal::Entry;
  using EntryId = internal::EntryId;
  using IndexShard = internal::IndexShard;
  using Lease = internal::Lease;
  using LeasePtr = internal::LeasePtr;
  using Part = internal::Part;
  using Removed = internal::Removed;
  using Session = internal::Session;
  using SessionPtr = internal::SessionPtr;
  using SlotRecord = internal::SlotRecord;

  // A session of a former life that may still read or write the arena.
  struct Former {
    std::uint32_t row = 0;
    std::vector<std::uint32_t> filling;
    bool of_node = false;
  };
  struct FormerRead {
    std::uint32_t slot = 0;
    std::uint32_t readers = 0;
    EntryId entry_id = 0;  // 0: the slot is no chunk's any more
  };
  struct Adoption;  // store_adopt.cpp

  // store_sessions.cpp
  [[nodiscard]] SessionPtr find_session(SessionId id) const;
  void close_locked(Session& s);
  void quarantine_filling(Session& s);
  void drop_session(const Session& s);
  void drop_row(std::uint32_t row);
  bool resolve_former(SessionId id);
  void release_former_reads();
  // store_read.cpp
  std::uint32_t walk(const Session& s, std::span<const Key> keys, Lease* lease);
  bool present(const Session& s, const IndexShard& shard, const Entry& e, Lease* lease, std::uint64_t tick);
  bool hold(EntryId id);
  void end_lease(const LeasePtr& lease);
  bool add_readers(const Lease& lease, std::size_t part, std::uint32_t* added);
  void drop_readers(const Lease& lease, std::size_t part, std::uint32_t count);
  void drop_reader_locked(std::uint32_t slot, std::uint32_t count, std::vector<std::uint32_t>* freed);
  // store_verify.cpp
  std::optional<Key> find_corrupt(const Lease& lease, std::size_t part);
  bool sampled();
  // store_write.cpp
  struct Wanted {  // what is reserved, beside its key and its parent
    std::uint64_t tenant = 0;
    std::uint64_t epoch = 0;
    eviction::Hints hints;
  };
  Reservation reserve_one(Session& s, const Wanted& wanted, const Key& parent, const Key& key);
  struct Below {  // the chunk before
    EntryId id = 0;
    std::uint32_t position = 0;
  };
  ReserveStatus place(const Session& s, const Wanted& wanted, const Below& below, const Key& key, Entry* fresh,
                      EntryId* entry_id, bool* used);
  void write_grant(const Session& s, std::uint64_t tenant, const Key& parent, const internal::Filling& filling);
  bool seal(Session& s, const internal::Filling& filling, const CommitItem& item);
  bool complete(const Session& s, const IndexShard& shard, const Entry& e) const;
  void free_granted(Session& s, const internal::Filling& filling);
  void drop_part(EntryId entry_id, std::uint16_t rect, std::uint32_t slot);
  // store_evict.cpp
  std::optional<internal::SlotGrant> alloc(std::uint32_t fingerprint, std::uint64_t stride);
  struct Victim {
    internal::Group group;
    std::uint32_t shard = 0;
    internal::Turn turn;
    std::uint64_t tick = 0;  // when it was used
  };
  bool evict(const Victim& victim, std::uint64_t stride);
  std::optional<Victim> victim(std::uint32_t fingerprint, std::uint64_t stride);
  std::optional<Victim> unspared(const internal::Group& group, std::uint64_t stride);
  std::optional<Victim> victim_in(const internal::Group& group, std::uint64_t stride);
  void end_of_session(const Session& s, const Key& key, std::size_t fresh);
  bool take_back(std::uint32_t fingerprint, std::uint64_t stride, bool dead_only, std::uint64_t older_than);
  bool evacuate(const internal::Window& window);
  bool subtree_evictable(std::span<const std::uint32_t> slots);
  bool evict_subtree(EntryId root);
  EntryId find_id(const Key& key);
  std::optional<Key> sealed_key(std::uint32_t slot) const;
  // store_admin.cpp
  Removed remove_locked(IndexShard& shard, Entry& e);
  void after_removal(const Removed& removed);
  void unlink(EntryId parent_id, Entry* child);
  void drop_if_empty_locked(IndexShard& shard, Entry& e, std::optional<Removed>* removed);
  std::uint64_t remove_tree(const Key& root, std::vector<Key>* gone);
  std::vector<std::uint64_t> text_keys(const IndexShard& shard, const Entry& e) const;
  std::uint64_t sealed_ms(const IndexShard& shard, const Entry& e) const;
  void set_state(std::uint32_t slot, SlotState to);
  // store_select.cpp
  [[nodiscard]] bool meant(const IndexShard& shard, const Entry& e, const Selection& selection,
                           std::optional<std::uint32_t> row) const;
  std::vector<Key> meant_in(std::uint32_t shard, const Selection& selection, std::optional<std::uint32_t> row) const;
  // store_adopt.cpp
  void adopt();
  bool adopt_slot(Adoption& adoption, std::uint32_t slot);
  void adopt_refused(Adoption& adoption, std::uint32_t slot);
  void adopt_entries(Adoption& adoption);
  bool adopt_part(std::uint32_t slot, std::uint16_t rect);
  const SlotRecord& record_of(const IndexShard& shard, const Entry& e) const;
  void link_adopted();
  void drop_unreachable(Adoption& adoption);

  [[nodiscard]] std::uint64_t now_ms() const { return config_.now_ms(); }
  std::uint64_t next_ticks(std::uint64_t n) noexcept { return tick_.fetch_add(n, std::memory_order_relaxed) + 1; }

  StoreConfig config_;
  internal::Records records_;
  internal::Slabs slabs_;
  eviction::Policy policy_;
  eviction::Tenants tenants_;
  std::atomic<std::uint64_t> now_s_{0};  // of the timer: what is only needed about
  internal::Index index_;
  internal::Fingerprints fingerprints_;
  internal::Leases leases_;
  internal::EventRing events_;
  mutable internal::Counters counters_;
  std::atomic<std::uint64_t> tick_{0};
  std::atomic<std::uint64_t> sample_{0};
  const std::byte* arena_ = nullptr;
  std::function<void(std::span<const SealedShard>)> on_sealed_;

  mutable std::shared_mutex sessions_mutex_;
  std::unordered_map<SessionId, SessionPtr> sessions_;  // open, or closed and not resolved
  std::uint32_t open_sessions_ = 0, internal_sessions_ = 0, open_engines_ = 0;
  std::vector<std::uint32_t> free_rows_;
  std::unordered_map<SessionId, Former> former_;
  std::vector<FormerRead> former_reads_;

  std::unique_ptr<eviction::Watch> watch_;  // ends before what it follows
};

}  // namespace kvcommons
