// What moves chunks between memory and the tiers behind it. One thread of its own makes every call of the store; the
// tiers' threads only tell it that a batch has ended; nobody who calls it waits for a medium.
//
// Out: every shard that an engine commits is written behind it to the first tier that takes writes, and to each that is
// shared with other nodes; each of these ways has a queue of its own. What a queue has no room for, or what was evicted
// before its turn came, is not written, and counted.
// In: a lookup that memory answers in part asks wanted(). What a tier has of the rest is read into slots of the node's
// own sessions, batch by batch, the prefix first; several batches read at once, and a batch is committed when all
// before it are. Whatever fails ends its chain there: the engine computes from that chunk on.
//
// A cleared chunk does not come back: what was read for it finds its slot gone, what was being written is removed when
// the write has ended, and until then nothing is brought in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "store.h"
#include "tier.h"

namespace kvcommons {

struct TierManagerConfig {
  std::uint64_t arena_bytes = 0;
  std::byte* arena = nullptr;                    // writable, the store's; outlives the manager
  std::size_t write_queue_max = 65'536;          // shards that wait to be written
  std::size_t chains_max = 256;                  // chains that are brought in at one time
  std::uint64_t batch_bytes = 4ull << 20;        // what one call of a tier moves, or one chunk
  std::uint64_t write_bytes_in_flight_max = 0;   // 0: an eighth of the arena
  std::uint64_t read_bytes_in_flight_max = 0;    // 0: a quarter of the arena
  std::uint64_t write_bytes_per_second_max = 0;  // 0: as the tier takes them
  std::uint64_t read_bytes_per_second_max = 0;
  std::uint32_t failed_ms = 1'000;        // for so long nothing is expected behind a chunk that did not come
  std::uint32_t stop_ms_max = 2'000;      // for so long a stop writes what still waits
  std::uint32_t former_ms = 10'000;       // until what a dead daemon was reading has surely ended
  std::function<void()> on_events;        // the tiers may have events; called on the mover's thread
  std::function<std::uint64_t()> now_ms;  // monotonic; injected by tests
};

struct TierManagerStats {
  std::uint64_t write_waiting, write_in_flight_bytes, written, written_bytes;
  std::uint64_t write_dropped, write_missed, write_refused, write_there;
  std::uint64_t read_chains, read_in_flight_bytes, promoted, promoted_bytes, promoted_chunks;
  std::uint64_t read_failed, read_refused, read_no_room, clears;
};

// What a lookup may still expect.
struct Expected {
  std::uint32_t chunks = 0;  // further leading chunks that are on their way into memory, or may turn out to be
};

// Where a chunk may be, as bits: memory, and each tier in its order.
using Places = std::uint32_t;
inline constexpr Places kInMemory = 1, kEverywhere = ~Places{0};
constexpr Places place_of_tier(std::size_t tier) noexcept { return Places{2} << tier; }

class TierManager {
 public:
  // Tiers in the order in which they are asked; Tier::takes_writes() and shared() say which are written to.
  TierManager(const TierManagerConfig& config, Store* store, std::vector<std::shared_ptr<Tier>> tiers);
  ~TierManager();                            // stop()
  TierManager(const TierManager&) = delete;  // owns its thread

  void start();
  // Writes what waits for at most stop_ms_max, then lets the tiers go and gives everything back. The store must live.
  void stop();

  // After a lookup of `keys` that found the first `hit_chunks` in memory: has the rest brought in as far as tiers have
  // it without a gap. Memory only, microseconds.
  Expected wanted(SessionId session, std::uint64_t tenant, std::span<const Key> keys, std::uint32_t hit_chunks);
  // The same for another node that asks for chunks of such engines: of this node's own media only.
  Expected wanted_by_peer(const SessionSpec& spec, std::span<const Key> keys, std::uint32_t hit_chunks);
  // The best rate at which engines here compute, of any model; 0: not known.
  [[nodiscard]] double tokens_per_second() const;
  // Store::clear() with the tiers. Shards removed from tiers are added to *tier_shards.
  std::uint64_t clear(const Key* fingerprint, std::uint64_t* tier_shards);
  // The same of some chunks, or in some places only. Shards removed from tiers are added to tier_shards, one for each
  // tier. How old a chunk is, is known in memory alone: by age a tier loses what memory loses.
  std::uint64_t clear(const Selection& selection, Places places, std::span<std::uint64_t> tier_shards);
  // Where each of these is: on a tier, as far as is known, with every shard of a layout that some engine asked for.
  std::vector<Places> places(const Key& fingerprint, std::span<const Key> keys);
  // Has those of the keys that are in memory written to the first tier that takes writes, as after a commit. Returns
  // how many shards were put into the queue of writes; what it has no room for is to be asked for again.
  std::uint64_t write(const Key& fingerprint, std::span<const Key> keys);
  // As wanted(), without an engine: `keys` from the first chunk of a chain on; the layout is one that an engine asked
  // for, or what a tier has of the first chunk that is not in memory.
  Expected bring(const Key& fingerprint, std::span<const Key> keys);
  // The same of what the node of this name has, in the layout that it told (layout_of() there).
  Expected bring_from(std::string_view peer, const SessionSpec& spec, std::uint64_t tenant, std::span<const Key> keys);
  // How this node has a chunk, in memory or on a tier: fingerprint, chunk_tokens and shards of *spec; false: it has it
  // not, or knows no rectangle of its fingerprint.
  bool layout_of(const Key& fingerprint, const Key& key, SessionSpec* spec, std::uint64_t* tenant);
  // Shards of these keys removed from one tier.
  std::uint64_t remove(std::size_t tier, const Key& fingerprint, std::span<const Key> keys);
  // The first tier that has a shard of this chunk, as far as it is known without its layout; -1: none.
  [[nodiscard]] int where(const Key& fingerprint, const Key& key);
  // The rectangles that are known of a fingerprint.
  [[nodiscard]] std::vector<Rect> rects(const Key& fingerprint);
  // A rectangle that where() is to ask for.
  void know(const ShardId& id);

  [[nodiscard]] std::span<const std::shared_ptr<Tier>> tiers() const;
  [[nodiscard]] TierManagerStats stats() const;
  // Nothing waits and nothing is under way: for tests, and for whoever stops a node.
  [[nodiscard]] bool idle() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

template <typename Visit>
void visit_counters(const TierStats& s, Visit visit) {
#define KVCOMMONS_COUNTER(name) visit(std::string_view(#name), s.name)
  KVCOMMONS_COUNTER(capacity_bytes);
  KVCOMMONS_COUNTER(used_bytes);
  KVCOMMONS_COUNTER(shards);
  KVCOMMONS_COUNTER(puts);
  KVCOMMONS_COUNTER(put_bytes);
  KVCOMMONS_COUNTER(gets);
  KVCOMMONS_COUNTER(get_bytes);
  KVCOMMONS_COUNTER(misses);
  KVCOMMONS_COUNTER(evicted);
  KVCOMMONS_COUNTER(reinserted);
  KVCOMMONS_COUNTER(corrupt);
  KVCOMMONS_COUNTER(failed);
  KVCOMMONS_COUNTER(refused_busy);
  KVCOMMONS_COUNTER(refused_full);
  KVCOMMONS_COUNTER(queued_puts);
  KVCOMMONS_COUNTER(queued_gets);
  KVCOMMONS_COUNTER(recovered);
  KVCOMMONS_COUNTER(recovery_us);
  KVCOMMONS_COUNTER(metadata_bytes);
#undef KVCOMMONS_COUNTER
}
static_assert(sizeof(TierStats) == 19 * sizeof(std::uint64_t), "a counter is missing above");

template <typename Visit>
void visit_counters(const TierManagerStats& s, Visit visit) {
#define KVCOMMONS_COUNTER(name) visit(std::string_view("tier_" #name), s.name)
  KVCOMMONS_COUNTER(write_waiting);
  KVCOMMONS_COUNTER(write_in_flight_bytes);
  KVCOMMONS_COUNTER(written);
  KVCOMMONS_COUNTER(written_bytes);
  KVCOMMONS_COUNTER(write_dropped);
  KVCOMMONS_COUNTER(write_missed);
  KVCOMMONS_COUNTER(write_refused);
  KVCOMMONS_COUNTER(write_there);
  KVCOMMONS_COUNTER(read_chains);
  KVCOMMONS_COUNTER(read_in_flight_bytes);
  KVCOMMONS_COUNTER(promoted);
  KVCOMMONS_COUNTER(promoted_bytes);
  KVCOMMONS_COUNTER(promoted_chunks);
  KVCOMMONS_COUNTER(read_failed);
  KVCOMMONS_COUNTER(read_refused);
  KVCOMMONS_COUNTER(read_no_room);
  KVCOMMONS_COUNTER(clears);
#undef KVCOMMONS_COUNTER
}
static_assert(sizeof(TierManagerStats) == 17 * sizeof(std::uint64_t), "a counter is missing above");

}  // namespace kvcommons
