// A device's one file: locked, preallocated, and proven to take aligned reads and writes before anything relies on it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "socket.h"
#include "tiers/disk_format.h"
#include "tiers/disk_tier.h"

namespace kvcommons::disk {

struct DeviceFile {
  std::string path;
  UniqueFd fd;  // holds the lock as well
  std::uint64_t segment_bytes = 0;
  std::uint32_t segments = 0;
  bool direct = true;  // O_DIRECT
  [[nodiscard]] std::uint64_t bytes() const noexcept { return segment_bytes * segments; }
};

// Memory that O_DIRECT takes. Whole blocks.
class AlignedBlocks {
 public:
  AlignedBlocks() = default;
  explicit AlignedBlocks(std::uint64_t blocks)
      : bytes_(blocks * kBlockBytes), data_(static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, bytes_))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::span<std::byte> span() const noexcept { return {data_.get(), bytes_}; }
  [[nodiscard]] std::span<std::byte, kBlockBytes> block(std::uint64_t number = 0) const noexcept {
    return std::span<std::byte, kBlockBytes>(data_.get() + number * kBlockBytes, kBlockBytes);
  }

 private:
  struct Free {
    void operator()(std::byte* p) const noexcept { std::free(p); }
  };
  std::uint64_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

// Throws std::invalid_argument with the field, the value and the remedy.
void check_config(const DiskConfig& config);
DeviceFile open_device_file(const DiskConfig& config, std::size_t device, std::vector<std::string>* notes);

// Whole reads and writes at start, before the engine runs; false: errno, or EIO where it ended early.
bool read_whole(int fd, std::span<std::byte> into, std::uint64_t offset_bytes) noexcept;
bool write_whole(int fd, std::span<const std::byte> from, std::uint64_t offset_bytes) noexcept;

}  // namespace kvcommons::disk
