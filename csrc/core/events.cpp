#include "events.h"

#include <algorithm>
#include <utility>

namespace kvcommons::internal {

void EventRing::push(Event event) {
  std::deque<Event> lost;  // freed after the mutex is released
  const std::lock_guard lock(mutex_);
  if (ring_.size() >= events_max_) {
    // What waits is superseded by the inventory that follows a gap; mixing both would unpublish what lives.
    dropped_.fetch_add(ring_.size(), std::memory_order_relaxed);
    lost.swap(ring_);
    gap_ = true;
  }
  if (ring_.empty()) {
    signal_.store(true, std::memory_order_release);
  }
  ring_.push_back(std::move(event));
}

std::vector<Event> EventRing::drain(std::size_t max, bool* gap) {
  const std::lock_guard lock(mutex_);
  if (gap != nullptr) {
    *gap = gap_;
    gap_ = false;
  }
  const std::size_t n = std::min(max, ring_.size());
  const auto end = ring_.begin() + static_cast<std::ptrdiff_t>(n);
  std::vector<Event> out(std::make_move_iterator(ring_.begin()), std::make_move_iterator(end));
  ring_.erase(ring_.begin(), end);
  return out;
}

void EventRing::set_callback(std::function<void()> callback) {
  auto shared = callback ? std::make_shared<const std::function<void()>>(std::move(callback)) : nullptr;
  const std::lock_guard lock(mutex_);
  callback_ = std::move(shared);
}

void EventRing::notify() {
  if (!signal_.load(std::memory_order_acquire) || !signal_.exchange(false, std::memory_order_acq_rel)) {
    return;
  }
  std::shared_ptr<const std::function<void()>> callback;
  {
    const std::lock_guard lock(mutex_);
    callback = callback_;
  }
  if (callback) {
    (*callback)();
  }
}

}  // namespace kvcommons::internal
