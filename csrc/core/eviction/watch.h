// The shadows of a store: what passes is queued here and looked at by a thread of their own, so that no engine waits.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "eviction/shadows.h"
#include "types.h"

namespace kvcommons::eviction {

class Watch {
 public:
  // follow: the policy takes over what the shadows find best. The policy outlives this.
  Watch(const ShadowConfig& config, bool follow, Policy* policy);
  ~Watch();
  Watch(const Watch&) = delete;  // owns a thread

  // `pages`: of one chunk, with all its shards.
  void asked(std::span<const Key> chain, std::size_t found, std::uint32_t pages);
  void stored(const Key& parent, std::span<const Key> keys, std::uint32_t pages, const Hints& hints);
  void drain();  // until all that was queued before was seen; for tests

  struct Stats {
    ShadowStats shadows;
    std::uint64_t dropped = 0;  // requests that came while too many waited
  };
  [[nodiscard]] Stats stats() const;

 private:
  struct Job {
    bool stored = false;
    std::vector<std::uint64_t> chain;  // of what is stored: its parent first, or 0
    std::size_t found = 0;
    std::uint32_t pages = 0;
    Hints hints;
  };
  static constexpr std::size_t kKeysMax = 1 << 20;  // 8 MiB
  static constexpr std::size_t kKeysWoken = 4'096;  // sooner than by time

  void push(Job job);
  void thread_main();
  void run(const Job& job);

  const bool follow_;
  Policy* policy_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable work_, idle_;
  std::deque<Job> queue_;
  std::size_t keys_ = 0;
  std::uint64_t dropped_ = 0;
  ShadowStats told_;
  bool busy_ = false, stop_ = false, hurry_ = false;
  Shadows shadows_;  // the thread's own
  std::thread thread_;
};

}  // namespace kvcommons::eviction
