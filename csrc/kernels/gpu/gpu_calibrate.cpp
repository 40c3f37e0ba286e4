// What this machine's copies cost: each method by runs of 4 KiB and of 512 KiB, the best of three, once a process.
#include <chrono>
#include <map>
#include <optional>
#include <utility>

#include "gpu_device.h"

namespace kvcommons::gpu {
namespace {

using Clock = std::chrono::steady_clock;
using Way = Device::Way;

constexpr std::size_t kBytes = std::size_t{4} << 20;
constexpr std::size_t kSmallRun = 4'096, kLargeRun = std::size_t{512} << 10;
constexpr int kTimes = 3;
constexpr auto kTimeMax = std::chrono::milliseconds(90);

// Every other run of the device's memory: no method is helped by neighbours.
std::vector<kernels::CopyRun> scattered(Way way, std::byte* host, std::byte* device, std::size_t run_bytes) {
  std::vector<kernels::CopyRun> runs;
  for (std::size_t at = 0; at < kBytes; at += run_bytes) {
    std::byte *const near = host + at, *const far = device + 2 * at;
    runs.push_back(way == Way::Load ? kernels::CopyRun{near, far, run_bytes} : kernels::CopyRun{far, near, run_bytes});
  }
  return runs;
}

std::optional<Measured> measure(GpuDevice* device, Method method, Way way, std::span<const kernels::CopyRun> runs) {
  Measured best{.runs = runs.size(), .bytes = kBytes, .ns = 0};
  for (int time = 0; time <= kTimes; ++time) {  // the first one warms up
    const auto begun = Clock::now();
    const Device::Mark mark = device->copy_by(method, way, runs, 0);
    if (mark == 0 || device->wait(way, mark) != Device::State::Done) return std::nullopt;
    const double ns = std::chrono::duration<double, std::nano>(Clock::now() - begun).count();
    if (time == 1 || (time > 1 && ns < best.ns)) best.ns = ns;
  }
  return best;
}

struct Known {
  std::mutex mutex;
  std::map<std::pair<std::string, bool>, Costs> costs;  // by the device's description, with kernels or without
};
Known& known() {
  static Known all;
  return all;
}

}  // namespace

void GpuDevice::calibrate() {
  const std::pair key(description() + "#" + std::to_string(context_->ordinal()), kernels_->abilities.staged);
  const std::lock_guard lock(known().mutex);  // a second one waits for the first one's figures
  if (const auto found = known().costs.find(key); found != known().costs.end()) {
    costs_ = found->second;
    return;
  }
  const auto begun = Clock::now();
  void* host = nullptr;
  DevicePtr device = 0;
  const bool room =
      KVCOMMONS_GPU_TRY(*context_, context_->api().host_alloc(&host, kBytes, kHostPortable | kHostDeviceMap)) &&
      KVCOMMONS_GPU_TRY(*context_, context_->api().device_alloc(&device, 2 * kBytes));
  if (room) {
    auto* const near = static_cast<std::byte*>(host);
    {
      const std::lock_guard pins_lock(mutex_);
      pins_[near] = kBytes;
    }
    for (const Way way : {Way::Load, Way::Store}) {
      auto* const far = reinterpret_cast<std::byte*>(device);
      const auto small = scattered(way, near, far, kSmallRun), large = scattered(way, near, far, kLargeRun);
      for (const Method method : kAllMethods) {
        if (Clock::now() - begun > kTimeMax) break;  // the rest keeps its usual costs
        const auto many = measure(this, method, way, small), few = measure(this, method, way, large);
        if (many && few) costs_.at(way, method) = cost_of(*many, *few);
      }
    }
    const std::lock_guard pins_lock(mutex_);
    pins_.erase(near);
    copies_by_ = {};
  }
  if (host != nullptr) (void)KVCOMMONS_GPU_TRY(*context_, context_->api().host_free(host));
  if (device != 0) (void)KVCOMMONS_GPU_TRY(*context_, context_->api().device_free(device));
  known().costs.emplace(key, costs_);
}

}  // namespace kvcommons::gpu
