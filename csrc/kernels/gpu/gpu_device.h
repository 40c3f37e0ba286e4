// A GPU as a transfer's device: a stream of high priority for loads and one of low priority for stores, both apart from
// the engine's own; events between them, and no wait that is device-wide.
//
// Life of a copy: its runs are put on the stream by the method that costs least (copy_plan.h), behind the engine's
// mark; an event behind them is its mark; wait() blocks in the driver, not on a processor. What fails half-way is
// waited for before the mark says Failed; what cannot even be waited for is Lost.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "kernels/gpu/copy_plan.h"
#include "kernels/gpu/driver.h"
#include "kernels/gpu/gpu_context.h"
#include "kernels/gpu/gpu_lane.h"
#include "kernels/gpu/jobs.h"

namespace kvcommons::gpu {

struct GpuOptions {
  int ordinal = 0;
  std::string library;    // of the driver; empty: the usual one
  std::string kernels;    // image of kernels.cu; empty: none, and copies are the driver's alone
  bool calibrate = true;  // measure this machine once a process, within 100 ms; false: the usual costs
};

class GpuDevice final : public Device {
 public:
  // Throws std::runtime_error: what is missing, and what to do.
  explicit GpuDevice(const GpuOptions& options);
  ~GpuDevice() override;
  GpuDevice(const GpuDevice&) = delete;  // owns streams and memory of the device

  // Throws std::invalid_argument where `bytes` from `start` are not this device's memory, by their first and last byte.
  void check_memory(std::uintptr_t start, std::uint64_t bytes) const;

  Mark mark(std::uintptr_t stream) override;
  void drop(Mark mark) override;
  Mark copy(Way way, std::span<const kernels::CopyRun> runs, Mark after) override;
  State wait(Way way, Mark mark) override;
  bool pin(std::byte* start, std::size_t bytes) override;
  void unpin(std::byte* start) override;

  // The same by one method, whatever it costs; false where the device can't. For calibration, tests and benchmarks.
  Mark copy_by(Method method, Way way, std::span<const kernels::CopyRun> runs, Mark after);
  // Transforms of rows in the device's memory, on the store's stream; what they write may be pinned memory of the host.
  // They end before the call does. Failed: not launched, or the device has no kernels.
  State quantise(const QuantJob& job) { return transform(kernels_->quantise, job.tiles, &job); }
  State dequantise(const QuantJob& job) { return transform(kernels_->dequantise, job.tiles, &job); }
  State turn(const RopeJob& job) { return transform(kernels_->rope, job.rows, &job); }

  [[nodiscard]] const Costs& costs() const noexcept { return costs_; }
  [[nodiscard]] const Abilities& abilities() const noexcept { return kernels_->abilities; }
  [[nodiscard]] std::string description() const;
  [[nodiscard]] std::string last_error() const;  // empty: none yet
  [[nodiscard]] std::uint64_t copies_by(Method method) const;

 private:
  struct Copy {
    Event event = nullptr;  // nullptr: could not be recorded
    bool failed = false;
    UnitBuffers buffers;  // that its kernels read
  };
  Lane& lane_of(Way way) { return way == Way::Load ? *load_lane_ : *store_lane_; }
  bool is_pinned(Way way, std::span<const kernels::CopyRun> runs) const;
  Mark submit(Way way, Method method, std::span<const kernels::CopyRun> runs, Event after);
  State transform(Function function, std::uint32_t warps, const void* job);
  Event take_engine_event(Mark mark, bool* broken);
  void calibrate();

  std::shared_ptr<const GpuContext> context_;
  std::shared_ptr<const GpuKernels> kernels_;
  std::unique_ptr<EventPool> events_;
  std::unique_ptr<Lane> load_lane_, store_lane_;
  Costs costs_ = usual_costs();

  mutable std::mutex mutex_;                      // guards what follows; never held in a call of the driver that waits
  std::unordered_map<Mark, Event> engine_marks_;  // nullptr: could not be recorded
  std::map<Mark, Copy> copies_;                   // under way, or ended and not waited for
  std::map<const std::byte*, std::size_t> pins_;
  std::array<std::uint64_t, kMethods> copies_by_{};
  Mark last_mark_ = 0;
};

}  // namespace kvcommons::gpu
