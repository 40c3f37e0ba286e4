// Inside of the tier manager. One mutex guards what callers and the mover share; it is never held over a call of the
// store or of a tier.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "tiers/budget.h"
#include "tiers/manager.h"
#include "tiers/prefill_meter.h"

namespace kvcommons {

// A slot of this shard, and one of each shard of a chunk.
inline std::uint64_t room_of(const ShardSpec& shard) {
  return (shard.slot_bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes;
}
inline std::uint64_t room_of(const SessionSpec& spec) {
  std::uint64_t bytes = 0;
  for (const ShardSpec& shard : spec.shards) bytes += room_of(shard);
  return bytes;
}

class TierManager::Impl {
 public:
  Impl(const TierManagerConfig& config, Store* store, std::vector<std::shared_ptr<Tier>> tiers);
  ~Impl() { stop(); }
  Impl(const Impl&) = delete;  // owns the mover

  // manager.cpp
  void start();
  void stop();
  int where(const Key& fingerprint, const Key& key);
  void know(const ShardId& id);
  std::vector<Rect> rects_of(const Key& fingerprint);
  [[nodiscard]] std::span<const std::shared_ptr<Tier>> tiers() const { return tiers_; }
  [[nodiscard]] TierManagerStats stats() const;
  [[nodiscard]] bool idle() const;
  // manager_select.cpp
  std::uint64_t clear(const Selection& selection, Places places, std::span<std::uint64_t> tier_shards);
  std::vector<Places> places(const Key& fingerprint, std::span<const Key> keys);
  // manager_move.cpp
  std::uint64_t write(const Key& fingerprint, std::span<const Key> keys);
  Expected bring(const Key& fingerprint, std::span<const Key> keys);
  Expected bring_from(std::string_view peer, const SessionSpec& spec, std::uint64_t tenant, std::span<const Key> keys);
  bool layout_of(const Key& fingerprint, const Key& key, SessionSpec* spec, std::uint64_t* tenant);
  std::uint64_t remove(std::size_t tier, const Key& fingerprint, std::span<const Key> keys);
  // manager_wanted.cpp
  Expected wanted(SessionId session, std::uint64_t tenant, std::span<const Key> keys, std::uint32_t hit_chunks);
  Expected wanted_as(const SessionSpec& spec, std::uint64_t tenant, std::span<const Key> keys,
                     std::uint32_t hit_chunks);
  Expected wanted_by_peer(const SessionSpec& spec, std::span<const Key> keys, std::uint32_t hit_chunks);
  [[nodiscard]] double tokens_per_second() const;

 private:
  // A model's chunks as one kind of engine cuts them.
  struct Layout {
    SessionSpec spec;                                      // without own_shard
    std::unordered_set<Key, KeyHash> coming;               // in a chain, neither committed nor given up
    std::unordered_map<Key, std::uint64_t, KeyHash> sour;  // what did not come, and until when nobody asks again
    std::uint32_t chains = 0;
    std::vector<SessionId> sessions;  // the mover's: one for each shard, while a chain uses them
  };
  using LayoutPtr = std::shared_ptr<Layout>;

  struct Write {
    std::vector<Borrowed> borrowed;
    std::vector<ShardId> ids;
    std::vector<TierStatus> statuses;
    std::uint64_t bytes = 0, epoch = 0;
    Tier* tier = nullptr;
    std::size_t way = 0;
  };
  using WritePtr = std::shared_ptr<Write>;

  // Out of memory: to the first of the node's own tiers that serves, or to one that it shares with others. None waits
  // for another.
  struct WayOut {
    std::shared_ptr<Tier> shared;  // null: to the node's own
    std::deque<SealedShard> waiting;
    tiers::Budget budget;  // the mover's
  };

  struct Chain;
  struct Read {
    struct Slot {
      std::size_t chunk = 0;  // within the chain
      std::size_t shard = 0;
      SlotRef slot;
    };
    std::shared_ptr<Chain> chain;
    std::size_t first = 0, chunks = 0;
    std::vector<Slot> slots;
    std::vector<GetResult> results;
    std::uint64_t bytes = 0;
    bool over = false;
  };
  using ReadPtr = std::shared_ptr<Read>;

  // What one lookup wants: consecutive chunks, the first one's parent in memory or on its way there.
  struct Chain {
    LayoutPtr layout;
    std::uint64_t tenant = 0;
    Key parent;
    std::vector<Key> keys;
    std::vector<std::uint8_t> tier;  // of each chunk
    std::size_t next = 0;            // the first that no batch has
    std::deque<ReadPtr> reads;       // in order
    std::optional<std::uint64_t> busy_since_ms;
    bool broken = false;                // a chunk did not come: nothing behind it is committed
    std::atomic<bool> given_up{false};  // nothing more is begun
    [[nodiscard]] const Key& parent_of(std::size_t chunk) const { return chunk == 0 ? parent : keys[chunk - 1]; }
  };
  using ChainPtr = std::shared_ptr<Chain>;

  using KeySet = std::unordered_set<Key, KeyHash>;
  struct Cleared {
    std::uint64_t epoch = 0;
    Selection selection;  // without its keys
    Places places = kEverywhere;
    std::shared_ptr<const KeySet> keys;  // null: any
    [[nodiscard]] bool covers(const ShardId& id, std::uint64_t tenant) const;
  };

  struct Counters {
    std::atomic<std::uint64_t> write_in_flight_bytes{0}, written{0}, written_bytes{0}, write_dropped{0},
        write_missed{0}, write_refused{0}, write_there{0}, read_chains{0}, read_in_flight_bytes{0}, promoted{0},
        promoted_bytes{0}, promoted_chunks{0}, read_failed{0}, read_refused{0}, read_no_room{0}, clears{0};
  };

  // manager.cpp
  void run();
  bool step();
  void settle_ended(std::vector<WritePtr> writes, std::vector<ReadPtr> reads);
  void wake_locked();
  void end_stopping_locked();
  [[nodiscard]] bool idle_locked() const;
  [[nodiscard]] std::size_t writes_waiting_locked() const;
  [[nodiscard]] bool fenced_locked() const;  // nothing may be brought in
  bool list_some();
  void know_rect_locked(const Key& fingerprint, const Rect& rect);
  // manager_select.cpp
  KeySet with_what_follows(Tier& tier, const Selection& selection);
  std::uint64_t clear_tier(Tier& tier, const Selection& selection, const KeySet* keys);
  std::uint64_t clear_places(const Selection& selection, Places places, std::span<std::uint64_t> tier_shards,
                             KeySet* gone);
  // manager_write.cpp
  void sealed(std::span<const SealedShard> shards);
  Tier* writable(const WayOut& way) const;
  bool write_some();
  bool write_some(std::size_t way);
  void count_in_flight();
  void prepare(const std::vector<SealedShard>& shards, Write* write, std::vector<PutItem>* items);
  void write_ended(Write& write);
  void not_written(const Write& write, const std::vector<SealedShard>& shards);
  void remove_cleared(const Write& write);
  // manager_wanted.cpp
  LayoutPtr layout_locked(const SessionSpec& spec);
  bool touch_some();
  struct Asked {
    SessionSpec spec;
    std::uint64_t tenant = 0;
    bool by_peer = false;     // what is other nodes' is not asked for
    std::string_view from{};  // the only one to be asked, outside of which nothing is sought
  };
  Expected wanted_for(const Asked& asked, std::span<const Key> keys, std::uint32_t hit_chunks);
  std::size_t on_tiers(const Asked& asked, std::span<const Key> keys, std::vector<std::uint8_t>* tier);
  bool seek(const Asked& asked, std::span<const Key> keys);
  // manager_read.cpp
  bool read_some();
  ChainPtr next_chain();
  ReadPtr reserve_batch(const ChainPtr& chain);
  bool open_sessions(Layout& layout);
  std::size_t reserve_shards(Chain& chain, std::size_t chunks, std::vector<Read::Slot>* slots);
  void give_up(Chain& chain, std::size_t at_chunk);
  bool begin(const ReadPtr& read);
  void settle_reads(const ChainPtr& chain);
  std::size_t commit_batch(Read& read);
  [[nodiscard]] bool whole(const Read& read, std::size_t item) const;
  void abort_slots(const Chain& chain, std::span<const Read::Slot> slots, std::size_t from_chunk);
  void end_if_over(const ChainPtr& chain);

  [[nodiscard]] std::uint64_t now_ms() const { return config_.now_ms(); }
  static void add(std::atomic<std::uint64_t>& counter, std::uint64_t n = 1) {
    counter.fetch_add(n, std::memory_order_relaxed);
  }

  TierManagerConfig config_;
  Store* store_;
  std::vector<std::shared_ptr<Tier>> tiers_;
  tiers::Budget read_budget_;  // the mover's
  Counters counters_;

  mutable std::mutex mutex_;
  std::condition_variable changed_, quiet_changed_;
  bool woken_ = false, stopping_ = false, quiet_ = false;  // quiet: no tier is called any more
  std::uint64_t stop_at_ms_ = 0;
  std::uint64_t under_way_ = 0;  // batches that a tier has
  std::uint64_t epoch_ = 1, clearing_ = 0;
  std::vector<Cleared> cleared_;          // as long as a write from before it is under way
  std::multiset<std::uint64_t> writing_;  // epochs of the writes under way
  std::vector<WayOut> ways_;              // as many as there are from the start
  std::deque<ChainPtr> chains_;
  std::deque<std::pair<LayoutPtr, std::vector<Key>>> touches_;  // of lookups that memory answered
  std::vector<WritePtr> ended_writes_;
  std::vector<ReadPtr> ended_reads_;
  std::vector<LayoutPtr> layouts_;
  std::unordered_map<Key, std::vector<Rect>, KeyHash> rects_;
  std::optional<std::uint64_t> resolve_at_ms_;
  tiers::PrefillMeter meter_;
  std::optional<std::uint64_t> listed_to_;  // of what a former life left in memory: it may have been written nowhere
  std::thread thread_;                      // last: it uses the others
};

}  // namespace kvcommons
