#include "tiers/disk_health.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

namespace kvcommons::disk {
namespace {

// The file or its device is not there any more: trying again would only be slow.
bool vanished(int error) {
  constexpr std::array kVanished{ENODEV, ENXIO, EBADF, ESTALE, ESHUTDOWN, ENOTCONN, ENOMEDIUM};
  return std::find(kVanished.begin(), kVanished.end(), error) != kVanished.end();
}

bool no_room(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG || error == EROFS; }

}  // namespace

void DeviceHealth::worked(bool write, std::uint64_t took_ms) {
  const std::lock_guard lock(mutex_);
  errors_ = 0;
  slow_ = took_ms > op_deadline_ms_ ? slow_ + 1 : 0;
  if (write) write_failed_ = false;
}

void DeviceHealth::failed(bool write, int error, std::uint64_t now_ms) {
  const std::lock_guard lock(mutex_);
  error_ = error;
  if (write) {
    write_failed_ = true;
    no_writes_until_ms_ = now_ms + write_retry_ms_;
  }
  if (!no_room(error)) ++errors_;
  if (vanished(error) || errors_ >= kErrorsMax) gone_ = true;
}

void DeviceHealth::oldest_in_flight(std::uint64_t age_ms) {
  const std::lock_guard lock(mutex_);
  age_ms_ = age_ms;
  hangs_ = age_ms > op_deadline_ms_;
}

void DeviceHealth::wear(bool exhausted) {
  const std::lock_guard lock(mutex_);
  worn_ = exhausted;
}

bool DeviceHealth::gone() const {
  const std::lock_guard lock(mutex_);
  return gone_;
}

bool DeviceHealth::hangs() const {
  const std::lock_guard lock(mutex_);
  return hangs_;
}

bool DeviceHealth::may_write(std::uint64_t now_ms) const {
  const std::lock_guard lock(mutex_);
  return !gone_ && !hangs_ && (!write_failed_ || now_ms >= no_writes_until_ms_);
}

TierHealth DeviceHealth::get(std::string* why) const {
  const std::lock_guard lock(mutex_);
  const std::string error = std::generic_category().message(error_);
  if (gone_) {
    *why = path_ + ": gone (" + error + "): mend or replace the device, then start the node again";
    return TierHealth::Gone;
  }
  if (hangs_) {
    *why = path_ + ": an operation hangs for " + std::to_string(age_ms_) + " ms";
  } else if (write_failed_) {
    *why = path_ + ": a write failed (" + error + "): reads only, writing is tried again every " +
           std::to_string(write_retry_ms_) + " ms";
  } else if (worn_) {
    *why = path_ + ": the wear limit is reached: reads only until it allows more";
  } else if (slow_ >= kSlowMax) {
    *why = path_ + ": slower than " + std::to_string(op_deadline_ms_) + " ms an operation";
  } else {
    why->clear();
    return TierHealth::Serving;
  }
  return TierHealth::Degraded;
}

}  // namespace kvcommons::disk
