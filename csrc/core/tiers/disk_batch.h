// Batches on their way through the devices, and what all devices of a tier share.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "tiers/disk_events.h"
#include "tiers/disk_index.h"
#include "tiers/disk_tier.h"

namespace kvcommons::disk {

// Answers once, when each item has its result. Items end on any thread, each exactly once.
template <typename Item, typename Result>
class Batch {
 public:
  using Done = std::function<void(std::span<const Result>)>;
  Batch(std::vector<Item> items, Done done)
      : items_(std::move(items)), results_(items_.size()), left_(items_.size()), done_(std::move(done)) {}
  [[nodiscard]] const Item& operator[](std::size_t i) const noexcept { return items_[i]; }
  [[nodiscard]] std::size_t size() const noexcept { return items_.size(); }
  void finish(std::size_t i, Result result) {
    results_[i] = std::move(result);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_(results_);
  }
  void finish_empty() { done_({}); }

 private:
  std::vector<Item> items_;
  std::vector<Result> results_;
  std::atomic<std::size_t> left_;
  Done done_;
};

using PutBatch = Batch<PutItem, TierStatus>;
using GetBatch = Batch<GetItem, GetResult>;

struct PutJob {
  std::shared_ptr<PutBatch> batch;
  std::uint32_t item = 0;
  std::uint64_t bytes = 0;  // counted as queued
  std::uint64_t since_ms = 0;
  std::uint64_t clears = 0;  // ClearLog's number when it was taken
};

struct GetJob {
  std::shared_ptr<GetBatch> batch;
  std::uint32_t item = 0;
  std::uint64_t bytes = 0;
  std::uint64_t since_ms = 0;
};

// What was cleared lately: a put that was taken before and ends after is not kept.
class ClearLog {
 public:
  [[nodiscard]] std::uint64_t number() const {
    const std::lock_guard lock(mutex_);
    return number_;
  }
  void add(const Key* fingerprint) {
    const std::lock_guard lock(mutex_);
    ++number_;
    recent_.push_back(fingerprint == nullptr ? std::optional<Key>() : *fingerprint);
    if (recent_.size() > kRecentMax) recent_.pop_front();
  }
  [[nodiscard]] bool cleared_since(std::uint64_t number, const Key& fingerprint) const {
    const std::lock_guard lock(mutex_);
    if (number_ - number > recent_.size()) return true;  // so many since that it is not known
    for (std::size_t i = recent_.size() - (number_ - number); i < recent_.size(); ++i) {
      if (!recent_[i] || *recent_[i] == fingerprint) return true;
    }
    return false;
  }

 private:
  static constexpr std::size_t kRecentMax = 64;
  mutable std::mutex mutex_;
  std::uint64_t number_ = 0;
  std::deque<std::optional<Key>> recent_;
};

struct Counters {
  std::atomic<std::uint64_t> puts{0}, put_bytes{0}, gets{0}, get_bytes{0}, misses{0};
  std::atomic<std::uint64_t> evicted{0}, reinserted{0}, corrupt{0}, failed{0}, refused_busy{0}, refused_full{0};
  std::atomic<std::uint64_t> queued_puts{0}, queued_gets{0}, queued_put_bytes{0}, queued_get_bytes{0};
};

struct Shared {
  Shared(const DiskConfig& c, std::uint32_t segments) : config(c), events(c.events_max), index(segments, &events) {}
  const DiskConfig config;
  EventRing events;
  DiskIndex index;
  ClearLog clears;
  Counters counters;
};

}  // namespace kvcommons::disk
