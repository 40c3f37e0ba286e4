#include "eviction/policy.h"

#include <algorithm>
#include <array>
#include <bit>

namespace kvcommons::eviction {
namespace {

constexpr std::array<std::string_view, kKinds> kNames = {"lru", "s3fifo", "cost"};
constexpr std::uint64_t kMainBit = 1ull << 63;
constexpr std::uint64_t kSmallPercent = 10;  // of the cache
constexpr int kTagBits = 32, kTimeBits = 24;
constexpr std::array<double, kPriorityMax - kPriorityMin + 1> kTimes = {1. / 16, 1. / 8, 1. / 4, 1. / 2, 1,
                                                                        2,       4,      8,      16};

std::uint64_t ordered(float value) noexcept { return std::bit_cast<std::uint32_t>(std::max(value, 0.0f)); }

std::uint64_t mixed(std::uint64_t key) noexcept {
  key *= 0x9e3779b97f4a7c15ull;
  return key ^ (key >> 29);
}

}  // namespace

std::string_view name_of(Kind kind) noexcept { return kNames[static_cast<std::size_t>(kind)]; }

std::optional<Kind> kind_of(std::string_view name) noexcept {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<Kind>(found - kNames.begin());
}

// A row: tag of the key (32 bits, never 0), evictions so far (24), uses (8).
History::History(std::uint64_t entries)
    : mask_(std::bit_ceil(std::max<std::uint64_t>(entries, 64)) - 1),
      rows_(std::make_unique<std::atomic<std::uint64_t>[]>(mask_ + 1)) {}

namespace {
std::uint64_t tag_of(std::uint64_t hash) noexcept { return (hash >> kTagBits) | 1; }
std::uint64_t age_of(std::uint64_t row, std::uint64_t now) noexcept {
  return (now - (row >> 8)) & ((1ull << kTimeBits) - 1);
}
}  // namespace

void History::put(std::uint64_t key, std::uint8_t uses, std::uint64_t now) noexcept {
  const std::uint64_t hash = mixed(key), set = hash & mask_ & ~(kWays - 1);
  std::uint64_t victim = set, oldest = 0;
  for (std::uint64_t way = set; way < set + kWays; ++way) {
    const std::uint64_t row = rows_[way].load(std::memory_order_relaxed);
    if (row == 0 || row >> kTagBits == tag_of(hash)) {
      victim = way;
      break;
    }
    if (age_of(row, now) >= oldest) {
      oldest = age_of(row, now);
      victim = way;
    }
  }
  rows_[victim].store(tag_of(hash) << kTagBits | (now & ((1ull << kTimeBits) - 1)) << 8 | uses,
                      std::memory_order_relaxed);
}

std::optional<History::Found> History::find(std::uint64_t key, std::uint64_t now) const noexcept {
  const std::uint64_t hash = mixed(key), set = hash & mask_ & ~(kWays - 1);
  for (std::uint64_t way = set; way < set + kWays; ++way) {
    const std::uint64_t row = rows_[way].load(std::memory_order_relaxed);
    if (row >> kTagBits == tag_of(hash)) return Found{static_cast<std::uint8_t>(row), age_of(row, now)};
  }
  return std::nullopt;
}

Policy::Policy(Kind kind, std::uint64_t history) : kind_(kind), history_(2 * history) {}

float Policy::worth(const Chunk& chunk) const noexcept {
  const double bytes = std::max<double>(chunk.pages, 1);
  const double times = kTimes[chunk.steps];
  return static_cast<float>(ageing() + times * static_cast<double>(chunk.uses) *
                                           cost_of(static_cast<std::uint32_t>(chunk.position)) / bytes);
}

void Policy::came(Chunk& chunk, std::uint64_t key, std::uint64_t tick) noexcept {
  const auto before = history_.find(key, evictions_.load(std::memory_order_relaxed));
  const bool remembered = before && before->age <= held_.load(std::memory_order_relaxed) + 1;
  chunk.tick = tick & kTickMax;
  chunk.queued = tick & kTickMax;
  chunk.queue = remembered ? Queue::Main : Queue::Small;
  chunk.chances = 0;
  chunk.uses = (remembered ? std::min(before->uses + 1U, 0U + kUsesMax) : 1U) & kUsesMax;
  chunk.worth = worth(chunk);
  held_.fetch_add(1, std::memory_order_relaxed);
  (chunk.queue == Queue::Main ? main_pages_ : small_pages_).fetch_add(chunk.pages, std::memory_order_relaxed);
}

void Policy::used(Chunk& chunk, std::uint64_t tick) noexcept {
  chunk.first = false;
  chunk.tick = tick & kTickMax;
  chunk.uses = std::min<std::uint64_t>(chunk.uses + 1, kUsesMax) & kUsesMax;
  chunk.chances = std::min<std::uint64_t>(chunk.chances + 1, kChancesMax) & kChancesMax;
  chunk.worth = worth(chunk);
}

void Policy::grew(Chunk& chunk, std::uint32_t pages) noexcept {
  chunk.pages += pages;
  (chunk.queue == Queue::Main ? main_pages_ : small_pages_).fetch_add(pages, std::memory_order_relaxed);
}

void Policy::went(const Chunk& chunk) noexcept {
  held_.fetch_sub(1, std::memory_order_relaxed);
  (chunk.queue == Queue::Main ? main_pages_ : small_pages_).fetch_sub(chunk.pages, std::memory_order_relaxed);
}

void Policy::evicted(const Chunk& chunk, std::uint64_t key) noexcept {
  const std::uint64_t now = evictions_.fetch_add(1, std::memory_order_relaxed) + 1;
  if (chunk.first) return;  // nobody waits for it
  history_.put(key, static_cast<std::uint8_t>(chunk.uses), now);
  if (kind() == Kind::Cost) set_ageing(std::max(ageing(), double{chunk.worth}));
}

bool Policy::spared(Chunk& chunk, std::uint64_t tick) noexcept {
  if (!spares(chunk)) return false;
  if (chunk.queue == Queue::Small) {
    small_pages_.fetch_sub(chunk.pages, std::memory_order_relaxed);
    main_pages_.fetch_add(chunk.pages, std::memory_order_relaxed);
    chunk.queue = Queue::Main;
    chunk.chances = 0;
  } else {
    chunk.chances = (chunk.chances - 1) & kChancesMax;
  }
  chunk.queued = tick & kTickMax;
  return true;
}

Rank Policy::rank(const Chunk& chunk, Kind kind) noexcept {
  if (chunk.first) return {0, chunk.tick};
  switch (kind) {
    case Kind::Lru:
      return {chunk.tick, 0};
    case Kind::S3Fifo:
      return {chunk.queued | (chunk.queue == Queue::Main ? kMainBit : 0), 0};
    case Kind::Cost:
      return {ordered(chunk.worth) + 1, chunk.tick};
  }
  return {};
}

Rank Policy::start() const noexcept {
  if (kind() != Kind::S3Fifo) return {};
  const std::uint64_t small = small_pages_.load(std::memory_order_relaxed);
  const std::uint64_t main = main_pages_.load(std::memory_order_relaxed);
  return small * 100 > (small + main) * kSmallPercent ? Rank{} : Rank{kMainBit, 0};
}

}  // namespace kvcommons::eviction
