// What an earlier life left on a device: sealed segments by their tables, others by the headers of their extents.
#pragma once

#include <cstdint>
#include <vector>

#include "tiers/disk_file.h"
#include "tiers/disk_index.h"

namespace kvcommons::disk {

struct RecoveredSegment {
  std::uint64_t generation = 0;  // 0: nothing in it
  bool sealed = false;
  // Of one that is not sealed, as its writer would know it.
  std::uint32_t next_block = 1;
  std::uint32_t extents = 0;
  std::vector<std::byte> table;
};

struct Recovered {
  DeviceId device{};
  std::uint64_t generation = 0;  // above all that ever were
  std::vector<RecoveredSegment> segments;
  std::uint64_t extents = 0;          // seen
  std::uint64_t tables_dropped = 0;   // sealed segments whose table was damaged: scanned instead
  std::uint64_t headers_dropped = 0;  // segments whose header was damaged or foreign
  std::uint64_t scanned = 0;          // segments read by headers
  std::uint64_t unreadable = 0;       // segments that the device would not read
};

// Fills the index, oldest segments first, so that the newest of duplicates wins. first_segment: this device's number 0
// as the index counts. Never throws for what is on the medium.
Recovered recover(const DeviceFile& file, std::uint32_t first_segment, std::uint32_t threads_max, DiskIndex* index);

}  // namespace kvcommons::disk
