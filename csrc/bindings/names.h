// Names that Python sees for the core's enumerators.
#pragma once

#include "core/types.h"

namespace kvcommons::bindings {

inline const char* status_name(Status status) {
  switch (status) {
    case Status::Ok:
      return "ok";
    case Status::BadFrame:
      return "bad_frame";
    case Status::BadVersion:
      return "bad_version";
    case Status::BadFingerprint:
      return "bad_fingerprint";
    case Status::Denied:
      return "denied";
    case Status::Full:
      return "full";
    case Status::Gone:
      return "gone";
    case Status::Busy:
      return "busy";
    case Status::TooLarge:
      return "too_large";
    case Status::Internal:
      return "internal";
    case Status::Disconnected:
      return "disconnected";
    case Status::TimedOut:
      return "timed_out";
  }
  return "internal";
}

inline const char* reserve_status_name(ReserveStatus status) {
  switch (status) {
    case ReserveStatus::Granted:
      return "granted";
    case ReserveStatus::Exists:
      return "exists";
    case ReserveStatus::Busy:
      return "busy";
    case ReserveStatus::Full:
      return "full";
    case ReserveStatus::ParentMissing:
      return "parent_missing";
  }
  return "full";
}

}  // namespace kvcommons::bindings
