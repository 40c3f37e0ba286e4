// One device's primary context (the one that the engine uses), its kernels and its events. Every call of the driver
// goes through KVCOMMONS_GPU_TRY, which keeps what failed, where and why.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/gpu/copy_plan.h"
#include "kernels/gpu/driver.h"

namespace kvcommons::gpu {

class GpuContext {
 public:
  // Throws std::runtime_error: what is missing, and what to do.
  GpuContext(const std::string& library, int ordinal);
  ~GpuContext();
  GpuContext(const GpuContext&) = delete;  // holds the context

  [[nodiscard]] const Driver& driver() const noexcept { return *driver_; }
  [[nodiscard]] const Api& api() const noexcept { return driver_->api; }
  [[nodiscard]] int ordinal() const noexcept { return ordinal_; }
  [[nodiscard]] int attribute(DeviceAttribute which) const { return driver_->attribute(which, device_); }
  [[nodiscard]] std::string name() const;

  // True for success; else it is remembered, with the call and its place.
  bool check(Result result, const char* call, const char* file, int line) const;
  [[nodiscard]] std::string last_error() const;
  [[noreturn]] void throw_last(const std::string& what) const;

  // Makes the context current for this thread, whichever it is, and puts the former one back.
  class Current {
   public:
    explicit Current(const GpuContext& context);
    ~Current();
    Current(const Current&) = delete;  // undone once
    [[nodiscard]] bool ok() const noexcept { return ok_; }

   private:
    const GpuContext& context_;
    bool ok_;
  };

 private:
  std::shared_ptr<const Driver> driver_;
  int ordinal_, device_ = 0;
  Context context_ = nullptr;
  mutable std::mutex mutex_;  // guards error_
  mutable std::string error_;
};

#define KVCOMMONS_GPU_TRY(context, call) (context).check((call), #call, __FILE__, __LINE__)

// The image's functions, where the device can run it; else nothing but what the driver can do.
struct GpuKernels {
  GpuKernels(std::shared_ptr<const GpuContext> of, const std::string& image);
  ~GpuKernels();
  GpuKernels(const GpuKernels&) = delete;  // owns the module

  Abilities abilities;
  Function units = nullptr, ring = nullptr, quantise = nullptr, dequantise = nullptr, rope = nullptr;
  std::string missing;  // why there are no kernels

  // Blocks of each copy kernel: enough for what the link has in flight, few enough to leave the device to the engine.
  static constexpr unsigned kWarpsBlocks = 12, kRingBlocks = 2, kRelayoutBlocks = 32;
  bool launch(Function function, unsigned blocks, unsigned threads, unsigned shared_bytes, Stream stream,
              void** arguments) const;

 private:
  void load(const std::string& image);
  const std::shared_ptr<const GpuContext> context_;
  Module module_ = nullptr;
};

// Events without times, whose waits block instead of spinning; used again and again.
class EventPool {
 public:
  explicit EventPool(const GpuContext& context) : context_(context) {}
  ~EventPool();
  EventPool(const EventPool&) = delete;  // owns its events
  Event take();                          // nullptr: the driver has none left
  void give_back(Event event);

 private:
  const GpuContext& context_;
  std::mutex mutex_;  // guards free_
  std::vector<Event> free_;
};

}  // namespace kvcommons::gpu
