// The chunk store: arena, slabs, slots, index, leases, eviction. Thread-safe; knows no socket and no Python.
//
// Life of a slot: reserve() grants it (FREE -> FILLING, generation + 1) to a session; commit() makes it SEALED and,
// once every shard of the chunk is sealed, visible to lookup(); eviction or clear() makes it FREE, or DRAINING while a
// reader copies. A session that vanishes turns its FILLING slots and the slots it reads into QUARANTINED ones, which
// return only by resolve_session() (the process is proven dead, or came back and said that its work is drained).
//
// Life of a lease: lookup(lease) -> one PENDING part per shard; begin() moves one part to COPYING; release() ends it.
// Time revokes PENDING parts only (expire_leases); a COPYING part ends by release or by resolve_session alone.
//
// What survives the daemon: the arena and the records (a second memfd: slab table, slot records with key, parent,
// fingerprint, rect, state, generation, reader count, checksum). A store opened on records written before rebuilds its
// index; slots that were FILLING or had readers stay QUARANTINED (FILLING) or unevictable (read) until each session
// of the former life is resolved.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eviction/hints.h"
#include "eviction/watch.h"
#include "types.h"

namespace kvcommons {

struct StoreConfig {
  std::uint64_t arena_bytes = 0;
  std::uint64_t slab_bytes = 64ull << 20;       // shrunk to arena/8 (>= kSlabBytesMin, >= one slot) for small arenas
  std::uint32_t lease_pending_ms_max = 30'000;  // a lease that nobody began is revoked after this
  std::uint32_t leases_max = 65'536;
  std::uint32_t sessions_max = 4'096;
  std::uint32_t fingerprints_max = 1'024;
  std::uint32_t events_max = 262'144;  // ring to the daemon; overflow sets a gap flag, never blocks
  std::uint32_t verify_one_in = 64;    // sampled checksum of reads from memory; 0 = never, 1 = always
  // One begin() checks no more than this, or one slot: the server answers others meanwhile. Not where all are checked.
  std::uint64_t verify_bytes_max = 16ull << 20;
  std::string eviction = "lru";            // lru, s3fifo, cost, or auto: whichever its shadow shows to be the best
  std::uint32_t shadow_chunks_max = 0;     // of each policy's shadow; 0 = none, or with auto as many as are good
  std::uint32_t tenant_percent_max = 100;  // of the arena: who holds more gives way first
  std::function<std::uint64_t()> now_ms;   // monotonic; injected by tests
};

using SessionId = std::uint64_t;  // never 0; random high bits, so that a stale one of a former life is not confused
using LeaseId = std::uint64_t;    // never 0; random: knowing it is the right to begin it

struct SessionSpec {
  Key fingerprint;
  std::uint32_t chunk_tokens = 0;
  std::vector<ShardSpec> shards;           // every shard of a chunk for this engine's parallel layout
  std::optional<std::uint32_t> own_shard;  // index into shards; absent for schedulers and tools
  std::uint32_t readers_per_shard = 1;     // ranks that each begin the same shard of a lease (MLA under TP)
};

struct LookupResult {
  std::uint32_t hit_chunks = 0;  // leading chunks whose every shard is sealed
  LeaseId lease = 0;             // 0 if none was asked for, hit_chunks is 0, or leases_max is reached
};

struct Reservation {
  ReserveStatus status = ReserveStatus::Full;
  SlotRef slot;
};

struct CommitItem {
  SlotRef slot;
  std::uint64_t checksum = 0;  // XXH3-64 of the payload, 0 = not computed
  std::span<const std::uint64_t> text_keys;
};

// What the daemon publishes. Events of one store are totally ordered: Freed of a key comes after its Committed.
struct Event {
  // Moved: not the store's own; a tier behind memory has stored or dropped it.
  enum class Kind : std::uint8_t { Committed, Freed, Feedback, SessionOpened, SessionClosed, Moved } kind{};
  Key key{};
  Key fingerprint{};
  std::vector<std::uint64_t> text_keys;  // Committed and Freed: what to publish or unpublish with the key
  std::string json;                      // Feedback: one object, validated as UTF-8 and <= 4 KiB
  std::uint64_t age_ms = 0;              // Freed: time since commit
  std::string tier;                      // of a node with tiers: where the chunk is by now; empty: nowhere
};

struct InventoryItem {
  Key key;
  Key fingerprint;
  std::vector<std::uint64_t> text_keys;
};

// One shard in memory, readable while it is borrowed: neither evicted nor reused, whatever else happens to its chunk.
struct Borrowed {
  Key fingerprint, key;
  SlotRef slot;
  Key parent;
  std::uint64_t tenant = 0, payload_bytes = 0, checksum = 0;
  std::uint32_t chunk_tokens = 0;
  std::vector<std::uint64_t> text_keys;
  std::uint64_t entry_id = 0;  // the store's own
  std::uint32_t slot_id = 0;
};

// One shard that was just committed.
struct SealedShard {
  Key fingerprint, key;
  Rect rect;
  std::uint64_t payload_bytes = 0;
};

// Which chunks are meant: those that agree with all that is given. What follows one in its chain is meant with it where
// it is taken away, for it could never be hit.
struct Selection {
  std::optional<Key> fingerprint;
  std::optional<std::uint64_t> tenant;
  std::vector<Key> keys;         // empty: any
  std::uint64_t age_ms_min = 0;  // since the commit; known of memory alone
  [[nodiscard]] bool whole() const noexcept { return !tenant && keys.empty() && age_ms_min == 0; }
};

struct FingerprintInfo {
  Key key;
  std::uint64_t chunks = 0;         // that can be hit
  std::uint64_t used_bytes = 0;     // of the arena, with what is being filled or still read
  std::vector<std::uint32_t> pids;  // of the processes with a session, where they can be seen from here
};

struct StoreStats {
  std::uint64_t arena_bytes, used_bytes, free_bytes, slabs, slabs_free;
  std::uint64_t chunks, slots_free, slots_filling, slots_sealed, slots_draining, slots_quarantined;
  std::uint64_t sessions, leases_pending, leases_copying, fingerprints, pinned_chunks;
  std::uint64_t lookups, lookup_chunks, hit_chunks, reserved, committed, aborted, evicted, cleared;
  std::uint64_t reserve_full, reserve_busy, reserve_exists, leases_revoked, checksum_failures, events_dropped;
  std::uint64_t text_keys_dropped, sessions_unresolved, cold_starts, slabs_taken_back;
  std::uint64_t
      engines;  // sessions without a shard of their own: an engine's scheduler, one for each data-parallel rank
  // What each policy's shadow found of what its sample was asked for; the policy in force, in their order.
  std::uint64_t shadow_asked_chunks, shadow_hit_chunks_lru, shadow_hit_chunks_s3fifo, shadow_hit_chunks_cost;
  std::uint64_t shadow_one_in, shadow_dropped, eviction_policy, eviction_policy_changes, hinted_chunks, expired_chunks;
};

class Store {
 public:
  // Takes ownership of nothing: fds stay the caller's and outlive the store. Throws std::invalid_argument with the
  // field, the value and the remedy on a bad configuration; std::system_error when mapping fails.
  // records_fd holds records_bytes(config) bytes; a fresh (all-zero) one is formatted, a written one is adopted, a
  // foreign or torn header is formatted anew and counted as a cold start: then nothing is known of who still reads the
  // arena, so the caller gives such a store a fresh arena. The records are sparse: do not populate or prefault them.
  Store(const StoreConfig& config, int arena_fd, int records_fd);
  ~Store();
  Store(const Store&) = delete;  // two stores over one arena would grant a slot twice
  Store& operator=(const Store&) = delete;

  static std::uint64_t records_bytes(const StoreConfig& config);
  [[nodiscard]] bool adopted() const noexcept;  // true: content of a former life is being served

  // Sessions. A fingerprint's shards may differ between engines (TP 2 beside TP 4): each lookup asks for its own
  // session's shards. One (fingerprint, rect) has one slot size and one fingerprint one chunk_tokens for ever (0: a
  // tool that does not know): else BadFingerprint. A slot that the arena cannot hold at all: TooLarge. Calls in the
  // name of one session are serialised inside; different sessions run beside each other.
  Status open_session(const SessionSpec& spec, SessionId* out);
  // The connection ended. PENDING parts are revoked now; FILLING and COPYING slots become quarantined until resolved.
  void close_session(SessionId session);
  // The process is proven dead or said "drained": everything still held in its name is freed. Unknown ids are ignored.
  void resolve_session(SessionId session);
  void note_process(SessionId session, std::uint32_t pid);  // for fingerprints()
  // Sessions of a former life that still hold something, for which the daemon must find proof.
  std::vector<SessionId> unresolved_sessions() const;

  LookupResult lookup(SessionId session, std::span<const Key> keys, bool lease);
  // Moves the caller's own shard of `lease` to COPYING; out has one SlotRef per leased chunk. Gone if revoked, cleared
  // or found corrupt; Busy if the session copies it already; Denied without a shard of that lease.
  Status begin(SessionId session, LeaseId lease, std::vector<SlotRef>* out);
  // Worker: ends its part. Scheduler (the session that looked up): revokes the parts that nobody began.
  Status release(SessionId session, LeaseId lease);
  // keys are consecutive chunks of one chain; parent is the key before keys[0], or zero for the first chunk of a chain.
  // Evicts to make room; never blocks. out has one entry per key. Busy also where a clear() passed meanwhile.
  // The hints hold for the chunks that are new; session_end also for those before them that no other chain shares.
  Status reserve(SessionId session, std::uint64_t tenant, const Key& parent, std::span<const Key> keys,
                 std::vector<Reservation>* out, const eviction::Hints& hints = {});
  Status commit(SessionId session, std::span<const CommitItem> items, std::uint32_t* accepted);
  // The copy was given up and is drained: slots become FREE.
  Status abort(SessionId session, std::span<const SlotRef> slots);
  // keys: consecutive chunks of one chain, if there are hints.
  void touch(SessionId session, std::span<const Key> keys, const eviction::Hints& hints = {});
  void feedback(SessionId session, std::string json);

  std::uint32_t lookup_any(const Key& fingerprint, std::span<const Key> keys) const;  // control API: no lease, no touch
  std::uint32_t pin(std::span<const Key> keys, bool pinned);                          // returns how many were found
  std::uint64_t clear(
      const Key* fingerprint);  // nullptr = all; chunks being copied become DRAINING; returns chunks removed
  // The same of some. Each key that went is added to *removed.
  std::uint64_t clear(const Selection& selection, std::vector<Key>* removed);
  // Whether each of these can be read by some engine, wherever it stands in its chain.
  std::vector<std::uint8_t> present(const Key& fingerprint, std::span<const Key> keys) const;
  // As eviction would, from the last one on, until one that is read, pinned or built upon. Returns how many went.
  std::uint32_t let_go(const Key& fingerprint, std::span<const Key> keys);

  // For the node itself: what moves chunks between memory and the tiers behind it. store_borrow.cpp.
  // Called with what each commit of an engine has sealed (not with what internal sessions have), on the committer's
  // thread, while that session waits: it must be quick. Set before anybody else uses the store.
  void set_sealed_hook(std::function<void(std::span<const SealedShard>)> on_sealed);
  bool session_spec(SessionId session, SessionSpec* out) const;
  // Whether each shard of the session's layout is sealed, for each key: keys.size() x shards, or empty for a session
  // that is gone.
  std::vector<std::uint8_t> sealed_shards(SessionId session, std::span<const Key> keys) const;
  bool borrow(const Key& fingerprint, const Key& key, const Rect& rect, Borrowed* out);
  void give_back(const Borrowed& borrowed);  // exactly once
  // Every shard that is sealed, by place in the arena; pages as inventory() does.
  std::vector<SealedShard> sealed(std::uint64_t* cursor, std::size_t max) const;
  // A session of the node's own: no process, no event. It must hold nothing when it is closed.
  Status open_internal(const SessionSpec& spec, SessionId* out);
  void close_internal(SessionId session);
  // Those of a former life, once nothing that it had begun can still write into the arena.
  void resolve_former_internal();

  void expire_leases();  // called on a timer
  // Up to max events, in order; *gap is set once after an overflow.
  std::vector<Event> drain_events(std::size_t max, bool* gap);
  void set_event_callback(std::function<void()> on_events);  // called outside locks when the ring becomes non-empty
  // Pages through what is sealed and complete. cursor 0 starts; returned cursor 0 ends.
  std::vector<InventoryItem> inventory(std::uint64_t* cursor, std::size_t max) const;
  std::vector<FingerprintInfo> fingerprints() const;
  StoreStats stats() const;
  void settle_shadows();  // until they have seen what passed so far; for tests

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvcommons
