// Loads before stores: a forward waits for a load, nobody waits for a store, unless its blocks are to be overwritten.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace kvcommons {

class TransferGate {
 public:
  void load_began() {
    const std::lock_guard lock(mutex_);
    ++loads_;
  }
  void load_ended() {
    const std::lock_guard lock(mutex_);
    if (--loads_ == 0) open_.notify_all();
  }
  // Somebody waits for stores (or the end has come): they yield no longer.
  void urge() {
    const std::lock_guard lock(mutex_);
    ++urgent_;
    open_.notify_all();
  }
  void calm() {
    const std::lock_guard lock(mutex_);
    --urgent_;
  }
  // Called by a store between layers: returns when no load runs, or stores have become urgent.
  void yield() {
    std::unique_lock lock(mutex_);
    open_.wait(lock, [&] { return loads_ == 0 || urgent_ != 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable open_;
  std::uint64_t loads_ = 0, urgent_ = 0;
};

}  // namespace kvcommons
