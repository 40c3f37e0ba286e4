// What a tier has to tell an index, until it is fetched: bounded, and it says where something was lost.
#pragma once

#include <algorithm>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "tier.h"

namespace kvcommons::disk {

class EventRing {
 public:
  explicit EventRing(std::size_t events_max) : events_max_(events_max) {}

  // While muted nothing is kept: at recovery, which the inventory tells better.
  void mute(bool muted) {
    const std::lock_guard lock(mutex_);
    muted_ = muted;
  }
  void tell(TierEvent::Kind kind, ShardMeta meta) {
    const std::lock_guard lock(mutex_);
    if (muted_) return;
    if (events_.size() >= events_max_) {
      events_.clear();
      gap_ = true;
    }
    if (events_max_ > 0) events_.push_back({kind, std::move(meta)});
  }
  std::vector<TierEvent> drain(std::size_t max, bool* gap) {
    const std::lock_guard lock(mutex_);
    *gap = std::exchange(gap_, false);
    const auto count = static_cast<std::ptrdiff_t>(std::min(max, events_.size()));
    std::vector<TierEvent> out(std::make_move_iterator(events_.begin()),
                               std::make_move_iterator(events_.begin() + count));
    events_.erase(events_.begin(), events_.begin() + count);
    return out;
  }

 private:
  const std::size_t events_max_;
  std::mutex mutex_;
  std::deque<TierEvent> events_;
  bool gap_ = false, muted_ = false;
};

}  // namespace kvcommons::disk
