// What each tenant holds of the arena, and who holds more than its share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace kvcommons::eviction {

// Thread-safe. With a share of 100 % nothing is counted.
class Tenants {
 public:
  Tenants(std::uint64_t capacity_bytes, std::uint32_t percent_max)
      : counts_(percent_max < 100), bytes_max_(capacity_bytes / 100 * percent_max) {}

  [[nodiscard]] bool counts() const noexcept { return counts_; }
  void took(std::uint64_t tenant, std::uint64_t bytes) {
    if (!counts_) return;
    const std::lock_guard lock(mutex_);
    std::uint64_t& held = held_[tenant];
    held += bytes;
    if (held > bytes_max_ && held - bytes <= bytes_max_) over_.push_back(tenant);
    any_over_.store(!over_.empty(), std::memory_order_relaxed);
  }
  void gave(std::uint64_t tenant, std::uint64_t bytes) {
    if (!counts_) return;
    const std::lock_guard lock(mutex_);
    const auto found = held_.find(tenant);
    if (found == held_.end()) return;
    const std::uint64_t before = found->second;
    found->second -= std::min(before, bytes);
    if (before > bytes_max_ && found->second <= bytes_max_) std::erase(over_, tenant);
    if (found->second == 0) held_.erase(found);
    any_over_.store(!over_.empty(), std::memory_order_relaxed);
  }
  // At most 100 / percent_max of them.
  [[nodiscard]] std::vector<std::uint64_t> over() const {
    if (!any_over_.load(std::memory_order_relaxed)) return {};
    const std::lock_guard lock(mutex_);
    return over_;
  }

 private:
  const bool counts_;
  const std::uint64_t bytes_max_;
  mutable std::mutex mutex_;
  std::unordered_map<std::uint64_t, std::uint64_t> held_;
  std::vector<std::uint64_t> over_;
  std::atomic<bool> any_over_{false};
};

}  // namespace kvcommons::eviction
