// What a device's results say of it. Thread-safe; decides, does nothing.
//
//   no space, a write error  -> reads only, tries again after write_retry_ms; a write that works ends it
//   the wear limit           -> reads only until the budget has something again
//   an operation that hangs  -> nothing is sent to it until the operation ends
//   the device is no more, or kErrorsMax operations in a row failed -> gone, until the node starts again
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "tier.h"

namespace kvcommons::disk {

class DeviceHealth {
 public:
  static constexpr std::uint32_t kErrorsMax = 16;  // in a row
  static constexpr std::uint32_t kSlowMax = 4;     // in a row: a device that is always late is said to be slow

  DeviceHealth(std::string path, std::uint32_t op_deadline_ms, std::uint32_t write_retry_ms)
      : path_(std::move(path)), op_deadline_ms_(op_deadline_ms), write_retry_ms_(write_retry_ms) {}

  void worked(bool write, std::uint64_t took_ms);
  void failed(bool write, int error, std::uint64_t now_ms);
  void oldest_in_flight(std::uint64_t age_ms);  // 0: none
  void wear(bool exhausted);

  [[nodiscard]] bool gone() const;
  [[nodiscard]] bool hangs() const;
  [[nodiscard]] bool may_write(std::uint64_t now_ms) const;
  [[nodiscard]] TierHealth get(std::string* why) const;

 private:
  const std::string path_;
  const std::uint32_t op_deadline_ms_, write_retry_ms_;
  mutable std::mutex mutex_;
  bool gone_ = false, hangs_ = false, worn_ = false, write_failed_ = false;
  int error_ = 0;
  std::uint32_t errors_ = 0, slow_ = 0;
  std::uint64_t no_writes_until_ms_ = 0, age_ms_ = 0;
};

}  // namespace kvcommons::disk
