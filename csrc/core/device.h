// A device whose memory holds an engine's KV, as a transfer sees it: two streams of copies, one each way, that run by
// themselves, and points in time to wait for. The host's own memory is no device: a transfer without one copies by
// itself. Implementations are called by several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "kernels/cpu/copy.h"

namespace kvcommons {

class Device {
 public:
  enum class Way : std::uint8_t { Load, Store };  // into the device's memory, out of it
  // A point in a stream, reached when all that was put there before has ended. 0: reached already.
  using Mark = std::uint64_t;
  enum class State : std::uint8_t {
    Done,
    Failed,  // ended, but what was written is not to be trusted
    Lost,    // nobody knows whether the device still reads or writes: memory it was given is never used again
  };
  // Registrations with the device are of pieces as long, counted from the arena's start; a run never spans two.
  static constexpr std::uint64_t kPinBytes = std::uint64_t{256} << 20;

  virtual ~Device() = default;

  // The present end of one of the engine's own streams (a CUDA stream's handle): what it has been given writes or reads
  // blocks that a copy is about to touch. Each mark is handed to one copy(), or to drop().
  virtual Mark mark(std::uintptr_t stream) = 0;
  virtual void drop(Mark mark) = 0;

  // Puts the copies behind all former ones of this way and, if it is not 0, behind `after`. Their memory stays as it is
  // until the mark has been waited for. 0: refused, and nothing of them runs or will.
  virtual Mark copy(Way way, std::span<const kernels::CopyRun> runs, Mark after) = 0;
  // Blocks until the mark is reached. Each mark is waited for once.
  virtual State wait(Way way, Mark mark) = 0;

  // Makes a piece of the arena fast to reach; false: it stays slow. Undone before the memory goes.
  virtual bool pin(std::byte* start, std::size_t bytes) = 0;
  virtual void unpin(std::byte* start) = 0;
};

// A mark of the engine's stream on its way to the copy that waits for it; dropped where none does.
class EngineMark {
 public:
  EngineMark() = default;
  EngineMark(Device* device, std::uintptr_t stream)
      : device_(device), mark_(device == nullptr ? 0 : device->mark(stream)) {}
  EngineMark(EngineMark&& other) noexcept : device_(other.device_), mark_(std::exchange(other.mark_, 0)) {}
  EngineMark& operator=(EngineMark&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(mark_, other.mark_);
    return *this;
  }
  ~EngineMark() {
    if (mark_ != 0) device_->drop(mark_);
  }
  [[nodiscard]] Device::Mark take() noexcept { return std::exchange(mark_, 0); }

 private:
  Device* device_ = nullptr;
  Device::Mark mark_ = 0;
};

}  // namespace kvcommons
