// So much a second, with a reserve. What is taken may go below nothing once: a large extent is not refused for ever.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvcommons::disk {

class Budget {
 public:
  // rate 0: no limit.
  Budget(double bytes_per_second, double reserve_bytes, std::uint64_t now_ms)
      : rate_(bytes_per_second), reserve_(std::max(reserve_bytes, 1.0)), left_(reserve_), then_ms_(now_ms) {}

  [[nodiscard]] bool has(std::uint64_t now_ms) noexcept {
    if (rate_ <= 0) return true;
    if (now_ms > then_ms_) {
      left_ = std::min(reserve_, left_ + rate_ * static_cast<double>(now_ms - then_ms_) / 1e3);
      then_ms_ = now_ms;
    }
    return left_ > 0;
  }
  void take(std::uint64_t bytes) noexcept {
    if (rate_ > 0) left_ -= static_cast<double>(bytes);
  }

 private:
  double rate_, reserve_, left_;
  std::uint64_t then_ms_;
};

}  // namespace kvcommons::disk
