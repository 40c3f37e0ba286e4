// The tier on local disks: one preallocated file a device, written once round after round in segments, by O_DIRECT
// straight from and into the arena. docs/disk.md says what lies in the file and what an operator should watch.
//
// Ok for a put means written, not flushed: what a crash of the process leaves is found again, what a loss of power
// leaves is found again from the last sealed segment on. A tier that is destroyed flushes first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tier.h"
#include "tiers/disk_io.h"

namespace kvcommons {

struct DiskDevice {
  std::string path;                  // a folder on the device; the file in it is segments.kvc
  std::uint64_t capacity_bytes = 0;  // hard: rounded down to whole segments, preallocated
};

enum class DiskEngine : std::uint8_t { Auto, IoUring, Threads };  // Auto: io_uring where it is allowed

struct DiskConfig {
  std::vector<DiskDevice> devices;
  std::uint64_t segment_bytes = 128ull << 20;  // no shard is larger; a changed one starts empty
  DiskEngine engine = DiskEngine::Auto;
  bool buffered = false;                  // where the file system has no O_DIRECT, or cannot preallocate: go on without
  std::uint32_t threads_per_device = 16;  // of the engine without io_uring: operations at once
  std::uint32_t ring_depth = 64;          // of io_uring: operations at once, a device
  std::uint64_t queue_bytes_max = 512ull << 20;  // each of puts and gets; a batch beyond it is refused
  std::uint32_t op_deadline_ms = 5'000;   // what waited longer is Failed; a device that took longer is said to be slow
  std::uint32_t write_retry_ms = 10'000;  // after a write failed
  std::uint64_t wear_bytes_per_day = 0;   // each device; 0: no limit
  std::uint64_t read_bytes_per_second_max = 0, write_bytes_per_second_max = 0;  // each device; 0: no limit
  double reinsert_share = 0.25;  // of a segment that is reused: what was read since stays, up to this
  std::uint32_t recovery_threads_max = 4;
  std::uint32_t lock_wait_ms = 5'000;  // for the process before to be gone
  std::size_t events_max = 65'536;

  // For tests: a clock, and something between the tier and each device's engine.
  std::function<std::uint64_t()> now_ms;
  std::function<std::unique_ptr<DiskIo>(std::unique_ptr<DiskIo>, std::size_t device)> wrap_io;
};

// Opens, locks, allocates and reads back what is there; minutes at worst, seconds for a million shards. `notes` gets
// lines for the log: the engine of each device, what was recovered, what was dropped.
// Throws std::invalid_argument with the field, its value and the remedy.
std::unique_ptr<Tier> make_disk_tier(const DiskConfig& config, std::vector<std::string>* notes = nullptr);

}  // namespace kvcommons
