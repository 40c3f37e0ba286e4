// The disk behind memory: shards in append-only segments of one preallocated file a device, moved straight between the
// medium and the caller's buffers. Format, guarantees and the table of failures: docs/disk.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tier.h"

namespace kvcommons {

class DiskIo;  // disk_io.h

enum class DiskEngine : std::uint8_t {
  Auto,  // io_uring where the kernel and the container's seccomp profile allow it, else threads; a note says which
  IoUring,
  Threads,
};

struct DiskDevice {
  std::string path;                  // a directory on the device (its file is segments.kvc), or a file in one
  std::uint64_t capacity_bytes = 0;  // of the file, rounded down to whole segments; never exceeded
};

struct DiskConfig {
  std::vector<DiskDevice> devices;
  std::uint64_t segment_bytes = 128ull << 20;
  DiskEngine engine = DiskEngine::Auto;
  bool buffered = false;  // a file system without O_DIRECT is used through the page cache, with a note; else refused
  std::uint32_t threads_per_device = 16;         // engine threads only: operations in flight
  std::uint32_t ring_depth = 64;                 // engine io_uring only: operations in flight on a device
  std::uint64_t queue_bytes_max = 512ull << 20;  // payload taken and not answered yet, in each direction
  std::uint64_t read_bytes_per_second_max = 0;   // of a device; 0: no limit
  std::uint64_t write_bytes_per_second_max = 0;  // of a device; 0: no limit
  std::uint32_t op_deadline_ms = 5'000;          // queued longer: Failed; in flight longer: the device is slow
  std::uint32_t write_retry_ms = 10'000;         // after a failed write a device only reads for so long
  std::uint64_t wear_bytes_per_day = 0;          // of a device; 0: no limit
  double reinsert_share = 0.25;                  // of a segment: what is hot moves on when its segment is reused
  std::uint32_t recovery_threads_max = 8;
  std::uint32_t events_max = 65'536;

  std::function<std::uint64_t()> now_ms;  // monotonic; injected by tests
  // Wraps each device's engine; injected by tests.
  std::function<std::unique_ptr<DiskIo>(std::unique_ptr<DiskIo> engine, std::size_t device)> wrap_io;
};

// Opens or makes every device's file and reads back what an earlier life left. Throws std::invalid_argument with the
// field, the value and the remedy: no O_DIRECT, no space, no write access, a wrong size, or another process has it.
// notes: lines for the log (the engine chosen and why, buffered by choice, what was recovered and what was dropped).
std::unique_ptr<Tier> make_disk_tier(const DiskConfig& config, std::vector<std::string>* notes);

}  // namespace kvcommons
