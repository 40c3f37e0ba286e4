// Which chunk goes first. Knows nothing of slots, sessions or locks: whoever holds the chunks keeps a Chunk beside
// each, tells the policy what happens to it, and takes the candidate of the least rank. A candidate is a chunk that
// nothing hangs on: no cached child, no lease, no pin, no writer. So that a suffix goes before its prefix under every
// policy.
//
// All that any policy knows of a chunk is kept up to date whichever is in force: to change the policy is to rank anew.
#pragma once

#include <atomic>
#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "eviction/hints.h"

namespace kvcommons::eviction {

enum class Kind : std::uint8_t {
  Lru,     // least recently used
  S3Fifo,  // a small queue that most pass through once, a main queue, and a memory of what left the small one
  Cost,    // GreedyDual: ageing + uses x cost to compute / bytes
};
inline constexpr std::size_t kKinds = 3;
[[nodiscard]] std::string_view name_of(Kind kind) noexcept;
[[nodiscard]] std::optional<Kind> kind_of(std::string_view name) noexcept;

struct Rank {
  std::uint64_t major = 0, minor = 0;
  friend auto operator<=>(const Rank&, const Rank&) = default;
};

enum class Queue : std::uint8_t { Small, Main };

inline constexpr std::uint64_t kPositionMax = 0xffff;

struct Chunk {
  std::uint64_t tick : 48 = 0;              // of the last use; grows
  std::uint64_t position : 16 = 0;          // chunks before it in its chain; saturates
  std::uint64_t queued : 48 = 0;            // tick at which it joined its queue
  std::uint64_t uses : 8 = 0;               // since it came, and what is remembered of former lives; saturates
  std::uint64_t chances : 2 = 0;            // s3fifo: uses since it joined its queue, at most kChancesMax
  std::uint64_t steps : 4 = -kPriorityMin;  // of its priority, from the least on
  Queue queue : 1 = Queue::Small;
  bool first : 1 = false;   // a one-shot's, an ended session's, or past its time: before all others
  float worth = 0;          // GreedyDual's H
  std::uint32_t pages = 0;  // of the arena, all its shards together

  void set_position(std::uint64_t chunks_before) noexcept {
    position = (chunks_before < kPositionMax ? chunks_before : kPositionMax) & kPositionMax;
  }
  void set_priority(int priority) noexcept { steps = static_cast<std::uint64_t>(priority - kPriorityMin) & 0xf; }
};
static_assert(sizeof(Chunk) == 24, "kept for each chunk of a store");
inline constexpr std::uint64_t kTickMax = (1ull << 48) - 1;  // a million uses a second for nine years

// Relative time to compute a chunk: its own tokens, and attention over all before it. For a model of 8 B parameters one
// chunk of context adds about 1/128 of the work that a chunk takes by itself.
inline constexpr double kCostOwn = 1.0;
inline constexpr double kCostPerChunkBefore = 1.0 / 128;
[[nodiscard]] constexpr double cost_of(std::uint32_t position) noexcept {
  return kCostOwn + kCostPerChunkBefore * position;
}

inline constexpr std::uint8_t kChancesMax = 3;
static_assert(kChancesMax < 1 << 2 && kPriorityMax - kPriorityMin < 1 << 4, "a Chunk has room for them");
inline constexpr std::uint8_t kUsesMax = 255;
// Candidates put back for one that goes. After a change to s3fifo all may have chances left, and one eviction must end.
inline constexpr int kSparedMax = 128;

// What left a while ago, and how often it was used: a table of a fixed size without locks. A newer entry overwrites.
class History {
 public:
  explicit History(std::uint64_t entries);
  void put(std::uint64_t key, std::uint8_t uses, std::uint64_t now) noexcept;
  struct Found {
    std::uint8_t uses = 0;
    std::uint64_t age = 0;  // evictions since
  };
  [[nodiscard]] std::optional<Found> find(std::uint64_t key, std::uint64_t now) const noexcept;
  [[nodiscard]] std::uint64_t bytes() const noexcept { return (mask_ + 1) * sizeof(std::uint64_t); }

 private:
  static constexpr std::uint64_t kWays = 4;
  std::uint64_t mask_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> rows_;
};

// Thread-safe: what it keeps itself is a few counters and the history. The Chunks are their owner's to guard.
class Policy {
 public:
  // history: how many evicted chunks are remembered, about; as many as the cache holds, if that can be paid.
  Policy(Kind kind, std::uint64_t history);

  [[nodiscard]] Kind kind() const noexcept { return kind_.load(std::memory_order_relaxed); }
  void follow(Kind kind) noexcept { kind_.store(kind, std::memory_order_relaxed); }

  void came(Chunk& chunk, std::uint64_t key, std::uint64_t tick) noexcept;
  void used(Chunk& chunk, std::uint64_t tick) noexcept;   // which undoes `first`
  void grew(Chunk& chunk, std::uint32_t pages) noexcept;  // another shard of it
  void went(const Chunk& chunk) noexcept;                 // for whatever reason
  // Made room. Besides went().
  void evicted(const Chunk& chunk, std::uint64_t key) noexcept;
  [[nodiscard]] bool spares(const Chunk& chunk) const noexcept {
    return kind() == Kind::S3Fifo && !chunk.first && chunk.chances != 0;
  }
  // Of the first candidate, just before it goes: true if it was put back, with another rank. The caller ranks it anew.
  bool spared(Chunk& chunk, std::uint64_t tick) noexcept;

  [[nodiscard]] Rank rank(const Chunk& chunk) const noexcept { return rank(chunk, kind()); }
  [[nodiscard]] static Rank rank(const Chunk& chunk, Kind kind) noexcept;
  // After those marked `first`, candidates of at least this rank go first, if there are any; else the least of all. {}
  // under most policies.
  [[nodiscard]] Rank start() const noexcept;

  [[nodiscard]] double ageing() const noexcept { return ageing_.load(std::memory_order_relaxed); }
  void set_ageing(double value) noexcept { ageing_.store(value, std::memory_order_relaxed); }

 private:
  [[nodiscard]] float worth(const Chunk& chunk) const noexcept;

  std::atomic<Kind> kind_;
  std::atomic<double> ageing_{0};
  std::atomic<std::uint64_t> small_pages_{0}, main_pages_{0}, evictions_{0}, held_{0};
  History history_;
};

}  // namespace kvcommons::eviction
