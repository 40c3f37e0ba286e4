// One way's stream and what its kernels need: lists of units that they read, and room to relay out.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/gpu/gpu_context.h"

namespace kvcommons::gpu {

// A list of units: filled in pinned memory, read by the kernel from the device's. One copy has it until it has ended.
class UnitBuffer {
 public:
  static constexpr std::size_t kUnitsMax = 8'192;
  static std::unique_ptr<UnitBuffer> make(std::shared_ptr<const GpuContext> context);  // nullptr: no memory
  ~UnitBuffer();
  UnitBuffer(const UnitBuffer&) = delete;  // owns both memories

  void* host = nullptr;
  DevicePtr device = 0;

 private:
  explicit UnitBuffer(std::shared_ptr<const GpuContext> context) : context_(std::move(context)) {}
  const std::shared_ptr<const GpuContext> context_;
};
using UnitBuffers = std::vector<std::unique_ptr<UnitBuffer>>;

// For buffers that a kernel may still read, and nobody knows: they live as long as the process.
void keep_for_good(UnitBuffers buffers);

class Lane {
 public:
  static constexpr std::size_t kStagingBytes = std::size_t{16} << 20;

  // Throws std::runtime_error where the device gives no stream.
  Lane(std::shared_ptr<const GpuContext> context, std::shared_ptr<const GpuKernels> kernels, Device::Way way);
  ~Lane();
  Lane(const Lane&) = delete;  // owns its stream and memory

  [[nodiscard]] Abilities abilities() const noexcept;
  [[nodiscard]] Stream stream() const noexcept { return stream_; }
  [[nodiscard]] bool synchronize() const;

  // The next three by one thread at a time, which holds mutex(). put: false where a call failed; what stands on the
  // stream by then runs. `used` stays untouched until the stream has passed it.
  [[nodiscard]] std::mutex& mutex() noexcept { return mutex_; }
  bool wait_for(Event event);
  bool put(Method method, std::span<const kernels::CopyRun> runs, UnitBuffers* used);

  void give_back(UnitBuffers buffers);

 private:
  bool put_batch(std::span<const kernels::CopyRun> runs);
  bool put_loop(std::span<const kernels::CopyRun> runs);
  bool put_staged(std::span<const kernels::CopyRun> runs, UnitBuffers* used);
  bool put_kernel(Method method, std::span<const kernels::CopyRun> runs, unsigned blocks, UnitBuffers* used);
  std::unique_ptr<UnitBuffer> take();

  const std::shared_ptr<const GpuContext> context_;
  const std::shared_ptr<const GpuKernels> kernels_;
  const Device::Way way_;
  Stream stream_ = nullptr;
  DevicePtr staging_ = 0;  // 0: the device had no memory left for it
  std::mutex mutex_;
  std::vector<CopyUnit> units_;
  std::vector<DevicePtr> dsts_, srcs_;
  std::vector<std::size_t> bytes_;
  std::mutex free_mutex_;  // guards free_
  UnitBuffers free_;
};

}  // namespace kvcommons::gpu
