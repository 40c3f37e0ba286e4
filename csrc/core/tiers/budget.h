// What one direction may move: so many bytes at one time, and so many a second. For one thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvcommons::tiers {

class Budget {
 public:
  // per_second_max 0: without a rate.
  Budget(std::uint64_t in_flight_max, std::uint64_t per_second_max, std::uint64_t now_ms)
      : in_flight_max_(in_flight_max),
        per_second_max_(static_cast<std::int64_t>(per_second_max)),
        at_ms_(now_ms),
        credit_(burst()) {}

  // Whether `bytes` may be begun now. What cannot be cut (whole) and exceeds a limit goes where nothing else does, and
  // is paid for after.
  bool allows(std::uint64_t bytes, bool whole, std::uint64_t now_ms) {
    const bool alone = whole && in_flight_ == 0;
    if (!alone && in_flight_ + bytes > in_flight_max_) return false;
    if (per_second_max_ == 0) return true;
    const auto passed_ms = static_cast<std::int64_t>(std::min<std::uint64_t>(now_ms - at_ms_, 60'000));
    const std::int64_t earned = per_second_max_ * passed_ms / 1'000;
    if (earned > 0) {
      credit_ = std::min(burst(), credit_ + earned);
      at_ms_ = now_ms;
    }
    return credit_ > 0;
  }
  void begun(std::uint64_t bytes) {
    in_flight_ += bytes;
    if (per_second_max_ != 0) credit_ -= static_cast<std::int64_t>(bytes);
  }
  void ended(std::uint64_t bytes) { in_flight_ -= bytes; }
  [[nodiscard]] std::uint64_t in_flight() const noexcept { return in_flight_; }

 private:
  [[nodiscard]] std::int64_t burst() const noexcept { return per_second_max_ / 10 + 1; }  // a tenth of a second's

  std::uint64_t in_flight_max_;
  std::int64_t per_second_max_;
  std::uint64_t at_ms_;
  std::int64_t credit_;
  std::uint64_t in_flight_ = 0;
};

}  // namespace kvcommons::tiers
