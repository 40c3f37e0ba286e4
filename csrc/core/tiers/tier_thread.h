// The thread of a small tier: runs what is posted, in order, up to a bound.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace kvcommons::tiers {

class TierThread {
 public:
  using Job = std::function<void(bool closing)>;

  explicit TierThread(std::size_t jobs_max) : jobs_max_(jobs_max), thread_([this] { run(); }) {}
  ~TierThread() { close(); }
  TierThread(const TierThread&) = delete;  // owns its thread

  // False: too many wait, or it was closed.
  bool post(Job job) {
    const std::lock_guard lock(mutex_);
    if (closing_ || jobs_.size() >= jobs_max_) return false;
    jobs_.push_back(std::move(job));
    changed_.notify_one();
    return true;
  }
  // Jobs that were not begun run with closing = true; returns when all are over.
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
      changed_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
  }
  [[nodiscard]] std::size_t waiting() const {
    const std::lock_guard lock(mutex_);
    return jobs_.size();
  }

 private:
  void run() {
    for (std::unique_lock lock(mutex_);;) {
      changed_.wait(lock, [this] { return closing_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      const bool closing = closing_;
      lock.unlock();
      job(closing);
      lock.lock();
    }
  }

  const std::size_t jobs_max_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  bool closing_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace kvcommons::tiers
