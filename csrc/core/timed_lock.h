// A lock that is waited for until a deadline of the steady clock.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace kvcommons {

// As std::timed_mutex, which ThreadSanitizer cannot see through on this clock: a mutex held for moments, and a flag.
class TimedLock {
 public:
  using Clock = std::chrono::steady_clock;
  TimedLock() = default;
  TimedLock(const TimedLock&) = delete;  // waited on in place

  void lock() {
    std::unique_lock guard(mutex_);
    free_.wait(guard, [this] { return !held_; });
    held_ = true;
  }
  bool try_lock_until(Clock::time_point deadline) {
    std::unique_lock guard(mutex_);
    if (!free_.wait_until(guard, deadline, [this] { return !held_; })) return false;
    held_ = true;
    return true;
  }
  void unlock() {
    {
      const std::lock_guard guard(mutex_);
      held_ = false;
    }
    free_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool held_ = false;
};

}  // namespace kvcommons
