// What happened, in one order, for the daemon to publish. Bounded: an overflow drops what waits and sets a gap flag,
// upon which the daemon publishes its inventory anew. Never blocks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "store.h"

namespace kvcommons::internal {

class EventRing {
 public:
  explicit EventRing(std::size_t events_max) : events_max_(events_max) {}

  // May be called with a shard's mutex held: takes only the ring's own mutex and calls nobody.
  void push(Event event);
  std::vector<Event> drain(std::size_t max, bool* gap);
  void set_callback(std::function<void()> callback);
  // Calls the callback if the ring became non-empty since the last call. No lock may be held.
  void notify();
  [[nodiscard]] std::uint64_t dropped() const noexcept { return dropped_.load(std::memory_order_relaxed); }

 private:
  const std::size_t events_max_;
  std::mutex mutex_;
  std::deque<Event> ring_;
  bool gap_ = false;
  std::shared_ptr<const std::function<void()>> callback_;
  std::atomic<bool> signal_{false};
  std::atomic<std::uint64_t> dropped_{0};
};

// Notifies when a public call of the store ends, after every lock is released.
class NotifyAtEnd {
 public:
  explicit NotifyAtEnd(EventRing& ring) : ring_(ring) {}
  ~NotifyAtEnd() { ring_.notify(); }
  NotifyAtEnd(const NotifyAtEnd&) = delete;  // one call, one notification
  NotifyAtEnd& operator=(const NotifyAtEnd&) = delete;

 private:
  EventRing& ring_;
};

}  // namespace kvcommons::internal
